"""The SDK: step 1 of a payment's walk. What internal services install to call the mesh.

    async with connect("client.json") as mesh:
        order = await mesh.orders.CreateOrder(orders_pb2.CreateOrderRequest(payer_id="u1", …))
        payment = await mesh.payments.Pay(payments_pb2.PayRequest(order_id=order.order_id))

It dials `xds:///cellpay`, sets slot, deadline and idempotency key, and retries what may be retried.
"""

from router.client.bulk import BulkPayer
from router.client.channel import CallPolicy, MeshChannel, home_of
from router.client.mesh import Mesh, connect, connect_direct
from router.client.tls import TlsFiles

__all__ = [
    "BulkPayer",
    "CallPolicy",
    "Mesh",
    "MeshChannel",
    "TlsFiles",
    "connect",
    "connect_direct",
    "home_of",
]
