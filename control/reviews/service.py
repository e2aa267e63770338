"""ReviewsService: who looks at reviews and decides them, or resets factors; the record of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
from cellpay.control.v1 import reviews_pb2 as pb
from cellpay.control.v1 import reviews_pb2_grpc
from cellpay.risk.v1 import risk_pb2, risk_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control.audit import audit_put, audit_record
from control.fencing import asked
from control.reviews.store import Review, ReviewStore
from control.service import check_reader, operator_of
from router.errors import Refusal, Violation, bad_request, refusal_of
from router.ids import Kind, kind_of_id, slot_of_id
from router.slots import slot_of_user
from router.store.model import Store

# A slot → its home cell's own service; None while it has no home that answers.
Homes = Callable[[int], "risk_pb2_grpc.ReviewsServiceAsyncStub | None"]
_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 500
_CALL_TIMEOUT_S = 5.0
_USER_ID_CHARACTERS_MAX = 128
_START = (datetime.fromtimestamp(0, UTC), "")


class ReviewsService(reviews_pb2_grpc.ReviewsServiceServicer):
    def __init__(self, store: Store, reviews: ReviewStore, homes: Homes) -> None:
        self._store = store
        self._reviews = reviews
        self._homes = homes

    async def ListReviews(
        self, request: pb.ListReviewsRequest, context: Any
    ) -> pb.ListReviewsResponse:
        check_reader(context)
        if request.page_size < 0:
            raise bad_request([Violation("page_size", "must not be negative")])
        size = min(request.page_size or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)
        after = _after(request.page_token)
        work = self._reviews.list(request.user_id, after, size + 1, decided=request.all)
        found = await asked(work)
        page = found[:size]
        return pb.ListReviewsResponse(
            reviews=[_message(item) for item in page],
            next_page_token=_token(page[-1]) if len(found) > size else "",
        )

    async def DecideReview(self, request: pb.DecideReviewRequest, context: Any) -> pb.Review:
        action = "review.approve" if request.approve else "review.reject"
        review_id = request.review_id[:64]
        async with operator_of(self._store, context, action, review_id, request.reason) as actor:
            review = await self._find(review_id)
            # Before the effect, which is in another store and names it.
            detail = f"{review_id}: {review.operation} of {review.amount} {review.currency}"
            record = audit_record(actor, action, f"{detail} by {review.user_id}", request.reason)
            await self._store.commit(expect={}, puts=audit_put(record))
            home = self._home(slot_of_id(review_id))
            wanted = risk_pb2.DecideReviewRequest(
                review_id=review_id, approve=request.approve, decided_by=actor,
                audit_id=record.audit_id, reason=request.reason,
            )  # fmt: skip
            try:
                await home.DecideReview(wanted, timeout=_CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                raise refusal_of(error) from None
            return _message(await self._find(review_id))

    async def ResetFactor(
        self, request: pb.ResetFactorRequest, context: Any
    ) -> pb.ResetFactorResponse:
        action, user_id = "factor.reset", request.user_id
        async with operator_of(self._store, context, action, user_id, request.reason) as actor:
            if not user_id or len(user_id) > _USER_ID_CHARACTERS_MAX:
                raise bad_request([Violation("user_id", "is no ID of a user")])
            home = self._home(slot_of_user(user_id))
            record = audit_record(actor, action, user_id, request.reason)
            await self._store.commit(expect={}, puts=audit_put(record))
            try:
                await home.ResetFactor(
                    risk_pb2.ResetFactorRequest(user_id=user_id), timeout=_CALL_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                raise refusal_of(error) from None
            return pb.ResetFactorResponse(audit_id=record.audit_id)

    def _home(self, slot: int) -> risk_pb2_grpc.ReviewsServiceAsyncStub:
        home = self._homes(slot)
        if home is None:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "NO_HOME",
                "the user's home cell does not answer; nothing was decided",
                retry_after_ms=1000,
            )
        return home

    async def _find(self, review_id: str) -> Review:
        try:
            known = kind_of_id(review_id) == Kind.REVIEW
        except ValueError:
            known = False
        if not known:
            raise bad_request([Violation("review_id", "is no ID of a review")])
        review = await asked(self._reviews.find(slot_of_id(review_id), review_id))
        if review is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "REVIEW_NOT_FOUND", "there is no such review")
        return review


def _message(review: Review) -> pb.Review:
    values = review._asdict()
    created, expires = Timestamp(), Timestamp()
    created.FromDatetime(values.pop("created_at"))
    expires.FromDatetime(values.pop("expires_at"))
    for name in ("reasons", "rules"):
        values[name] = values[name].split(",") if values[name] else []
    return pb.Review(create_time=created, expire_time=expires, **values)


def _token(last: Review) -> str:
    text = f"{last.created_at.isoformat()} {last.review_id}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _after(token: str) -> tuple[datetime, str]:
    if not token:
        return _START
    try:
        text = base64.urlsafe_b64decode(token.encode("ascii")).decode()
        moment, _, review_id = text.rpartition(" ")
        time = datetime.fromisoformat(moment)
        if time.tzinfo is None:
            raise ValueError(moment)
    except (ValueError, UnicodeError):
        raise bad_request([Violation("page_token", "is not a token we returned")]) from None
    return time, review_id
