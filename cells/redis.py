"""Redis as a cell asks it: in bounded time, once. Whoever asks has a breaker, or can do without."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def connect_redis(url: str, wait_s: float, *, text: bool = False) -> Redis:
    """Connects when it is first asked. `wait_s`: for a connection, which takes more turns of the
    event loop than an answer, and for an answer. `text`: answers are strings, not bytes."""
    client: Redis = Redis.from_url(
        url,
        socket_timeout=wait_s,
        socket_connect_timeout=wait_s,
        retry=Retry(NoBackoff(), 0),
        decode_responses=text,
    )
    return client
