-- Refuses a JSON body with a field that its message does not have. Envoy's transcoder leaves such a
-- field out in silence: a refund with a misspelled "amount" would give everything back.
-- BODIES and FIELDS come before this, made from the protos (bodies.py).
-- The transcoder reads more than JSON (names without quotes, commas at the end). So what is not JSON
-- by the letter of RFC 8259 is refused too: nothing that it would read otherwise gets past here.
local DEPTH_MAX = 32
local SPACE = "^[ \t\r\n]*()"
local value_at

local function after_space(text, at)
  return text:match(SPACE, at)
end

-- Behind a string that begins here, or nil.
local function string_at(text, at)
  if text:sub(at, at) ~= '"' then
    return nil
  end
  at = at + 1
  while true do
    local stop = text:find('["\\%z\1-\31]', at)
    local what = stop and text:sub(stop, stop)
    if what == '"' then
      return stop + 1
    elseif what ~= "\\" then
      return nil
    end
    at = text:match('^["\\/bfnrt]()', stop + 1) or text:match("^u%x%x%x%x()", stop + 1)
    if at == nil then
      return nil
    end
  end
end

local function number_at(text, at)
  local after = text:match("^%-?0()", at) or text:match("^%-?[1-9]%d*()", at)
  if after == nil then
    return nil
  end
  after = text:match("^%.%d+()", after) or after
  return text:match("^[eE][+-]?%d+()", after) or after
end

-- Each of these gives the place behind what it read; or nil and, where it is a field that nobody
-- knows, that field. `kind`: a message's name; nil: anything may stand here.
local function object_at(text, at, kind, depth)
  local fields = kind and FIELDS[kind]
  at = after_space(text, at + 1)
  if text:sub(at, at) == "}" then
    return at + 1
  end
  while true do
    local behind = string_at(text, at)
    if behind == nil then
      return nil
    end
    local name = text:sub(at + 1, behind - 2)
    local found = fields and fields[name]
    if fields and found == nil then
      -- Said back only when it looks like a name: it may be a number that was to be kept secret.
      local shown = #name <= 64 and name:match("^[%a_][%w_]*$") or "?"
      return nil, shown
    end
    at = text:match("^[ \t\r\n]*:[ \t\r\n]*()", behind)
    if at == nil then
      return nil
    end
    local unknown
    at, unknown = value_at(text, at, found ~= "" and found or nil, depth)
    if at == nil then
      return nil, unknown and (fields and name .. "." .. unknown or unknown)
    end
    local mark
    mark, at = text:match("^[ \t\r\n]*([,}])[ \t\r\n]*()", at)
    if mark ~= "," then
      return mark and at
    end
  end
end

local function array_at(text, at, kind, depth)
  at = after_space(text, at + 1)
  if text:sub(at, at) == "]" then
    return at + 1
  end
  while true do
    local unknown
    at, unknown = value_at(text, at, kind, depth)
    if at == nil then
      return nil, unknown
    end
    local mark
    mark, at = text:match("^[ \t\r\n]*([,%]])[ \t\r\n]*()", at)
    if mark ~= "," then
      return mark and at
    end
  end
end

function value_at(text, at, kind, depth)
  if depth == DEPTH_MAX then
    return nil
  end
  local first = text:sub(at, at)
  if first == "{" then
    return object_at(text, at, kind, depth + 1)
  elseif first == "[" then
    return array_at(text, at, kind, depth + 1)
  elseif first == '"' then
    return string_at(text, at)
  end
  return number_at(text, at) or text:match("^true()", at) or text:match("^false()", at)
    or text:match("^null()", at)
end

-- Whether the text is one JSON value whose names a message has; else false and, where that is why,
-- the field that it has not.
local function is_known(text, kind)
  local at, unknown = value_at(text, after_space(text, 1), kind, 0)
  return at ~= nil and after_space(text, at) == #text + 1, unknown
end

-- The message that is the body of such a request; nil when no method takes one.
local function body_of(method, path)
  for _, body in ipairs(BODIES) do
    if body[1] == method and path:match(body[2]) then
      return body[3]
    end
  end
end

local function refused(code, message, field)
  local details = ""
  if field ~= nil then
    details = '{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[{"field":"'
      .. field .. '","description":"there is no such field"}]}'
  end
  return '{"code":' .. code .. ',"message":"' .. message .. '","details":[' .. details .. "]}"
end

-- Why a body is refused: the status of HTTP and a google.rpc.Status (3 is INVALID_ARGUMENT, 5
-- NOT_FOUND); nil when it is not.
local function fault_of(method, path, text)
  if text == "" then
    return nil
  end
  local kind = body_of(method, path)
  if kind == nil then
    return "404", refused(5, "no such path takes a body: see openapi.json")
  end
  local known, unknown = is_known(text, kind)
  if known then
    return nil
  elseif unknown then
    return "400", refused(3, "the body has a field that nobody knows: see openapi.json", unknown)
  end
  return "400", refused(3, "the body is not JSON")
end
