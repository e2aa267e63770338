"""OrdersService: proto to model and back."""

from __future__ import annotations

from typing import Any

from cellpay.orders.v1 import orders_pb2 as pb
from cellpay.orders.v1 import orders_pb2_grpc

from cells.answers import resource_of
from cells.ledger.model import Reason
from cells.ledger.worker import Lanes
from cells.orders.model import Order, OrderState
from cells.orders.rules import CloseOrder, CreateOrder
from cells.orders.tables import ORDERS
from cells.reading import ReadEngine
from cells.requests import (
    Checker,
    idempotency_of,
    masked,
    money,
    timeout_of,
    timestamp,
)
from cells.resources import Resource, list_of_user
from router.ids import Kind, slot_of_id
from router.minting import mint_now
from router.slots import slot_of_user

_STATES_OUT = {
    OrderState.OPEN: pb.Order.STATE_OPEN,
    OrderState.PAID: pb.Order.STATE_PAID,
    OrderState.CLOSED: pb.Order.STATE_CLOSED,
}

_ORDER = Resource(ORDERS, Kind.ORDER, Reason.ORDER_NOT_FOUND, "order")


def order_message(order: Order) -> pb.Order:
    return pb.Order(
        order_id=order.order_id,
        payer_id=order.payer_id,
        merchant_id=order.merchant_id,
        amount=money(order.currency, order.amount),
        state=_STATES_OUT[OrderState(order.state)],
        description=order.description,
        payment_id=order.payment_id,
        create_time=timestamp(order.created_at),
    )


class OrdersService(orders_pb2_grpc.OrdersServiceServicer):
    def __init__(self, lanes: Lanes, engine: ReadEngine) -> None:
        self._lanes = lanes
        self._engine = engine

    async def CreateOrder(self, request: pb.CreateOrderRequest, context: Any) -> pb.Order:
        check = Checker()
        payer_id = check.name("payer_id", request.payer_id)
        merchant_id = check.name("merchant_id", request.merchant_id)
        amount = check.amount("amount", request.amount)
        description = check.text("description", request.description)
        if payer_id and payer_id == merchant_id:
            check.wrong("merchant_id", "must not be the payer")
        idempotency = idempotency_of(check, "CreateOrder", request)
        check.done()
        slot = slot_of_user(payer_id)
        command = CreateOrder(
            slot, mint_now(Kind.ORDER, slot), payer_id, merchant_id, amount,
            request.amount.currency, description, idempotency,
        )  # fmt: skip
        return order_message(resource_of(await self._lanes.submit(command, timeout_of(context))))

    async def GetOrder(self, request: pb.GetOrderRequest, context: Any) -> pb.Order:
        order = await _ORDER.get(self._engine, request.order_id, context)
        return masked(order_message(order), request.read_mask)

    async def CloseOrder(self, request: pb.CloseOrderRequest, context: Any) -> pb.Order:
        check = Checker()
        identifier = check.identifier("order_id", request.order_id, Kind.ORDER)
        idempotency = idempotency_of(check, "CloseOrder", request)
        check.done()
        command = CloseOrder(slot_of_id(identifier), identifier, idempotency)
        return order_message(resource_of(await self._lanes.submit(command, timeout_of(context))))

    async def ListOrders(
        self, request: pb.ListOrdersRequest, context: Any
    ) -> pb.ListOrdersResponse:
        listed, following = await list_of_user(self._engine, ORDERS, "payer_id", request, context)
        return pb.ListOrdersResponse(
            orders=[order_message(order) for order in listed], next_page_token=following
        )
