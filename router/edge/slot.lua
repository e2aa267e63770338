-- Finds the slot of a request at the edge: crc32(x-user-id) % 1024 (IEEE CRC-32, as zlib's).
-- HTTP headers are ASCII, so the user ID is percent-encoded in UTF-8 (RFC 3986); "%" is "%25".
-- x-user-id wins over x-cellpay-slot; a request with neither is refused with INVALID_ARGUMENT.
local bit = require("bit")
local SLOTS = 1024
local TABLE = {}
for n = 0, 255 do
  local c = n
  for _ = 1, 8 do
    if bit.band(c, 1) == 1 then
      c = bit.bxor(bit.rshift(c, 1), 0xEDB88320)
    else
      c = bit.rshift(c, 1)
    end
  end
  TABLE[n] = c
end

local function slot_of(user_id)
  local crc = 0xFFFFFFFF
  for i = 1, #user_id do
    crc = bit.bxor(bit.rshift(crc, 8), TABLE[bit.band(bit.bxor(crc, user_id:byte(i)), 0xFF)])
  end
  -- The slot is the low ten bits, so the sign of Lua's 32-bit numbers does not matter.
  return bit.band(bit.bnot(crc), SLOTS - 1)
end

local function decoded(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function valid(text)
  local slot = text and text:match("^%d+$") and tonumber(text)
  return slot ~= nil and slot < SLOTS
end

-- What a client may not tell Envoy: how long to wait, how often to try, what to count it as.
local ENVOYS_OWN = {
  "x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms",
  "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-upstream-stream-duration-ms",
  "x-envoy-max-retries", "x-envoy-retry-on", "x-envoy-retry-grpc-on",
  "x-envoy-retriable-status-codes", "x-envoy-retriable-header-names",
  "x-envoy-hedge-on-per-try-timeout", "x-envoy-upstream-alt-stat-name",
}

local EDGES = "spiffe://cellpay.local/edge/"
local ANSWERS = "/cellpay.keys.v1.AnswersService/"
local TOLD = {"method", "target", "host", "type", "user", "digest"}
local ANSWER = {"algorithm", "authorization", "status", "type", "digest"}

-- Whether an edge sends this: the HTTP listener, which says in headers what it has seen.
local function from_edge(handle)
  local tls = handle:streamInfo():downstreamSslConnection()
  if tls == nil then
    return false
  end
  for _, name in ipairs(tls:uriSanPeerCertificate()) do
    if name:sub(1, #EDGES) == EDGES then
      return true
    end
  end
  return false
end

-- Of a gRPC request what the cell cannot see and a signature is of (router/signing/gate.py).
local function tell(headers)
  for _, name in ipairs(TOLD) do
    headers:remove("x-cellpay-signed-" .. name)
  end
  for _, name in ipairs(ANSWER) do
    headers:remove("x-cellpay-answer-" .. name)
  end
  local text = headers:get("authorization")
  if text == nil or text:sub(1, 9) ~= "CELLPAY1 " then
    return
  end
  local told = {host = ":authority", type = "content-type", user = "x-user-id"}
  for name, header in pairs(told) do
    local value = headers:get(header)
    if headers:getNumValues(header) > 1 then
      -- Which was signed is open.
      headers:remove("authorization")
    elseif value ~= nil and value ~= "" then
      headers:add("x-cellpay-signed-" .. name, value)
    end
  end
end

local function refuse(handle, status, message)
  handle:respond({
    [":status"] = "200",
    ["content-type"] = "application/grpc",
    ["grpc-status"] = status,
    ["grpc-message"] = message,
  }, "")
end

-- Runs behind the buffer filter: the request is there whole.
function envoy_on_request(handle)
  local body = handle:body()
  if body == nil or body:length() < 5 then
    refuse(handle, "3", "the call has no message")
    return
  end
  -- What was taken of the handle before it looked at the body is of no more use.
  local headers = handle:headers()
  for _, name in ipairs(ENVOYS_OWN) do
    headers:remove(name)
  end
  if not from_edge(handle) then
    if headers:get(":path"):sub(1, #ANSWERS) == ANSWERS then
      refuse(handle, "7", "only the edge itself asks for this")
      return
    end
    tell(headers)
  end
  local user_id = headers:get("x-user-id")
  if user_id ~= nil and user_id ~= "" then
    headers:replace("x-cellpay-slot", tostring(slot_of(decoded(user_id))))
  elseif not valid(headers:get("x-cellpay-slot")) then
    refuse(handle, "3", "send x-user-id, or x-cellpay-slot from 0 to 1023")
    return
  end
  handle:clearRouteCache()
end

-- A refusal that moved.lua could not send on goes to the client as the cell gave it.
function envoy_on_response(handle)
  local headers = handle:headers()
  local refused = headers:get("x-cellpay-refused")
  if refused ~= nil then
    headers:replace(":status", "200")
    headers:replace("grpc-status", refused)
    headers:remove("location")
    headers:remove("x-cellpay-refused")
  end
end
