"""ISO 8583:1987 over TCP: many requests under way on one connection, matched by STAN and RRN.

`options` is a bank as configured; `dialect` how it spells messages; `framing` cuts the stream into
frames; `codec` turns fields into bytes (pyiso8583) and seals them with a MAC (`mac`); `rules`
decides what a request is in fields and what an answer means (`codes`); `connection` matches answers
with what was sent; `channel` keeps the connection and is the `Channel`.
"""
