"""The text of a model of boosted trees: parsed, bounded, checked. Pure.

Its text is JSON. A tree is three columns over its nodes in preorder (a node, all that is left of
it, all that is right of it): `split` is the input that is asked, or -1 at a leaf; `at` the number
that it is compared with (less or equal goes left); `value` what the node expects, in log-odds,
which at a leaf is what the tree says. Preorder needs no pointers, so a broken text can neither loop
nor point outside: it only fails to end where it should.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from router.risk.facts import Type

TREES_MAX = 1000
NODES_MAX = 511
# Python's parser nests to about a hundred parentheses; a deeper tree has learnt by heart.
DEPTH_MAX = 32
INPUTS_MAX = 256
LEAF = -1
_DOCUMENT = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
_NUMBERS = (Type.INT, Type.DOUBLE, Type.BOOL)


class BadModel(ValueError):
    """A model that is not accepted, and where."""

    def __init__(self, at: str, message: str) -> None:
        super().__init__(f"{at}: {message}")
        self.field = at
        self.message = message


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Input:
    """One number, made of facts: a fact, fact * times / (1 + over), or a yes or no."""

    fact: str
    times: str = ""
    over: str = ""
    # Is the fact this text?
    equals: str | None = None
    # Are this fact and the other known, and not the same?
    differs: str = ""

    @property
    def facts(self) -> tuple[str, ...]:
        return tuple(name for name in (self.fact, self.times, self.over, self.differs) if name)

    @property
    def told(self) -> str:
        """Its name among factors: the fact's, and what is asked of it."""
        name = self.fact + (f"*{self.times}" if self.times else "")
        name += f"/{self.over}" if self.over else ""
        name += "" if self.equals is None else f"=={self.equals!r}"
        return name + (f"!={self.differs}" if self.differs else "")


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Tree:
    split: tuple[int, ...]
    at: tuple[float, ...]
    value: tuple[float, ...]


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Reference:
    """How something was spread where the model was trained: what drift is measured against.

    `shares[i]` is the share of values above `edges[i - 1]` and up to `edges[i]`.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]


@_DOCUMENT
@dataclass(frozen=True, slots=True)
class Model:
    version: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$")]
    inputs: Annotated[tuple[Input, ...], Field(min_length=1, max_length=INPUTS_MAX)]
    # Log-odds before any tree.
    base: float
    trees: Annotated[tuple[Tree, ...], Field(max_length=TREES_MAX)]
    score: Reference
    # By the place of an input.
    inputs_reference: dict[int, Reference]
    # How it was made: seeds, counts, versions, thresholds and what they found.
    notes: dict[str, str | int | float] = field(default_factory=dict)


_MODEL = TypeAdapter(Model)


def dump(model: Model) -> str:
    return _MODEL.dump_json(model, exclude_defaults=True).decode()


def parse(text: str | bytes, types: Mapping[str, Type] | None = None) -> Model:
    """Raises BadModel. `types`: the facts that there are; without, names are not looked at."""
    try:
        model = _MODEL.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        at = ".".join(str(part) for part in first["loc"]) or "model"
        raise BadModel(at, first["msg"]) from None
    for at, message in _faults(model, types):
        raise BadModel(at, message)
    return model


def facts_of(model: Model) -> tuple[str, ...]:
    """All that it reads, as its policy says it (`router.risk.artefact.RiskModel.facts`)."""
    return tuple(sorted({name for item in model.inputs for name in item.facts}))


def _faults(model: Model, types: Mapping[str, Type] | None) -> Iterator[tuple[str, str]]:
    for number, item in enumerate(model.inputs):
        at = f"inputs[{number}]"
        if sum((bool(item.times or item.over), item.equals is not None, bool(item.differs))) > 1:
            yield at, "is a product, an equality or a difference: one of them"
        if types is not None:
            yield from _type_faults(at, item, types)
    for number, tree in enumerate(model.trees):
        why = _shape_fault(tree, len(model.inputs))
        if why:
            yield f"trees[{number}]", why
    references = {"score": model.score}
    references |= {f"inputs_reference[{at}]": item for at, item in model.inputs_reference.items()}
    for place in model.inputs_reference:
        if not 0 <= place < len(model.inputs):
            yield f"inputs_reference[{place}]", "there is no such input"
    for name, reference in references.items():
        if len(reference.shares) != len(reference.edges) + 1:
            yield f"{name}.shares", "wants one more than edges"
        if list(reference.edges) != sorted(set(reference.edges)):
            yield f"{name}.edges", "must rise"


def _type_faults(at: str, item: Input, types: Mapping[str, Type]) -> Iterator[tuple[str, str]]:
    for name in item.facts:
        if name not in types:
            yield f"{at}.fact", f"{name} is unknown"
            return
    wanted = (Type.STRING,) if item.equals is not None or item.differs else _NUMBERS
    for name in item.facts:
        if types[name] not in wanted:
            yield f"{at}.fact", f"{name} is a {types[name]}, which has no place here"


def _shape_fault(tree: Tree, inputs: int) -> str:
    """Why the columns are no tree; empty when they are one."""
    nodes = len(tree.split)
    if not nodes or nodes > NODES_MAX or len(tree.at) != nodes or len(tree.value) != nodes:
        return f"has 1 to {NODES_MAX} nodes, and as many of each column"
    if any(not LEAF <= split < inputs for split in tree.split):
        return "asks an input that there is not"
    # How deep each subtree hangs that is still to come.
    waiting = [1]
    for split in tree.split:
        if not waiting:
            return "goes on after its end"
        depth = waiting.pop()
        if depth > DEPTH_MAX:
            return f"is deeper than {DEPTH_MAX}"
        if split != LEAF:
            waiting += [depth + 1, depth + 1]
    return "ends too early" if waiting else ""


def rights(tree: Tree) -> Sequence[int]:
    """For each node the place of its right child (0 at a leaf); the left one is the next node."""
    found = [0] * len(tree.split)
    open_nodes: list[int] = []
    for place, split in enumerate(tree.split):
        if place and tree.split[place - 1] == LEAF:
            found[open_nodes.pop()] = place
        if split != LEAF:
            open_nodes.append(place)
    return found
