-- Sends a call on to its slot's new home. Runs before each cluster, on what a cell answers.
-- Envoy's retries stay with the cluster that was chosen first, so they never reach a new owner; an
-- internal redirect starts again with the newest routes. A first refusal is left to Envoy's retry,
-- which waits a little; a second one is turned into a redirect to the same URL. What the client
-- would have seen travels in x-cellpay-refused, for slot.lua to restore when redirects run out.
local bit = require("bit")
local UNAVAILABLE, FAILED_PRECONDITION = "14", "9"
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local VALUES = {}
for i = 1, #ALPHABET do
  VALUES[ALPHABET:byte(i)] = i - 1
end

local function from_base64(text)
  local bytes, held, count = {}, 0, 0
  for i = 1, #text do
    local value = VALUES[text:byte(i)]
    if value then
      held = bit.band(held * 64 + value, 0xFFFF)
      count = count + 6
      if count >= 8 then
        count = count - 8
        bytes[#bytes + 1] = string.char(bit.band(bit.rshift(held, count), 0xFF))
      end
    end
  end
  return table.concat(bytes)
end

local function says(headers, reason)
  local details = headers:get("grpc-status-details-bin")
  return details ~= nil and from_base64(details):find(reason, 1, true) ~= nil
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local url = "https://" .. headers:get(":authority") .. headers:get(":path")
  handle:streamInfo():dynamicMetadata():set("cellpay", "url", url)
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("grpc-status")
  if status == UNAVAILABLE and says(headers, "FEATURE_DEGRADED") then
    -- Switched off to spare the cell: no other one would answer, and nothing here may try again.
    headers:replace("x-cellpay-refused", status)
    headers:replace("grpc-status", FAILED_PRECONDITION)
    return
  end
  -- NOT_HOME (router/guard.py): we heard of the new owner before it did. Nothing was executed.
  if status ~= UNAVAILABLE and not (status == FAILED_PRECONDITION and says(headers, "NOT_HOME")) then
    return
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  headers:replace("x-cellpay-refused", status)
  if metadata:get("cellpay")["refused"] == nil then
    metadata:set("cellpay", "refused", "once")
    headers:replace("grpc-status", UNAVAILABLE)
    return
  end
  headers:remove("grpc-status")
  headers:replace(":status", "307")
  headers:replace("location", metadata:get("cellpay")["url"])
end
