-- SHA-256 (FIPS 180-4) and SM3 (GB/T 32905) of a string, as lower case hexadecimal: Envoy's Lua has
-- no hash of its own, and a signature is of the body as it was before the transcoder.
-- Tested against OpenSSL's in tests/unit/test_edge_digest.py, by the very LuaJIT.
local bit = require("bit")
local band, bor, bxor, bnot = bit.band, bit.bor, bit.bxor, bit.bnot
local lshift, rshift, rol, ror, tobit = bit.lshift, bit.rshift, bit.rol, bit.ror, bit.tobit
local byte, char = string.byte, string.char

local K = {}
do
  -- The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
  local words = "428a2f9871374491b5c0fbcfe9b5dba53956c25b59f111f1923f82a4ab1c5ed5d807aa9812835b01"
    .. "243185be550c7dc372be5d7480deb1fe9bdc06a7c19bf174e49b69c1efbe47860fc19dc6240ca1cc2de92c6f"
    .. "4a7484aa5cb0a9dc76f988da983e5152a831c66db00327c8bf597fc7c6e00bf3d5a7914706ca635114292967"
    .. "27b70a852e1b21384d2c6dfc53380d13650a7354766a0abb81c2c92e92722c85a2bfe8a1a81a664bc24b8b70"
    .. "c76c51a3d192e819d6990624f40e3585106aa07019a4c1161e376c082748774c34b0bcb5391c0cb34ed8aa4a"
    .. "5b9cca4f682e6ff3748f82ee78a5636f84c878148cc7020890befffaa4506cebbef9a3f7c67178f2"
  for i = 1, 64 do
    K[i] = tobit(tonumber(words:sub(8 * i - 7, 8 * i), 16))
  end
end

local function padded(text)
  local bits = #text * 8
  local length = {}
  for i = 8, 1, -1 do
    length[i] = char(bits % 256)
    bits = math.floor(bits / 256)
  end
  return text .. "\128" .. ("\0"):rep((55 - #text) % 64) .. table.concat(length)
end

local function words_of(text, at, w)
  for i = 0, 15 do
    local a, b, c, d = byte(text, at + 4 * i, at + 4 * i + 3)
    w[i] = bor(lshift(a, 24), lshift(b, 16), lshift(c, 8), d)
  end
end

local function hex_of(h)
  local parts = {}
  for i = 1, 8 do
    parts[i] = bit.tohex(h[i])
  end
  return table.concat(parts)
end

local function sha256(text)
  local data, w = padded(text), {}
  local h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
    0x5be0cd19}
  for at = 1, #data, 64 do
    words_of(data, at, w)
    for i = 16, 63 do
      local x, y = w[i - 15], w[i - 2]
      local s0 = bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
      local s1 = bxor(ror(y, 17), ror(y, 19), rshift(y, 10))
      w[i] = tobit(w[i - 16] + s0 + w[i - 7] + s1)
    end
    local a, b, c, d, e, f, g, z = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
    for i = 0, 63 do
      local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
      local one = tobit(z + s1 + bxor(band(e, f), band(bnot(e), g)) + K[i + 1] + w[i])
      local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
      local two = s0 + bxor(band(a, b), band(a, c), band(b, c))
      z, g, f, e, d, c, b, a = g, f, e, tobit(d + one), c, b, a, tobit(one + two)
    end
    h[1], h[2], h[3], h[4] = tobit(h[1] + a), tobit(h[2] + b), tobit(h[3] + c), tobit(h[4] + d)
    h[5], h[6], h[7], h[8] = tobit(h[5] + e), tobit(h[6] + f), tobit(h[7] + g), tobit(h[8] + z)
  end
  return hex_of(h)
end

local function sm3(text)
  local data, w = padded(text), {}
  local h = {0x7380166f, 0x4914b2b9, 0x172442d7, 0xda8a0600, 0xa96f30bc, 0x163138aa, 0xe38dee4d,
    0xb0fb0e4e}
  for at = 1, #data, 64 do
    words_of(data, at, w)
    for i = 16, 67 do
      local x = bxor(w[i - 16], w[i - 9], rol(w[i - 3], 15))
      w[i] = bxor(x, rol(x, 15), rol(x, 23), rol(w[i - 13], 7), w[i - 6])
    end
    local a, b, c, d, e, f, g, z = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
    for i = 0, 63 do
      local early = i < 16
      local turned = rol(a, 12)
      local ss1 = rol(tobit(turned + e + rol(early and 0x79cc4519 or 0x7a879d8a, i % 32)), 7)
      local ff = early and bxor(a, b, c) or bor(band(a, b), band(a, c), band(b, c))
      local gg = early and bxor(e, f, g) or bor(band(e, f), band(bnot(e), g))
      local one = tobit(ff + d + bxor(ss1, turned) + bxor(w[i], w[i + 4]))
      local two = tobit(gg + z + ss1 + w[i])
      d, c, b, a = c, rol(b, 9), a, one
      z, g, f, e = g, rol(f, 19), e, bxor(two, rol(two, 9), rol(two, 17))
    end
    h[1], h[2], h[3], h[4] = bxor(h[1], a), bxor(h[2], b), bxor(h[3], c), bxor(h[4], d)
    h[5], h[6], h[7], h[8] = bxor(h[5], e), bxor(h[6], f), bxor(h[7], g), bxor(h[8], z)
  end
  return hex_of(h)
end
