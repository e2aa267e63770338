"""What has been compiled before is kept, so that an edit of one rule costs one rule.

Parsing an expression takes some 2 ms, a set of two thousand so 4 s; a decision needs none of it.
Pure, but for `breathe`, which is called between two pieces of work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from router.risk.expressions import Compiled, compile_expression, variable
from router.risk.facts import Type, Value
from router.risk.guards import Needs, Signature, python_of, signature, together

InList = Callable[[str, str], bool]
Function = Callable[[Mapping[str, Value], InList], list[int]]

# One function of all rules would take Python's compiler minutes, and it does not let go of the
# interpreter meanwhile; of so many it takes a few milliseconds.
RULES_A_FUNCTION = 64
# Rules that need the same facts and are fewer have no function of their own.
_RARE = 16


class Compiling:
    """Expressions and functions of the last set; one thread uses it at a time."""

    def __init__(self, breathe: Callable[[], None] = lambda: None) -> None:
        """`breathe`: after each piece of work, so that a thread can let others go first."""
        self._breathe = breathe
        self._expressions: dict[str, tuple[Compiled, Mapping[str, Type]]] = {}
        self._functions: dict[tuple[str, ...], Function] = {}
        self._asked: set[object] = set()
        self._number = 0

    def expression(self, source: str, types: Mapping[str, Type], lists: frozenset[str]) -> Compiled:
        """Raises BadExpression."""
        self._asked.add(source)
        known = self._expressions.get(source)
        if known is not None:
            compiled, meant = known
            same = all(types.get(name) == kind for name, kind in meant.items())
            if same and compiled.lists <= lists:
                return compiled
        self._number += 1
        compiled = compile_expression(source, types, lists, prefix=f"e{self._number}_k")
        self._expressions[source] = compiled, {name: types[name] for name in compiled.names}
        self._breathe()
        return compiled

    def function(self, compiled: Sequence[Compiled]) -> Function:
        """Which of them hold, by place. Their constants' names make the source the key."""
        key = tuple(item.python for item in compiled)
        self._asked.add(key)
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = function_of(compiled)
            self._breathe()
        return function

    def matcher(self, compiled: Sequence[Compiled]) -> Function:
        """As `function`, of as many as there are: it evaluates those that may match."""
        parts: list[tuple[Needs, Sequence[int], Function]] = []
        for places in _parted(compiled):
            part = [compiled[place] for place in places]
            parts.append((together([item.needs for item in part]), places, self.function(part)))
        return _matcher_of(parts)

    @property
    def size(self) -> int:
        """Expressions that are kept."""
        return len(self._expressions)

    def forget_unasked(self) -> None:
        """Keeps what was asked for since the last time."""
        self._expressions = {k: v for k, v in self._expressions.items() if k in self._asked}
        self._functions = {k: v for k, v in self._functions.items() if k in self._asked}
        self._asked = set()


def function_of(compiled: Sequence[Compiled]) -> Function:
    """Python of some rules: names are read once, then one `if` a rule."""
    names = {name: variable for item in compiled for name, variable in item.names.items()}
    scope: dict[str, Any] = {}
    lines = ["def evaluate(facts, in_list):"]
    lines += [f"    {variable} = facts[{name!r}]" for name, variable in sorted(names.items())]
    lines.append("    found = []")
    for place, item in enumerate(compiled):
        scope.update(item.constants)
        lines.append(f"    if {item.python}: found.append({place})")
    lines.append("    return found")
    exec(compile("\n".join(lines), "<rules>", "exec"), scope)
    function: Function = scope["evaluate"]
    return function


def _parted(compiled: Sequence[Compiled]) -> Iterator[Sequence[int]]:
    """The places of rules that share a function. What few others are like goes together with its
    neighbours, so that there are never many functions to look at."""
    alike: dict[Signature, list[int]] = {}
    for place, item in enumerate(compiled):
        alike.setdefault(signature(item.needs), []).append(place)
    rare: list[int] = []
    for _, places in sorted(alike.items(), key=lambda item: item[0] or ()):
        if len(places) < _RARE:
            rare += places
            continue
        for start in range(0, len(places), RULES_A_FUNCTION):
            yield places[start : start + RULES_A_FUNCTION]
    for start in range(0, len(rare), RULES_A_FUNCTION):
        yield rare[start : start + RULES_A_FUNCTION]


def _matcher_of(parts: Sequence[tuple[Needs, Sequence[int], Function]]) -> Function:
    """Looks at what each part needs, calls those that may match, and puts places in order."""
    facts = sorted({need.fact for needs, _, _ in parts for need in needs or ()})
    variables = {fact: variable(fact) for fact in facts}
    scope: dict[str, Any] = {}
    lines = ["def match(facts, in_list):"]
    lines += [f"    {name} = facts[{fact!r}]" for fact, name in variables.items()]
    lines.append("    found = []")
    for number, (needs, places, function) in enumerate(parts):
        scope[f"part{number}"] = function
        scope[f"places{number}"] = places.__getitem__
        lines.append(f"    if {python_of(needs, variables)}:")
        lines.append(f"        found.extend(map(places{number}, part{number}(facts, in_list)))")
    lines += ["    found.sort()", "    return found"]
    exec(compile("\n".join(lines), "<matcher>", "exec"), scope)
    matcher: Function = scope["match"]
    return matcher
