"""`cellctl risk factor`: second factors that their users have lost."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from cellpay.control.v1 import reviews_pb2 as pb

from control.cellctl.options import DATA, DEFAULT_DATA
from control.cellctl.session import Session
from control.cellctl.show import console

app = typer.Typer(help="Second factors that their users have lost.", no_args_is_help=True)

REASON = Annotated[
    str, typer.Option("--reason", help="How you know that it is he; kept in the audit log.")
]
_TIMEOUT_S = 15


@app.callback()
def factor() -> None:
    """Second factors that their users have lost."""


@app.command()
def reset(user_id: str, reason: REASON, data: DATA = DEFAULT_DATA) -> None:
    """Forgets a user's second factor; he enrols another. Takes two persons while approvals are on.

    It answers no challenge that is open now. Until he has another, a person looks at what rules
    would challenge.
    """

    async def ask() -> pb.ResetFactorResponse:
        async with Session.open(data).reviews() as service:
            request = pb.ResetFactorRequest(user_id=user_id, reason=reason)
            return await service.ResetFactor(request, timeout=_TIMEOUT_S)

    answer = asyncio.run(ask())
    console.print(f"{user_id} has no second factor any more ({answer.audit_id})")
