"""Recorded decisions, from the stream RISK or from a file of JSON lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import nats.errors
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from router.client import TlsFiles
from router.risk.record import STREAM, SUBJECT_PREFIX, Record, decode

# A record is published after it was decided: a little, or long after an outage of NATS.
_PUBLISHED_BEFORE = timedelta(minutes=1)
_CONNECT_TIMEOUT_S = 5.0
_NEXT_TIMEOUT_S = 5.0


class NoRecords(Exception):
    """There is nothing to read the records from, and why."""


class Span:
    """From one moment to another, by the database that decided; either end may be open."""

    def __init__(self, begin: datetime | None = None, end: datetime | None = None) -> None:
        self.begin = begin
        self.end = end

    def holds(self, record: Record) -> bool:
        moment = datetime.fromtimestamp(record.observation.at_ms / 1000, UTC)
        return (self.begin is None or moment >= self.begin) and (
            self.end is None or moment < self.end
        )


def from_lines(path: Path, span: Span) -> Iterator[Record]:
    """A line is a record, or a message of the stream: an array of them. Raises NoRecords."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield from within(_records_of(line), span)
            except ValueError:
                # Not quoted: there are people's data in it.
                raise NoRecords(f"{path}: line {number} holds no record") from None


def _records_of(line: str) -> list[Record]:
    raw = json.loads(line)
    is_message = isinstance(raw, list) and all(isinstance(item, list | dict) for item in raw)
    return decode(line.encode() if is_message else f"[{line}]".encode())


def within(records: Iterable[Record], span: Span) -> Iterator[Record]:
    return (record for record in records if span.holds(record))


async def from_stream(url: str, span: Span, tls: TlsFiles | None = None) -> AsyncIterator[Record]:
    """Of all cells, up to what is in the stream now. Raises NoRecords."""
    try:
        client = await nats.connect(
            url, name="cellctl", connect_timeout=_CONNECT_TIMEOUT_S, allow_reconnect=False,
            tls=tls.client_context() if tls else None,
        )  # fmt: skip
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise NoRecords(f"NATS does not answer at {url}: {type(error).__name__}") from None
    try:
        jetstream = client.jetstream()
        try:
            last = (await jetstream.stream_info(STREAM)).state.last_seq
        except NotFoundError:
            raise NoRecords(f"there is no stream {STREAM}: nothing was screened yet") from None
        subscription = await jetstream.subscribe(
            f"{SUBJECT_PREFIX}>", stream=STREAM, ordered_consumer=True, config=_from(span)
        )
        waiting = (await subscription.consumer_info()).num_pending + subscription.pending_msgs
        while waiting:
            try:
                message = await subscription.next_msg(timeout=_NEXT_TIMEOUT_S)
            except (TimeoutError, nats.errors.TimeoutError):
                raise NoRecords(f"NATS has stopped to answer at {url}") from None
            for record in within(decode(message.data), span):
                yield record
            if message.metadata.sequence.stream >= last:
                break
            await asyncio.sleep(0)
    finally:
        await client.close()


def _from(span: Span) -> ConsumerConfig:
    if span.begin is None:
        return ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=span.begin - _PUBLISHED_BEFORE,
    )
