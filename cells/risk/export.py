"""The stream's observations as JSON lines, for Flink or any other tool: docs/risk-features.md.

    python -m cells.risk.export NATS_URL > observations.jsonl

All that the stream holds when it begins; an object of Observation's fields each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TextIO

from cells.outbox.stream import connect_jetstream
from cells.risk.reading import records


async def export(nats_url: str, out: TextIO) -> int:
    """How many there were."""
    count = 0
    async with connect_jetstream(nats_url, "cellpay-risk-export") as stream:
        async for record in records(stream):
            out.write(json.dumps(record.observation._asdict()) + "\n")
            count += 1
    return count


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cells.risk.export NATS_URL > FILE")
    count = asyncio.run(export(sys.argv[1], sys.stdout))
    print(f"{count} observations", file=sys.stderr)


if __name__ == "__main__":
    main()
