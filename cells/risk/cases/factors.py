"""Second factors with their secrets: sealed by the vault's key of the user's slot, opened only to
see which time step a code is of. What follows from that the commands decide, under the fence.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Sequence
from typing import Any

import grpc
import tink
from sqlalchemy import func, select

from cells.answers import not_found, resource_of
from cells.ledger.model import Reason, Refused
from cells.ledger.worker import Lanes
from cells.reading import ReadEngine, fetch
from cells.risk.cases.codes import SECRET_BYTES, provisioning_uri, step_of
from cells.risk.cases.model import Case, Factor
from cells.risk.cases.rules import (
    AnswerChallenge,
    ConfirmFactor,
    EnrolFactor,
    ResealFactor,
    factor_id,
)
from cells.risk.cases.tables import FACTORS, risk_cases, risk_factors
from cells.vault.keyring import Keyring
from cells.vault.model import KeyPurpose
from cells.vault.sealing import DataKey, SealBroken
from router.errors import Refusal
from router.ids import slot_of_id
from router.slots import slot_of_user

# A key or a factor that was replaced in between makes one more try.
_TRIES_MAX = 3
_AGAIN = (Reason.KEY_REPLACED, Reason.CASE_CHANGED)


class Factors:
    """Raises Refusal."""

    def __init__(self, lanes: Lanes, engine: ReadEngine, keyring: Keyring, passed_ttl_s: int):
        self._lanes = lanes
        self._engine = engine
        self._keyring = keyring
        self._passed_ttl_s = passed_ttl_s

    async def answer(self, challenge_id: str, code: str, timeout_s: float | None) -> Case:
        """The challenge, passed."""
        slot = slot_of_id(challenge_id)
        statement = select(risk_cases.c.user_id).where(
            risk_cases.c.slot == slot, risk_cases.c.case_id == challenge_id
        )
        rows = await fetch(self._engine, statement)
        if not rows:
            raise not_found(Reason.CHALLENGE_NOT_FOUND, "challenge")
        user_id: str = rows[0][0]

        async def attempt() -> AnswerChallenge:
            factor, unix_s = await self._read(slot, user_id)
            step = await self._step(factor, code, unix_s, pending=False)
            version = factor.version if factor else 0
            return AnswerChallenge(slot, challenge_id, user_id, step, version, self._passed_ttl_s)

        passed: Case = await self._submit(attempt, slot, timeout_s)
        return passed

    async def enrol(self, user_id: str, code: str, label: str, timeout_s: float | None) -> str:
        """The new secret, as a URI for an app."""
        slot = slot_of_user(user_id)
        secret = secrets.token_bytes(SECRET_BYTES)

        async def attempt() -> EnrolFactor:
            factor, unix_s = await self._read(slot, user_id)
            if factor is not None and factor.secret_sealed and not code:
                resource_of(
                    Refused(Reason.CODE_WRONG, "a code of the factor that is there is needed")
                )
            step = await self._step(factor, code, unix_s, pending=False)
            key = await self._keyring.primary(slot, KeyPurpose.FIELD)
            sealed = _seal(key, slot, user_id, secret)
            version = factor.version if factor else 0
            return EnrolFactor(slot, user_id, sealed, key.version, step, version)

        await self._submit(attempt, slot, timeout_s)
        return provisioning_uri(secret, label or user_id)

    async def confirm(self, user_id: str, code: str, timeout_s: float | None) -> Factor:
        """The factor, which counts from now on."""
        slot = slot_of_user(user_id)

        async def attempt() -> ConfirmFactor:
            factor, unix_s = await self._read(slot, user_id)
            # A repeat of what was confirmed is recognised by the same code.
            pending = factor is not None and factor.pending_sealed != ""
            step = await self._step(factor, code, unix_s, pending=pending)
            return ConfirmFactor(slot, user_id, step, factor.version if factor else 0)

        confirmed: Factor = await self._submit(attempt, slot, timeout_s)
        return confirmed

    async def find(self, user_id: str) -> Factor | None:
        factor, _ = await self._read(slot_of_user(user_id), user_id)
        return factor

    async def _submit(self, attempt: Any, slot: int, timeout_s: float | None) -> Any:
        for number in range(_TRIES_MAX):
            outcome = await self._lanes.submit(await attempt(), timeout_s)
            again = isinstance(outcome, Refused) and outcome.reason in _AGAIN
            if not again or number == _TRIES_MAX - 1:
                return resource_of(outcome)
            self._keyring.forget(slot)
        raise AssertionError("unreachable")

    async def _read(self, slot: int, user_id: str) -> tuple[Factor | None, float]:
        """The factor, and the database's time."""
        columns = [risk_factors.c[name] for name in FACTORS.fields]
        statement = select(func.now(), *columns).where(
            risk_factors.c.slot == slot, risk_factors.c.factor_id == factor_id(slot, user_id)
        )
        rows: Sequence[Any] = await fetch(self._engine, statement)
        if not rows:
            return None, 0.0
        return Factor(*rows[0][1:]), rows[0][0].timestamp()

    async def _step(self, factor: Factor | None, code: str, unix_s: float, *, pending: bool) -> int:
        if factor is None or not code:
            return 0
        sealed = factor.pending_sealed if pending else factor.secret_sealed
        version = factor.pending_key if pending else factor.secret_key
        if not sealed:
            return 0
        try:
            key = await self._keyring.at(factor.slot, KeyPurpose.FIELD, version)
            secret = unseal(key, factor.slot, factor.user_id, sealed)
        except SealBroken:
            raise Refusal(
                grpc.StatusCode.DATA_LOSS, "SEAL_BROKEN", "what was sealed does not open"
            ) from None
        return step_of(secret, code, unix_s)


async def resealing(keyring: Keyring, factor: Factor, field: DataKey) -> ResealFactor:
    """The factor under the primary key `field`. Raises SealBroken."""
    after = factor._replace(version=factor.version + 1)
    for name in ("secret", "pending"):
        sealed = getattr(factor, f"{name}_sealed")
        if not sealed:
            continue
        before = await keyring.at(factor.slot, KeyPurpose.FIELD, getattr(factor, f"{name}_key"))
        secret = unseal(before, factor.slot, factor.user_id, sealed)
        again = _seal(field, factor.slot, factor.user_id, secret)
        changed: dict[str, Any] = {f"{name}_sealed": again, f"{name}_key": field.version}
        after = after._replace(**changed)
    return ResealFactor(after)


def _place(slot: int, user_id: str) -> bytes:
    """What a seal is bound to: a row that somebody copies to another user does not open."""
    return json.dumps(["cellpay.risk.1", slot, user_id, "factor"]).encode()


def _seal(key: DataKey, slot: int, user_id: str, secret: bytes) -> str:
    sealed: bytes = key.primitive.encrypt(secret, _place(slot, user_id))
    return base64.b64encode(sealed).decode("ascii")


def unseal(key: DataKey, slot: int, user_id: str, sealed: str) -> bytes:
    """Raises SealBroken."""
    try:
        data = base64.b64decode(sealed, validate=True)
        secret: bytes = key.primitive.decrypt(data, _place(slot, user_id))
    except (tink.TinkError, binascii.Error, ValueError):
        raise SealBroken(f"the factor of {user_id} does not open") from None
    return secret
