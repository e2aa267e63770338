"""What is known of the signature of the call that is being served: for services, and for answers.

Context variables, because between the guard, which knows, and the service, which asks, lies gRPC's
signature of a handler. A call is a task of its own, so none sees another's.
"""

from __future__ import annotations

from contextvars import ContextVar

# The message as it came over the wire.
RECEIVED: ContextVar[bytes] = ContextVar("received", default=b"")
# The merchant whose key signed it; empty: nobody did.
SIGNER: ContextVar[str] = ContextVar("signer", default="")
# Whether it may be a copy of one that was executed: its nonce could not be looked up. It may have
# its effect, which its idempotency key makes one, but learns nothing of an effect from before.
IN_DOUBT: ContextVar[bool] = ContextVar("in_doubt", default=False)
