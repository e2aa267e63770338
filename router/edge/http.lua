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

-- What a signed request was before the transcoder, for the cell that verifies it
-- (router/signing/gate.py). The digest is by the hash of the algorithm that it names.
local TOLD = {"method", "target", "host", "type", "user", "digest"}

local function forget(headers)
  for _, name in ipairs(TOLD) do
    headers:remove("x-cellpay-signed-" .. name)
  end
  for _, name in ipairs({"algorithm", "authorization", "status", "type", "digest"}) do
    headers:remove("x-cellpay-answer-" .. name)
  end
end

local function text_of(body)
  return body and body:length() > 0 and body:getBytes(0, body:length()) or ""
end

local function digest_by(algorithm, body)
  local text = text_of(body)
  return algorithm == "sm2-sm3" and sm3(text) or sha256(text)
end

local function tell(handle)
  local text = handle:headers():get("authorization")
  if text == nil or text:sub(1, 9) ~= "CELLPAY1 " then
    return
  end
  local algorithm = text:match('algorithm="([%w%-_]+)"')
  local nonce = text:match('nonce="([%w_%-]+)"')
  local digest = digest_by(algorithm, handle:body())
  -- What was taken of the handle before it waited for the body is of no more use.
  local headers = handle:headers()
  local told = {
    method = headers:get(":method"),
    target = headers:get(":path"),
    host = headers:get(":authority") or "",
    type = headers:get("content-type") or "",
    user = headers:get("x-user-id") or "",
    digest = digest,
  }
  for name, value in pairs(told) do
    -- An empty one is as one that is not there.
    if value ~= "" then
      headers:add("x-cellpay-signed-" .. name, value)
    end
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  if algorithm and nonce then
    metadata:set("cellpay.signed", "algorithm", algorithm)
    metadata:set("cellpay.signed", "authorization", text)
  end
end

local function refuse(handle, status, text)
  handle:respond({[":status"] = status, ["content-type"] = "application/json"}, text)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  forget(headers)
  -- More than one would leave open which was signed.
  for _, name in ipairs({"authorization", "content-type", "x-user-id"}) do
    if headers:getNumValues(name) > 1 then
      headers:remove("authorization")
    end
  end
  tell(handle)
  headers = handle:headers()
  headers:remove("x-user-id")
  headers:remove("x-cellpay-slot")
  local path = headers:get(":path"):match("^[^?#]*")
  local noun, id = path:match("^/v1/([%l-]+)/([^/]+)")
  -- A verb follows an ID behind a colon; no ID of ours holds one.
  local slot = noun ~= "users" and id and slot_of_id(id:match("^[^:]*"))
  if noun ~= "users" and not slot then
    -- 5 is NOT_FOUND. The body is a google.rpc.Status, as the transcoder writes refusals.
    refuse(handle, "404", '{"code":5,"message":"no such path: see openapi.json","details":[]}')
    return
  end
  local status, fault = fault_of(headers:get(":method"), path, text_of(handle:body()))
  if status ~= nil then
    refuse(handle, status, fault)
    return
  end
  local name = slot and "x-cellpay-slot" or "x-user-id"
  local home = slot and tostring(slot) or id
  handle:headers():add(name, home)
  handle:streamInfo():dynamicMetadata():set("cellpay.signed", name, home)
end

-- Answers to signed requests are signed, as they leave: a cell has the key, only we the bytes. When
-- none signs, the answer goes without, and its reader has to ask again.
function envoy_on_response(handle)
  handle:headers():remove("x-cellpay-signature")
  local signed = handle:streamInfo():dynamicMetadata():get("cellpay.signed")
  if signed == nil or signed["authorization"] == nil then
    return
  end
  local digest = digest_by(signed["algorithm"], handle:body())
  local headers = handle:headers()
  local asked = {
    [":method"] = "POST",
    [":path"] = "/cellpay.keys.v1.AnswersService/SignAnswer",
    [":authority"] = "cellpay",
    ["content-type"] = "application/grpc",
    ["te"] = "trailers",
    ["x-cellpay-answer-algorithm"] = signed["algorithm"],
    ["x-cellpay-answer-authorization"] = signed["authorization"],
    ["x-cellpay-answer-status"] = headers:get(":status"),
    ["x-cellpay-answer-type"] = headers:get("content-type") or "",
    ["x-cellpay-answer-digest"] = digest,
    ["x-user-id"] = signed["x-user-id"],
    ["x-cellpay-slot"] = signed["x-cellpay-slot"],
  }
  -- An empty message of gRPC: not compressed, no bytes.
  local answer = handle:httpCall("edge", asked, "\0\0\0\0\0", 2000)
  if answer ~= nil and answer["x-cellpay-signature"] ~= nil then
    handle:headers():add("x-cellpay-signature", answer["x-cellpay-signature"])
  end
end
