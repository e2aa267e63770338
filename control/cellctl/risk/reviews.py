"""`cellctl risk reviews`: what risk rules want a person to look at; approved, the request goes on
when its caller makes it again, rejected it is denied."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from cellpay.control.v1 import reviews_pb2 as pb
from google.protobuf.json_format import MessageToDict

from control.cellctl.options import DATA, DEFAULT_DATA, JSON, REASON
from control.cellctl.session import Session
from control.cellctl.show import console, decimal_amount, print_json, table

app = typer.Typer(help="What risk rules want a person to look at.", no_args_is_help=True)

COLUMNS = ("review_id", "state", "user_id", "operation", "amount", "reasons", "rules", "until")
_PAGE = 500
_TIMEOUT_S = 15


@app.command(name="list")
def list_(
    user: Annotated[str, typer.Option("--user", help="Only this user's.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Those that wait no more too.")] = False,
    data: DATA = DEFAULT_DATA,
    as_json: JSON = False,
) -> None:
    """Reviews, oldest first; with what was known of each request in --json."""

    async def fetch() -> list[pb.Review]:
        found: list[pb.Review] = []
        async with Session.open(data).reviews() as service:
            token = ""
            while True:
                request = pb.ListReviewsRequest(
                    all=all_, user_id=user, page_size=_PAGE, page_token=token
                )
                page = await service.ListReviews(request, timeout=_TIMEOUT_S)
                found += page.reviews
                token = page.next_page_token
                if not token:
                    return found

    _show(asyncio.run(fetch()), as_json)


@app.command()
def approve(
    review_id: str, reason: REASON, data: DATA = DEFAULT_DATA, as_json: JSON = False
) -> None:
    """The request may go on, once."""
    _decide(review_id, reason, data, as_json, approve=True)


@app.command()
def reject(
    review_id: str, reason: REASON, data: DATA = DEFAULT_DATA, as_json: JSON = False
) -> None:
    """The request is denied, for good."""
    _decide(review_id, reason, data, as_json, approve=False)


def _decide(review_id: str, reason: str, data: Path, as_json: bool, *, approve: bool) -> None:
    request = pb.DecideReviewRequest(review_id=review_id, approve=approve, reason=reason)

    async def ask() -> pb.Review:
        async with Session.open(data).reviews() as service:
            return await service.DecideReview(request, timeout=_TIMEOUT_S)

    review = asyncio.run(ask())
    if as_json:
        print_json(_document(review))
    else:
        console.print(f"{review.review_id} of {review.user_id}: {review.state}")


def _show(reviews: list[pb.Review], as_json: bool) -> None:
    documents = [_document(review) for review in reviews]
    if as_json:
        print_json(documents)
        return
    table("reviews", COLUMNS, [[document[name] for name in COLUMNS] for document in documents])


def _document(review: pb.Review) -> dict[str, Any]:
    document: dict[str, Any] = MessageToDict(
        review, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    document["amount"] = f"{decimal_amount(review.amount, review.currency)} {review.currency}"
    document["reasons"] = ", ".join(review.reasons)
    document["rules"] = ", ".join(review.rules)
    document["until"] = document.pop("expire_time", "")
    return document
