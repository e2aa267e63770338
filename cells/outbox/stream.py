"""The stream CELLPAY in JetStream: how events look there, and how they get there.

subject   cellpay.events.<type>
headers   Nats-Msg-Id: of its batches (the server drops repeats for two minutes; pitfall 19)
          traceparent: of its first event that has one; each event's own is in its line
body      events of that type, a line each: {"id", "type", "slot", "merchant_id", "time", "data"},
          and "traceparent" where traces are recorded

A message is what some groups of the ledger told of: the stream syncs once for all of it, and at a
moderate load, when groups are small, there is one message for a look into the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import nats
import nats.errors
import structlog
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from cells.cancellation import go_on_unless_cancelled
from cells.ledger.model import EventBatch
from router.client.tls import TlsFiles
from router.tracing.model import SpanKind
from router.tracing.rules import TRACEPARENT
from router.tracing.tracer import Tracer, root

log = structlog.get_logger(__name__)

STREAM = "CELLPAY"
SUBJECTS = "cellpay.events.>"
_DUPLICATE_WINDOW_S = 120.0
# Far longer than the outbox's retention, and not for ever.
_AGE_MAX_S = 30 * 86_400.0
_ACK_WAIT_S = 5.0
# What a message may gather; a batch that is larger goes alone. JetStream takes 1 MiB at most, and a
# character may have four bytes.
_EVENTS_A_MESSAGE_MAX = 128
_CHARACTERS_A_MESSAGE_MAX = 200_000
_MARK = '"traceparent":"'
# As `Book.tell` writes it. Quotes within a text are escaped, so no text of others looks like it.
_TRACED = re.compile(r'^\{"id":"[^"]*".*?,"traceparent":"([0-9a-f-]{55})","data":', re.MULTILINE)
_SAMPLED = re.compile(
    r'^\{"id":"([^"]*)".*?,"traceparent":"([0-9a-f-]{53}01)","data":', re.MULTILINE
)
_RECONNECT_WAIT_S = 0.25
# A dead server that does not close its connections is noticed after two of these.
_PING_INTERVAL_S = 10


@contextlib.asynccontextmanager
async def connect_stream(url: str, name: str, tls: TlsFiles | None = None) -> AsyncIterator[Any]:
    """A JetStream context with the stream there. Waits for NATS as long as it is away."""
    async with connect_jetstream(url, name, tls) as stream:
        await ensure_stream(stream)
        yield stream


@contextlib.asynccontextmanager
async def connect_jetstream(url: str, name: str, tls: TlsFiles | None = None) -> AsyncIterator[Any]:
    """A JetStream context. Waits for NATS as long as it is away.

    `tls`: what is shown to a server that asks for TLS; a certificate that was rotated is shown
    from the next connection on.
    """
    context = tls.client_context() if tls else None

    async def on_disconnected() -> None:
        log.info("disconnected from NATS")
        if tls and context:
            # Until all three files are there, the old ones are shown.
            with contextlib.suppress(OSError):
                tls.show_in(context)

    client = await nats.connect(
        url,
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=_RECONNECT_WAIT_S,
        ping_interval=_PING_INTERVAL_S,
        error_cb=_on_error,
        disconnected_cb=on_disconnected,
        reconnected_cb=_on_reconnected,
        **({"tls": context} if context else {}),
    )
    try:
        yield client.jetstream(timeout=_ACK_WAIT_S)
    finally:
        # It writes what it still has to a connection that may be gone.
        with contextlib.suppress(OSError, nats.errors.Error):
            await client.close()
        go_on_unless_cancelled()


async def ensure_stream(stream: Any) -> None:
    await make_if_absent(
        stream,
        StreamConfig(
            name=STREAM,
            subjects=[SUBJECTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            duplicate_window=_DUPLICATE_WINDOW_S,
            max_age=_AGE_MAX_S,
        ),
    )


async def make_if_absent(stream: Any, config: StreamConfig) -> None:
    """A stream that is there stays as its operator made it."""
    try:
        await stream.stream_info(config.name)
    except NotFoundError:
        await stream.add_stream(config)
        log.info("the stream was made", stream=config.name)


async def publish(
    stream: Any, batches: Sequence[EventBatch], tracer: Tracer | None = None
) -> list[EventBatch]:
    """Publishes all at once, awaits each acknowledgement; returns the batches that have theirs.

    Raises the first fault when none has: the stream is away. `tracer`: where each event of the
    sample has a span of it.
    """
    with contextlib.ExitStack() as stack:
        for event_id, traceparent in sampled(batches) if tracer is not None else ():
            watching = root(tracer, "event.publish", SpanKind.PRODUCER, traceparent)
            stack.enter_context(watching).note(event_id=event_id)
        return await _publish(stream, batches)


async def _publish(stream: Any, batches: Sequence[EventBatch]) -> list[EventBatch]:
    pending: dict[asyncio.Future[Any], Sequence[EventBatch]] = {}
    fault: BaseException | None = None
    for message in messages(batches):
        try:
            future = await stream.publish_async(
                f"cellpay.events.{message[0].type}",
                "\n".join([batch.lines for batch in message]).encode(),
                wait_stall=_ACK_WAIT_S,
                stream=STREAM,
                headers={"Nats-Msg-Id": message_id(message), **traced(message)},
            )
        except Exception as error:
            go_on_unless_cancelled()
            # The others go on: they may be acknowledged.
            fault = error
        else:
            pending[future] = message
    acknowledged, failed = await _acknowledgements(pending)
    fault = fault or failed
    if fault is not None and not acknowledged:
        raise fault
    return acknowledged


def messages(batches: Sequence[EventBatch]) -> Iterator[Sequence[EventBatch]]:
    """Batches that share a message: of one type, as many as it holds."""
    by_type: dict[str, list[EventBatch]] = {}
    for batch in batches:
        by_type.setdefault(batch.type, []).append(batch)
    for same in by_type.values():
        first = events = characters = 0
        for number, batch in enumerate(same):
            events += batch.events
            characters += len(batch.lines) + 1
            full = events > _EVENTS_A_MESSAGE_MAX or characters > _CHARACTERS_A_MESSAGE_MAX
            if full and number > first:
                yield same[first:number]
                first, events, characters = number, batch.events, len(batch.lines) + 1
        yield same[first:]


def message_id(message: Sequence[EventBatch]) -> str:
    """Of exactly these batches. Were it the first one's, a repeat that has gathered more would be
    dropped with what is new in it, acknowledged and marked as sent."""
    if len(message) == 1:
        return message[0].batch_id
    joined = "\n".join([batch.batch_id for batch in message])
    return hashlib.sha256(joined.encode()).hexdigest()


def traced(message: Sequence[EventBatch]) -> dict[str, str]:
    """The header by which other consumers may go on with a trace."""
    lines = message[0].lines
    found = _TRACED.search(lines) if _MARK in lines else None
    return {TRACEPARENT: found[1]} if found else {}


def sampled(message: Sequence[EventBatch]) -> list[tuple[str, str]]:
    """(event ID, traceparent) of those events that are in the sample."""
    return [pair for batch in message for pair in _SAMPLED.findall(batch.lines)]


async def _acknowledgements(
    pending: Mapping[asyncio.Future[Any], Sequence[EventBatch]],
) -> tuple[list[EventBatch], BaseException | None]:
    """The batches that the stream has, and the first fault of those that it may not have."""
    if not pending:
        return [], None
    done, silent = await asyncio.wait(pending, timeout=_ACK_WAIT_S)
    fault: BaseException | None = None
    for future in silent:
        future.cancel()
        fault = TimeoutError("the stream does not acknowledge")
    acknowledged: list[EventBatch] = []
    for future in done:
        failure = None if future.cancelled() else future.exception()
        if failure is None and not future.cancelled():
            acknowledged += pending[future]
        else:
            fault = failure or fault or TimeoutError("the publication was cut off")
    return acknowledged, fault


async def _on_error(error: Exception) -> None:
    log.debug("nats", error=type(error).__name__)


async def _on_reconnected() -> None:
    log.info("connected to NATS again")
