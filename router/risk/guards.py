"""What must hold for a rule to match, as far as one look tells: most rules need not be evaluated.

    amount > 500 && f.user_count_1h > 3   needs   f.user_count_1h >= 4
    a || b                                needs   what a needs, or what b needs

Rules that need the same facts share a function, and it is called when one of them may match. Two
thousand rules are some forty looks so, and for most payments two or three functions. Selection by
a necessary predicate, as in publish/subscribe (Fabret et al. 2001, "Filtering algorithms").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

# A rule that needs one of more than these is evaluated always.
NEEDS_MAX = 8
# Facts that are the same for many requests: whoever needs one of them is no rare rule.
_COMMON = frozenset({"operation", "currency", "ip.country", "card.country", "card.scheme"})


class Sort(IntEnum):
    """The least likely first."""

    EQUAL = 0
    PREFIX = 1
    AT_LEAST = 2
    AT_MOST = 3


class Need(NamedTuple):
    """One look at one fact."""

    sort: Sort
    fact: str
    # EQUAL: one of these. The others have one bound, or one prefix.
    values: tuple[Any, ...]


Signature = tuple[tuple[Sort, str], ...] | None
# Needs of which one at least must hold; None: nothing is known.
Needs = frozenset[Need] | None


def both(parts: Iterable[Needs]) -> Needs:
    """Of `a && b`: what either needs is needed; the least likely is taken."""
    known = [part for part in parts if part is not None]
    return min(known, key=_likelihood, default=None)


def either(parts: Iterable[Needs]) -> Needs:
    """Of `a || b`."""
    found: set[Need] = set()
    for part in parts:
        if part is None:
            return None
        found |= part
    return frozenset(found) if len(found) <= NEEDS_MAX else None


def _likelihood(needs: frozenset[Need]) -> tuple[int, int, list[Need]]:
    worst = max((_one(need) for need in needs), default=-1)
    # In some order, whichever: the same text has the same needs in every process.
    return worst, len(needs), sorted(needs, key=repr)


def _one(need: Need) -> int:
    return len(Sort) if need.sort == Sort.EQUAL and need.fact in _COMMON else int(need.sort)


def signature(needs: Needs) -> Signature:
    """Rules with the same one go together."""
    if needs is None:
        return None
    return tuple(sorted({(need.sort, need.fact) for need in needs}))


def together(needs: Sequence[Needs]) -> Needs:
    """What one at least of some rules needs, each fact looked at once."""
    values: dict[tuple[Sort, str], set[Any]] = {}
    for part in needs:
        if part is None:
            return None
        for need in part:
            values.setdefault((need.sort, need.fact), set()).update(need.values)
    return frozenset(
        Need(sort, fact, _narrowed(sort, found)) for (sort, fact), found in values.items()
    )


def _narrowed(sort: Sort, values: set[Any]) -> tuple[Any, ...]:
    if sort == Sort.AT_LEAST:
        return (min(values),)
    if sort == Sort.AT_MOST:
        return (max(values),)
    return tuple(sorted(values, key=repr))


def python_of(needs: Needs, variables: Mapping[str, str]) -> str:
    """As a condition over the variables of facts."""
    if needs is None:
        return "True"
    return (
        " or ".join(_python(need, variables[need.fact]) for need in sorted(needs, key=repr))
        or "False"
    )


def _python(need: Need, variable: str) -> str:
    first = need.values[0] if need.values else None
    match need.sort:
        case Sort.AT_LEAST:
            return f"{variable} >= {first!r}"
        case Sort.AT_MOST:
            return f"{variable} <= {first!r}"
        case Sort.PREFIX:
            return f"{variable}.startswith({need.values!r})"
        case Sort.EQUAL:
            # A set of literals is a constant of Python's compiler.
            return (
                f"{variable} in {{{', '.join(map(repr, need.values))}}}" if need.values else "False"
            )
