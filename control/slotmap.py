"""The slot map in the store: read with its revision, changed by compare-and-set (pitfall 7)."""

from __future__ import annotations

from router.slotmap import SlotMap
from router.store.model import PREFERRED_SLOT_MAP_KEY, SLOT_MAP_KEY, Store


async def read_slot_map(store: Store) -> tuple[SlotMap, int] | None:
    """The map and the revision of its last change; None before the mesh's first start."""
    item = await store.get(SLOT_MAP_KEY)
    return (SlotMap.from_json(item.value), item.revision) if item else None


async def seed_slot_map(store: Store, fenced: SlotMap, preferred: SlotMap) -> None:
    """Publishes the first map, unless there is one.

    `fenced` is what the database enforces: an etcd that has lost its data must not tell of owners
    that the database refuses.
    """
    await store.commit(
        expect={SLOT_MAP_KEY: 0},
        puts={SLOT_MAP_KEY: fenced.to_json(), PREFERRED_SLOT_MAP_KEY: preferred.to_json()},
    )
