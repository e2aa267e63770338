"""Rules as Python mean what they mean in CEL: held against an evaluator of other hands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

# Not from `cel`: xds-protos has an empty package of that name, and either may be unpacked last.
from cel import cel
from hypothesis import given, settings
from hypothesis import strategies as st

from router.risk.expressions import BadExpression, compile_expression
from router.risk.facts import Type, Value
from router.risk.model import Action, Rule, RuleSet
from router.risk.ruleset import Rules, complete

TYPES = {
    "amount": Type.INT,
    "user.age": Type.INT,
    "f.sum_1h": Type.DOUBLE,
    "challenge.passed": Type.BOOL,
    "currency": Type.STRING,
    "device.id": Type.STRING,
}
LISTS = frozenset({"stolen"})
# Small: CEL's integers overflow, ours do not.
INTS = st.integers(-1000, 1000)
DOUBLES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3) + 0.0)
TEXTS = st.text(st.sampled_from("abcU$é☃'\"\\\n% "), max_size=4)
# What the other evaluator's size() counts right: it counts bytes, CEL's specification code points.
ASCII = st.text(st.sampled_from("abcU$'\"\\\n% "), max_size=4)


ALPHABET = "amount.user_age()!&|?:<>=+-*/%\"'[]{}, 0129.eE\\\nu"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _names(kind: Type) -> Any:
    return st.sampled_from([name for name, of in TYPES.items() if of == kind])


def _binary(operators: str, operands: Any) -> Any:
    return st.tuples(operands, st.sampled_from(operators.split()), operands).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    )


def _ints(depth: int) -> Any:
    leaf = INTS.map(str) | _names(Type.INT)
    if depth == 0:
        return leaf
    inner = _ints(depth - 1)
    divided = st.tuples(inner, st.sampled_from("/%"), INTS.filter(bool)).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    )
    size = (ASCII.map(_quoted) | st.just("currency")).map(lambda text: f"size({text})")
    return leaf | _binary("+ - *", inner) | divided | inner.map(lambda one: f"-({one})") | size


def _doubles(depth: int) -> Any:
    leaf = DOUBLES.map(repr) | _names(Type.DOUBLE)
    if depth == 0:
        return leaf
    return (
        leaf
        | _binary("+ - *", _doubles(depth - 1))
        | _ints(depth - 1).map(lambda one: f"double({one})")
    )


def _strings(depth: int) -> Any:
    leaf = TEXTS.map(_quoted) | _names(Type.STRING)
    return leaf if depth == 0 else leaf | _binary("+", _strings(depth - 1))


def _bools(depth: int) -> Any:
    leaf = st.sampled_from(["true", "false", "challenge.passed"])
    if depth == 0:
        return leaf
    inner = _bools(depth - 1)
    relations = "== != < <= > >="
    listed = st.tuples(_names(Type.STRING), st.lists(TEXTS.map(_quoted), max_size=3)).map(
        lambda parts: f"({parts[0]} in [{', '.join(parts[1])}])"
    )
    methods = st.tuples(
        _strings(depth - 1),
        st.sampled_from(["startsWith", "endsWith", "contains"]),
        TEXTS.map(_quoted),
    ).map(lambda parts: f"({parts[0]}).{parts[1]}({parts[2]})")
    chosen = st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} ? {p[1]} : {p[2]})")
    return st.one_of(
        leaf,
        _binary(relations, _ints(depth - 1)),
        _binary(relations, _doubles(depth - 1)),
        _binary(relations, _strings(depth - 1)),
        _binary("&& ||", inner),
        inner.map(lambda one: f"!({one})"),
        listed,
        methods,
        chosen,
    )


FACTS = st.fixed_dictionaries(
    {
        "amount": INTS,
        "user.age": INTS,
        "f.sum_1h": DOUBLES,
        "challenge.passed": st.booleans(),
        "currency": ASCII,
        "device.id": TEXTS,
    }
)


def _nested(facts: dict[str, Value]) -> dict[str, Any]:
    """`user.age` is the field of a map for the other evaluator."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def _evaluate(source: str, facts: dict[str, Value]) -> bool:
    rule = Rule("one", source, Action.DENY, "ONE")
    rules = Rules(RuleSet((rule,)), TYPES, LISTS, version=1, now=datetime(2026, 1, 1, tzinfo=UTC))
    decision = rules.decide(complete(facts, TYPES), lambda _list, value: value == "a")
    return decision.action == Action.DENY


@settings(max_examples=250, deadline=None)
@given(source=_bools(3), facts=FACTS)
def test_a_rule_means_what_it_means_in_cel(source: str, facts: dict[str, Value]) -> None:
    try:
        expected = cel.compile(source).execute(cel.Context(variables=_nested(facts)))
    except (ValueError, OverflowError):
        # Overflow of 64 bits, which ours has not.
        return
    assert _evaluate(source, facts) is expected


@given(text=st.text(st.sampled_from("aé☃𝄞"), max_size=6))
def test_a_texts_size_is_its_number_of_code_points(text: str) -> None:
    """https://github.com/google/cel-spec/blob/master/doc/langdef.md, "size"."""
    facts: dict[str, Value] = {"device.id": text}
    assert _evaluate(f"size(device.id) == {len(text)}", facts)
    assert _evaluate(f"size({_quoted(text)}) == {len(text)}", facts)


@settings(max_examples=250, deadline=None)
@given(source=st.text(st.sampled_from(ALPHABET), max_size=40) | st.text(max_size=30))
def test_whatever_is_uploaded_compiles_or_is_refused_with_its_place(source: str) -> None:
    try:
        compile_expression(source, TYPES, LISTS)
    except BadExpression as error:
        assert error.line >= 1
        assert error.column >= 0


@pytest.mark.parametrize(
    ("source", "line", "column", "says"),
    [
        ("amount >", 1, 9, "ends too early"),
        ("amount > 5 &&\n  amuont < 3", 2, 3, "is it amount?"),
        ("amount + 1.5 > 2.0", 1, 1, "an int + a double"),
        ('amount > "5"', 1, 1, "an int cannot be compared with a string"),
        ("amount", 1, 1, "true or false"),
        ("amount / user.age > 2", 1, 1, "divisor"),
        ("amount / 0 > 2", 1, 1, "divisor"),
        ('in_list("stolne", device.id)', 1, 9, "is it stolen?"),
        ('currency.matches("(")', 1, 18, "RE2"),
        ("currency in device.id", 1, 13, "brackets"),
        ("user.age[0] == 1", 1, 1, "an index has no place"),
        ("true &&\n true &&\n 5", 3, 2, "joins true or false"),
        ("challenge.passed ? 1 : true", 1, 1, "one branch"),
        (f"amount > {2**63}", 1, 10, "64 bits"),
        ("!" * 40 + "(amount > 1)", 1, 42, "nested"),
        ("x" * 9000, 1, 8192, "longer than"),
    ],
)
def test_a_broken_rule_is_refused_with_line_and_column(
    source: str, line: int, column: int, says: str
) -> None:
    with pytest.raises(BadExpression) as caught:
        compile_expression(source, TYPES, LISTS)
    assert says in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_long_chain_is_not_nested() -> None:
    source = " || ".join(f'currency == "C{number}"' for number in range(200))
    assert _evaluate(source, {"currency": "C199"})
    assert not _evaluate(source, {"currency": "C200"})


def test_patterns_take_linear_time_and_lists_are_asked() -> None:
    assert _evaluate('device.id.matches("^(a+)+$")', {"device.id": "a" * 40})
    assert not _evaluate('device.id.matches("^(a+)+$")', {"device.id": "a" * 40 + "b"})
    assert _evaluate('in_list("stolen", device.id)', {"device.id": "a"})
    assert not _evaluate('in_list("stolen", device.id)', {"device.id": "b"})


@settings(max_examples=60, deadline=None)
@given(
    bounds=st.lists(INTS, min_size=1, max_size=120),
    others=st.lists(_bools(2), max_size=20),
    facts=FACTS,
)
def test_rules_match_together_as_they_do_alone(
    bounds: list[int], others: list[str], facts: dict[str, Value]
) -> None:
    """Which rules are evaluated is chosen by what they need: none is left out, none moves."""
    shapes = ("amount > {0}", "f.sum_1h <= {0}.5 || {0} < user.age", 'currency == "a{0}"',
              'device.id.startsWith("a") && amount >= {0}')  # fmt: skip
    whens = [shapes[at % len(shapes)].format(abs(bound)) for at, bound in enumerate(bounds)]
    whens += others
    document = RuleSet(
        tuple(Rule(f"r{at}", when, Action.DENY, "ONE") for at, when in enumerate(whens))
    )
    rules = Rules(document, TYPES, LISTS, version=1, now=datetime(2026, 1, 1, tzinfo=UTC))
    decision = rules.decide(complete(facts, TYPES), lambda _list, _value: False)
    alone = [f"r{at}" for at, when in enumerate(whens) if _evaluate(when, facts)]
    assert [hit.rule for hit in decision.hits] == alone
