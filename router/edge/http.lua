-- Finds the home of an HTTP/JSON request from its path, before the transcoder turns it into gRPC:
-- /v1/users/{user ID}/… or /v1/{noun}/{ID that carries its slot}…
-- Headers that would name another home are not the client's to send.
local DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
local VALUES = {}
for i = 1, #DIGITS do
  VALUES[DIGITS:byte(i)] = i - 1
end

local function slot_of_id(id)
  local digits = id:match("^%l+_(%w%w)%w+$")
  local high = digits and VALUES[digits:byte(1)]
  local low = digits and VALUES[digits:byte(2)]
  return high and low and high * 32 + low
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("x-user-id")
  headers:remove("x-cellpay-slot")
  local path = headers:get(":path"):match("^[^?#]*")
  local noun, id = path:match("^/v1/([%l-]+)/([^/]+)")
  if noun == "users" then
    headers:add("x-user-id", id)
    return
  end
  -- A verb follows an ID behind a colon; no ID of ours holds one.
  local slot = id and slot_of_id(id:match("^[^:]*"))
  if slot then
    headers:add("x-cellpay-slot", tostring(slot))
    return
  end
  -- 5 is NOT_FOUND. The body is a google.rpc.Status, as the transcoder writes refusals.
  handle:respond(
    {[":status"] = "404", ["content-type"] = "application/json"},
    '{"code":5,"message":"no such path: see openapi.json","details":[]}'
  )
end
