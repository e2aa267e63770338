"""A consumer in a process of its own, to be killed.

    python -m tests.integration.counting NATS REDIS

Writes a line before each script that it sends to Redis, and one after.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cells.risk.consumer import Consumer
from cells.risk.writer import FeatureWriter


def main() -> None:
    from tests.integration.test_risk_features import DOCUMENT

    apply = FeatureWriter.apply

    async def told(self: FeatureWriter, *arguments: Any, **named: Any) -> bool:
        print("before", flush=True)
        done = await apply(self, *arguments, **named)
        print("after", flush=True)
        return done

    FeatureWriter.apply = told  # type: ignore[method-assign]
    asyncio.run(Consumer(sys.argv[1], sys.argv[2], "a", lambda: DOCUMENT).run())


if __name__ == "__main__":
    main()
