"""CEL (the Common Expression Language) for rules: parsed by cel-python, checked, made into Python.

cel-python parses well but evaluates in 200 µs, and the fastest evaluator of PyPI (a Rust one) needs
0.9 µs an expression: two thousand rules would take 1.8 ms. As Python they take 0.05 µs each. The
subset has no way to fail at run time: all names have a type and a value, a divisor is a literal,
there is no indexing. tests/property/test_risk_expressions.py holds it to the Rust evaluator.

Source: the CEL language definition, https://github.com/google/cel-spec/blob/master/doc/langdef.md.
Where it differs: integers do not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import celpy
import lark
import re2
from celpy.celparser import CELParseError
from celpy.evaluation import celstr

from router.risk.facts import Type
from router.risk.guards import Need, Needs, Sort, both, either

SOURCE_MAX = 8192
# Python's own parser nests to about a hundred parentheses.
DEPTH_MAX = 24
_NUMBERS = (Type.INT, Type.DOUBLE)
_INT_MAX = 2**63 - 1
_RELATIONS = {
    "relation_lt": "<",
    "relation_le": "<=",
    "relation_gt": ">",
    "relation_ge": ">=",
    "relation_eq": "==",
    "relation_ne": "!=",
}
# The same said from the other side.
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_SORTS = {
    "<": Sort.AT_MOST,
    "<=": Sort.AT_MOST,
    ">": Sort.AT_LEAST,
    ">=": Sort.AT_LEAST,
    "==": Sort.EQUAL,
}
_ARITHMETIC = {
    "addition_add": "+",
    "addition_sub": "-",
    "multiplication_mul": "*",
    "multiplication_div": "/",
    "multiplication_mod": "%",
}
_STRING_METHODS = {
    "startsWith": "{0}.startswith({1})",
    "endsWith": "{0}.endswith({1})",
    "contains": "({1} in {0})",
}
# Nodes of the grammar that only say how tightly something binds.
_WRAPPERS = frozenset(
    {"expr", "conditionalor", "conditionaland", "relation", "addition", "multiplication", "unary",
     "member", "primary", "paren_expr"}
)  # fmt: skip


class BadExpression(ValueError):
    """An expression that is not accepted, and where: line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{line}:{column}: {message}")
        self.message = message
        self.line = line
        self.column = column


class _Code(NamedTuple):
    type: Type
    python: str
    # Of a literal only: a divisor must be one.
    literal: Any = None
    # Of a fact by itself: its name.
    fact: str = ""
    # Of what is true or false: one of these must hold for it to be true.
    needs: Needs = None


@dataclass(frozen=True)
class Compiled:
    """A boolean expression as Python source over `names`, with the objects that it needs."""

    python: str
    # CEL's name → the Python variable that stands for it.
    names: Mapping[str, str]
    # Lists of values that it asks by `in_list`.
    lists: frozenset[str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    # One of these must hold for it to be true; None: nothing is known.
    needs: Needs = None


def variable(name: str) -> str:
    """The Python variable of a fact: `user.id` → `v_user__id`."""
    return "v_" + name.replace(".", "__")


def compile_expression(
    source: str, types: Mapping[str, Type], lists: frozenset[str], prefix: str = "k"
) -> Compiled:
    """Checks an expression and makes Python of it. Raises BadExpression with line and column.

    `prefix`: of its constants' names, so that many expressions can share a function.
    """
    if len(source) > SOURCE_MAX:
        raise BadExpression(f"longer than {SOURCE_MAX} characters", 1, SOURCE_MAX)
    compiler = _Compiler(types, lists, prefix)
    code = compiler.compile(_parse(source))
    if code.type != Type.BOOL:
        raise BadExpression(f"a rule is true or false; this is {_article(code.type)}", 1, 1)
    return Compiled(
        code.python, compiler.names, frozenset(compiler.asked), compiler.constants, code.needs
    )


def _parse(source: str) -> lark.Tree[Any]:
    try:
        return celpy.celparser.CELParser().parse(source)
    except CELParseError as error:
        lines = source.split("\n")
        line, column = error.line or 0, error.column or 0
        ended = getattr(getattr(error.__context__, "token", None), "type", "") == "$END"
        if ended or not 0 < line <= len(lines):
            raise BadExpression("it ends too early", len(lines), len(lines[-1]) + 1) from None
        at = lines[line - 1][column - 1 :][:20]
        raise BadExpression(f"unexpected {at!r}", line, column) from None


class _Compiler:
    def __init__(self, types: Mapping[str, Type], lists: frozenset[str], prefix: str) -> None:
        self._types = types
        self._prefix = prefix
        self._lists = lists
        self._depth = 0
        self.names: dict[str, str] = {}
        self.asked: set[str] = set()
        self.constants: dict[str, Any] = {}

    def compile(self, tree: Any) -> _Code:
        """Depth counts what nests; nodes that only bind are walked through."""
        while tree.data in _WRAPPERS and len(tree.children) == 1:
            tree = tree.children[0]
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise _bad("nested too deeply", tree)
        code = self._compile(tree)
        self._depth -= 1
        return code

    def _compile(self, tree: Any) -> _Code:
        kind, children = str(tree.data), tree.children
        handlers: Mapping[str, Callable[[Any], _Code]] = {
            "expr": self._conditional,
            "conditionalor": lambda node: self._logical(node, "or", "||"),
            "conditionaland": lambda node: self._logical(node, "and", "&&"),
            "relation": self._relation,
            "addition": self._arithmetic,
            "multiplication": self._arithmetic,
            "unary": self._unary,
            "literal": self._literal,
            "ident": self._name,
            "member_dot": self._name,
            "member_dot_arg": self._method,
            "ident_arg": self._function,
        }
        handler = handlers.get(kind)
        if handler is None or not children:
            raise _bad(f"{_spoken(kind)} has no place in a rule", tree)
        return handler(tree)

    def _conditional(self, tree: Any) -> _Code:
        condition, first, second = (self.compile(child) for child in tree.children)
        self._require(condition, Type.BOOL, tree.children[0])
        if first.type != second.type:
            raise _bad(
                f"one branch is {_article(first.type)}, the other {_article(second.type)}", tree
            )
        return _Code(first.type, f"({first.python} if {condition.python} else {second.python})")

    def _logical(self, tree: Any, operator: str, spelt: str) -> _Code:
        children = _chain(tree)
        codes = [self.compile(child) for child in children]
        for code, child in zip(codes, children, strict=True):
            if code.type != Type.BOOL:
                raise _bad(f"{spelt} joins true or false, not {_article(code.type)}", child)
        needs = (both if operator == "and" else either)(code.needs for code in codes)
        python = f" {operator} ".join(code.python for code in codes)
        return _Code(Type.BOOL, f"({python})", needs=needs)

    def _relation(self, tree: Any) -> _Code:
        operation, right_tree = tree.children
        left = self.compile(operation.children[0])
        if operation.data == "relation_in":
            return self._in(left, operation.children[0], right_tree)
        right = self.compile(right_tree)
        both_numbers = left.type in _NUMBERS and right.type in _NUMBERS
        if left.type != right.type and not both_numbers:
            raise _bad(
                f"{_article(left.type)} cannot be compared with {_article(right.type)}", tree
            )
        operator = _RELATIONS[operation.data]
        if left.type == Type.BOOL and operator not in {"==", "!="}:
            raise _bad("true and false have no order", tree)
        needs = _needs(left, operator, right) or _needs(right, _TURNED[operator], left)
        return _Code(Type.BOOL, f"({left.python} {operator} {right.python})", needs=needs)

    def _in(self, left: _Code, left_tree: Any, right_tree: Any) -> _Code:
        inner = right_tree
        while inner.data in _WRAPPERS and len(inner.children) == 1:
            inner = inner.children[0]
        if inner.data != "list_lit":
            raise _bad("`in` wants a list in brackets; for named lists there is in_list()", inner)
        items = inner.children[0].children if inner.children else []
        codes = [self.compile(item) for item in items]
        for code, item in zip(codes, items, strict=True):
            both_numbers = left.type in _NUMBERS and code.type in _NUMBERS
            if code.literal is None:
                raise _bad("a list holds literals", item)
            if code.type != left.type and not both_numbers:
                raise _bad(f"the list holds {_article(code.type)}, not {left.type}", item)
        if left.literal is not None:
            raise _bad("a literal is in a list or is not: no rule is needed", left_tree)
        values = frozenset(code.literal for code in codes)
        name = self._constant(values)
        needs = None
        if left.fact:
            needs = frozenset({Need(Sort.EQUAL, left.fact, tuple(sorted(values)))})
        return _Code(Type.BOOL, f"({left.python} in {name})", needs=needs)

    def _arithmetic(self, tree: Any) -> _Code:
        operation, right_tree = tree.children
        left = self.compile(operation.children[0])
        right = self.compile(right_tree)
        operator = _ARITHMETIC[operation.data]
        if operator == "+" and left.type == right.type == Type.STRING:
            return _Code(Type.STRING, f"({left.python} + {right.python})")
        if left.type not in _NUMBERS or left.type != right.type:
            raise _bad(
                f"{_article(left.type)} {operator} {_article(right.type)}: CEL wants two of the"
                " same; there are int() and double()",
                tree,
            )
        if operator in "/%":
            return self._division(left, operator, right, tree)
        return _Code(left.type, f"({left.python} {operator} {right.python})")

    def _division(self, left: _Code, operator: str, right: _Code, tree: Any) -> _Code:
        """CEL divides integers towards zero; the remainder has the dividend's sign."""
        if not right.literal:
            raise _bad("a divisor is a literal other than 0", tree)
        if left.type == Type.DOUBLE:
            if operator == "%":
                raise _bad("% is for int", tree)
            return _Code(Type.DOUBLE, f"({left.python} / {right.python})")
        name = self._constant(_quotient if operator == "/" else _remainder)
        return _Code(Type.INT, f"{name}({left.python}, {right.python})")

    def _unary(self, tree: Any) -> _Code:
        operation, operand_tree = tree.children
        operand = self.compile(operand_tree)
        if operation.data == "unary_not":
            self._require(operand, Type.BOOL, operand_tree)
            return _Code(Type.BOOL, f"(not {operand.python})")
        if operand.type not in _NUMBERS:
            raise _bad(f"- is for numbers, not {_article(operand.type)}", operand_tree)
        literal = None if operand.literal is None else -operand.literal
        return _Code(operand.type, f"(-{operand.python})", literal)

    def _literal(self, tree: Any) -> _Code:
        token = tree.children[0]
        if token.type == "BOOL_LIT":
            return _Code(Type.BOOL, "True" if token == "true" else "False", token == "true")
        if token.type in {"STRING_LIT", "MLSTRING_LIT"}:
            text = str(celstr(token))
            return _Code(Type.STRING, repr(text), text)
        if token.type == "INT_LIT":
            number = int(token, 0) if "x" in token.lower() else int(token)
            if abs(number) > _INT_MAX:
                raise _bad("does not fit into 64 bits", tree)
            return _Code(Type.INT, f"({number})", number)
        if token.type == "FLOAT_LIT":
            value = float(token)
            if not math.isfinite(value):
                raise _bad("too large for a double", tree)
            return _Code(Type.DOUBLE, f"({value!r})", value)
        raise _bad(f"{token} is a literal that rules have no use for", tree)

    def _name(self, tree: Any) -> _Code:
        name = _dotted(tree)
        kind = self._types.get(name)
        if kind is None:
            near = _nearest(name, self._types)
            raise _bad(f"{name} is unknown{f'; is it {near}?' if near else ''}", tree)
        self.names[name] = variable(name)
        return _Code(kind, variable(name), fact=name)

    def _method(self, tree: Any) -> _Code:
        receiver_tree, method, *rest = tree.children
        arguments = rest[0].children if rest else []
        receiver = self.compile(receiver_tree)
        self._require(receiver, Type.STRING, receiver_tree)
        if method not in {*_STRING_METHODS, "matches"} or len(arguments) != 1:
            raise _bad(f"strings have startsWith, endsWith, contains and matches, not {method}",
                       tree)  # fmt: skip
        argument = self.compile(arguments[0])
        self._require(argument, Type.STRING, arguments[0])
        if method != "matches":
            form = _STRING_METHODS[method]
            needs = None
            if method == "startsWith" and receiver.fact and argument.literal is not None:
                needs = frozenset({Need(Sort.PREFIX, receiver.fact, (argument.literal,))})
            return _Code(Type.BOOL, form.format(receiver.python, argument.python), needs=needs)
        if argument.literal is None:
            raise _bad("a pattern is a literal", arguments[0])
        try:
            # RE2: linear in time, whatever the pattern.
            pattern = re2.compile(argument.literal)
        except re2.error as error:
            raise _bad(f"no RE2 pattern: {error}", arguments[0]) from None
        name = self._constant(pattern.search)
        return _Code(Type.BOOL, f"({name}({receiver.python}) is not None)")

    def _function(self, tree: Any) -> _Code:
        name, *rest = tree.children
        arguments = rest[0].children if rest else []
        codes = [self.compile(argument) for argument in arguments]
        types = [code.type for code in codes]
        if name == "in_list" and types == [Type.STRING, Type.STRING]:
            return self._in_list(codes[0], codes[1], arguments[0])
        if name == "size" and types == [Type.STRING]:
            return _Code(Type.INT, f"len({codes[0].python})")
        if name == "double" and types in ([Type.INT], [Type.DOUBLE]):
            return _Code(Type.DOUBLE, f"float({codes[0].python})")
        if name == "int" and types in ([Type.INT], [Type.DOUBLE]):
            if types == [Type.INT]:
                return codes[0]
            return _Code(Type.INT, f"{self._constant(_to_int)}({codes[0].python})")
        raise _bad(
            f'{name}({", ".join(types)}) is unknown; there are in_list("name", string),'
            " size(string), int(number) and double(number)",
            tree,
        )

    def _in_list(self, named: _Code, value: _Code, tree: Any) -> _Code:
        if named.literal is None:
            raise _bad("a list's name is a literal", tree)
        if named.literal not in self._lists:
            near = _nearest(named.literal, self._lists)
            raise _bad(
                f"there is no list {named.literal}{f'; is it {near}?' if near else ''}", tree
            )
        self.asked.add(named.literal)
        return _Code(Type.BOOL, f"in_list({named.python}, {value.python})")

    def _require(self, code: _Code, wanted: Type, tree: Any) -> None:
        if code.type != wanted:
            raise _bad(f"must be {_article(wanted)}, is {_article(code.type)}", tree)

    def _constant(self, value: Any) -> str:
        name = f"{self._prefix}{len(self.constants)}"
        self.constants[name] = value
        return name


def _needs(left: _Code, operator: str, right: _Code) -> Needs:
    """Of a fact that is compared with a literal."""
    if not left.fact or right.literal is None or operator not in _SORTS:
        return None
    bound = right.literal
    if operator in "<>" and left.type == right.type == Type.INT:
        bound += 1 if operator == ">" else -1
    if left.type == Type.STRING and operator != "==":
        return None
    return frozenset({Need(_SORTS[operator], left.fact, (bound,))})


def _chain(tree: Any) -> list[Any]:
    """The operands of a || b || c …, which the grammar nests to the left."""
    operands = []
    node = tree
    while node.data == tree.data and len(node.children) == 2:
        operands.append(node.children[1])
        node = node.children[0]
        while node.data in _WRAPPERS and len(node.children) == 1:
            node = node.children[0]
    return [node, *reversed(operands)]


def _to_int(number: float) -> int:
    """Towards zero; what has no 64-bit integer becomes the nearest, and no number 0."""
    if math.isnan(number):
        return 0
    return int(max(-_INT_MAX, min(_INT_MAX, number)))


def _quotient(left: int, right: int) -> int:
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _remainder(left: int, right: int) -> int:
    return left - _quotient(left, right) * right


def _dotted(tree: Any) -> str:
    parts: list[str] = []
    while True:
        while tree.data in _WRAPPERS and len(tree.children) == 1:
            tree = tree.children[0]
        if tree.data == "ident":
            return ".".join([str(tree.children[0]), *reversed(parts)])
        if tree.data != "member_dot":
            raise _bad("only facts have fields", tree)
        parts.append(str(tree.children[1]))
        tree = tree.children[0]


def _bad(message: str, tree: Any) -> BadExpression:
    for token in tree.scan_values(lambda item: isinstance(item, lark.Token) and item.line):
        return BadExpression(message, token.line, token.column)
    return BadExpression(message, 1, 1)


def _nearest(name: str, known: Any) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _article(kind: Type) -> str:
    return {Type.INT: "an int", Type.STRING: "a string"}.get(kind, f"a {kind}")


def _spoken(kind: str) -> str:
    return {
        "member_index": "an index",
        "list_lit": "a list",
        "map_lit": "a map",
        "member_object": "an object",
        "dot_ident": "a leading dot",
    }.get(kind, kind)
