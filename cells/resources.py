"""Get and List, which services answer alike for every kind of resource (AIP-131, AIP-132)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

from cells.answers import not_found
from cells.ledger.model import Reason
from cells.ledger.records import RecordType
from cells.reading import ReadEngine, Row, fetch_row, newest_of_user
from cells.replica import staleness_of
from cells.requests import Checker, page_start
from router.ids import Kind, slot_of_id


@dataclass(frozen=True, slots=True)
class Resource(Generic[Row]):
    """Rows that callers know by an ID with its slot in it."""

    record: RecordType[Row]
    kind: Kind
    # Why there is none, and what callers call it.
    missing: Reason
    name: str

    async def get(self, engine: ReadEngine, identifier: str, context: Any) -> Row:
        """Raises Refusal: NOT_FOUND, or INVALID_ARGUMENT for what is no ID of this kind."""
        check = Checker()
        check.identifier(self.record.id_field, identifier, self.kind)
        check.done()
        slot, staleness_s = slot_of_id(identifier), staleness_of(context)
        row = await fetch_row(engine, self.record, slot, identifier, staleness_s)
        if row is None:
            raise not_found(self.missing, self.name)
        return row


async def list_of_user(
    engine: ReadEngine, record: RecordType[Row], owner: str, request: Any, context: Any
) -> tuple[list[Row], str]:
    """A page, newest first, and the token of the next one. `owner`: the field of request and row
    that names the user. Raises Refusal INVALID_ARGUMENT."""
    check = Checker()
    user_id = check.name(owner, getattr(request, owner))
    size = check.page_size(request.page_size)
    start = page_start(check, request.page_token, 1)
    check.done()
    staleness_s = staleness_of(context)
    return await newest_of_user(engine, record, owner, user_id, size, start, staleness_s)
