from typing import Any
from cellpay.notifications.v1 import notifications_pb2_grpc
class NotificationsService(notifications_pb2_grpc.NotificationsServiceServicer):
    def __init__(self, *a: Any, **k: Any) -> None: ...
