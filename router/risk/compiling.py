"""What has been compiled before is kept, so that an edit of one rule costs one rule.

Parsing an expression takes some 2 ms, a set of two thousand so 4 s; a decision needs none of it.
Pure, but for `breathe`, which is called between two pieces of work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from router.risk.expressions import Compiled, compile_expression
from router.risk.facts import Type, Value

InList = Callable[[str, str], bool]
Function = Callable[[Mapping[str, Value], InList], list[int]]


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
