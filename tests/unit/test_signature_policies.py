"""Which requests must be signed, and which keys count, as policies and etcd have it."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime

import pytest

from cells.keys.model import KeyState, MerchantKey
from cells.keys.publishing import Publishing
from router.guard import SlotsHere
from router.policies.model import PolicyKind, SignatureMode, Signatures
from router.policies.rules import InvalidPolicy, parse
from router.signing.model import Algorithm, Key, Window
from router.signing.registry import Registry, decode_key, encode_key, version_of
from router.signing.wanted import Wanted, wanted_of
from router.store.memory import MemoryStore
from router.store.model import KEYS_PREFIX

OFF, OPTIONAL, REQUIRED = SignatureMode.OFF, SignatureMode.OPTIONAL, SignatureMode.REQUIRED
PAY = "cellpay.payments.v1.PaymentsService/Pay"
REFUND = "cellpay.payments.v1.PaymentsService/RefundPayment"
SHOP, OTHER, NOBODY = frozenset({"shop"}), frozenset({"other"}), frozenset[str]()
EPOCH = datetime.fromtimestamp(0, UTC)


def test_without_a_policy_a_signature_may_be_sent_and_must_then_be_right() -> None:
    assert wanted_of(PAY, []) == Wanted(OPTIONAL, Window())


@pytest.mark.parametrize(
    ("documents", "names", "mode"),
    [
        ([Signatures()], NOBODY, REQUIRED),
        ([Signatures(methods=(REFUND,))], NOBODY, OPTIONAL),
        ([Signatures(methods=(PAY,))], NOBODY, REQUIRED),
        ([Signatures(merchants=("shop",))], SHOP, REQUIRED),
        ([Signatures(merchants=("shop",))], OTHER, OPTIONAL),
        # Who is named goes before what is called, and that before everything.
        ([Signatures(), Signatures(mode=OFF, methods=(PAY,))], SHOP, OFF),
        ([Signatures(methods=(PAY,)), Signatures(mode=OFF, merchants=("shop",))], SHOP, OFF),
        ([Signatures(methods=(PAY,)), Signatures(mode=OFF, merchants=("shop",))], OTHER, REQUIRED),
        # Of equals the strictest; of two who are named, too.
        ([Signatures(mode=OFF), Signatures()], NOBODY, REQUIRED),
        (
            [Signatures(mode=OFF, merchants=("shop",)), Signatures(merchants=("other",))],
            SHOP | OTHER,
            REQUIRED,
        ),
    ],
)
def test_the_most_specific_document_says_whether_a_call_must_be_signed(
    documents: list[Signatures], names: frozenset[str], mode: SignatureMode
) -> None:
    for ordered in (documents, documents[::-1]):
        assert wanted_of(PAY, ordered).of(names) == mode


def test_the_shortest_window_is_in_force() -> None:
    documents = [Signatures(old_max_s=60), Signatures(ahead_max_s=3, merchants=("shop",))]
    assert wanted_of(PAY, documents).window == Window(60, 3)


@pytest.mark.parametrize(
    "text", ['{"mode": "maybe"}', '{"old_max_s": 301}', '{"ahead_max_s": 0}', '{"methods": ["x"]}']
)
def test_a_policy_that_says_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidPolicy):
        parse(PolicyKind.SIGNATURES, text)


def row(version: int, state: KeyState = KeyState.ACTIVE) -> MerchantKey:
    public = base64.b64encode(b"public").decode()
    return MerchantKey(
        3, "key_1", "shop", Algorithm.ED25519, public, state, 5, 0, "", version, EPOCH, EPOCH
    )


async def test_a_deposed_cell_cannot_bring_a_revoked_key_back() -> None:
    store = MemoryStore()
    # Reads no row in this test.
    publishing = Publishing(store, None, SlotsHere("a"))  # type: ignore[arg-type]
    await publishing.publish(row(1))
    await publishing.publish(row(2, KeyState.REVOKED))
    await publishing.publish(row(1))
    item = await store.get(f"{KEYS_PREFIX}key_1")
    assert item is not None
    assert version_of(item.value) == 2
    assert decode_key("key_1", item.value).revoked


async def test_a_key_that_cannot_be_read_is_no_key() -> None:
    store = MemoryStore()
    registry = Registry(store)
    key = Key("key_1", "shop", Algorithm.ED25519, b"public", 5, 0)

    async def until(known: set[str]) -> None:
        async with asyncio.timeout(10):
            while set(registry.keys) != known:
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(registry.run())
        await store.commit(expect={}, puts={f"{KEYS_PREFIX}key_1": encode_key(key, 1)})
        await until({"key_1"})
        assert registry.keys["key_1"] == key
        await store.commit(expect={}, puts={f"{KEYS_PREFIX}key_1": "something else"})
        await until(set())
        await store.commit(expect={}, puts={f"{KEYS_PREFIX}key_1": encode_key(key, 2)})
        await until({"key_1"})
        await store.commit(expect={}, puts={}, deletes=[f"{KEYS_PREFIX}key_1"])
        await until(set())
        running.cancel()


async def test_nobody_verifies_before_keys_are_known() -> None:
    store = MemoryStore()
    key = Key("key_1", "shop", Algorithm.ED25519, b"public", 5, 0)
    await store.commit(expect={}, puts={f"{KEYS_PREFIX}key_1": encode_key(key, 1)})
    registry = Registry(store)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(registry.known())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        running = group.create_task(registry.run())
        async with asyncio.timeout(10):
            await waiting
        assert set(registry.keys) == {"key_1"}
        running.cancel()
