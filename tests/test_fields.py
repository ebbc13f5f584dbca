"""Ranges of fields: each registered class allows what its fields declare, refuses everything else, and says so."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo import advantages, aggregation, correction, objectives
from dgpo.fields import (
    REQUIRED,
    Checked,
    Choice,
    Interval,
    allowed,
    check_value,
    choice,
    flag,
    integer,
    number,
    optional,
    range_text,
)

REGISTERED: dict[str, type] = {
    **objectives.OBJECTIVES,
    **aggregation.AGGREGATIONS,
    **correction.CORRECTIONS,
    **{f"advantage {name}": cls for name, cls in advantages.ADVANTAGES.items()},
}
FIELDS = [(name, field.name) for name, cls in REGISTERED.items() for field in dataclasses.fields(cls)]
NEEDED: dict[str, dict[str, Any]] = {"seq-mean-token-sum-norm": {"length": 7}}
"""Fields without a default."""
TOGETHER: dict[str, dict[str, Any]] = {
    "c_low": {"c_high": 1.5},
    "c_high": {"c_low": 0.5},
    "c_low_max": {"c_low_start": 5e-324},
    "c_high_max": {"c_high_start": 1},
    "sigma_base": {"sigma_high": math.inf},
    "adv_high": {"adv_low": 0},
    "cov_high": {"cov_low": -math.inf},
    "budget_max": {"budget_min": 0},
}
"""What goes with a field at its ends: the other of a pair that is given together, or one whose range names it."""
TINY = math.nextafter(0, 1)
NOT_NUMBERS = [math.nan, "0.5", True, False, [0.5], {}, 1j, torch.tensor([[0.5], [0.25]])]


@dataclass(frozen=True, kw_only=True)
class Toy(Checked):
    start: float = number(0.5, "(0, end]")
    end: float = number(1.0, "(0, 1]")
    cap: float | None = number(None, "[1 + end, inf]")
    size: float = number(REQUIRED, "(0, inf)")
    steps: int = integer(3, "[1, 10)")
    level: str = choice("token", "token", "sequence")
    mode: str | None = choice(None, "fast")
    shuffle: bool = flag(True)
    free: Any = None


def make(name: str, **fields: Any) -> Any:
    return REGISTERED[name](**NEEDED.get(name, {}) | fields)


def field_of(name: str, field: str) -> dataclasses.Field[Any]:
    return next(found for found in dataclasses.fields(REGISTERED[name]) if found.name == field)


def values_of(name: str, field: str) -> tuple[list[Any], list[Any]]:
    """What a field takes, and what it refuses, at both ends and by type, beside the defaults of the other fields."""
    declared = field_of(name, field)
    rule = allowed(declared)
    good: list[Any] = [None] if optional(declared) else []
    bad: list[Any] = [*NOT_NUMBERS, *([] if optional(declared) else [None])]
    if isinstance(rule, Choice):
        return [*good, *rule.values], [*bad, "TOKEN", "", 7]
    assert isinstance(rule, Interval)
    low, high = rule.ends(vars(make(name)))
    if rule.whole:
        return [*good, int(low), int(low) + 1], [*bad, low, low + 0.5, int(low) - 1, -math.inf, 10**400]
    for end, inside, is_open in (
        (low, math.inf, rule.text[0] == "("),
        (high, -math.inf, rule.text[-1] == ")"),
    ):
        (bad if is_open else good).append(end)
        if math.isfinite(end):
            good.append(math.nextafter(end, inside))
            bad.append(math.nextafter(end, -inside))
    return good, [*bad, *([] if low == -math.inf and rule.text[0] == "[" else [-math.inf]), 10**400, 1e39]


# --- all that is registered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_declares_its_range(name: str, field: str) -> None:
    rule = allowed(field_of(name, field))
    assert rule is not None
    if isinstance(rule, Interval):
        low, high = rule.ends({found.name: 1.0 for found in dataclasses.fields(REGISTERED[name])})
        assert low < high or (low == high and "(" not in rule.text + ")")


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_the_ends_of_a_range_and_what_lies_beyond(name: str, field: str) -> None:
    good, bad = values_of(name, field)
    others = TOGETHER.get(field, {})
    for value in good:
        if value is None:
            assert getattr(make(name), field) is None
        # a weight beyond float32, a search without an end
        elif not (name == "vespo" and value in (0, TINY)) and not (name.startswith("bapo") and value == TINY):
            assert getattr(make(name, **others | {field: value}), field) == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"{REGISTERED[name].__name__}: \w+ = .* is not allowed") as error:
            make(name, **others | {field: value})
        assert re.search(rf"\b{field}\b", str(error.value))
        assert "\n" not in str(error.value)


ANY_NUMBER = st.one_of(
    st.floats(), st.integers(-3, 3), st.floats(0, 2), st.sampled_from([0.0, -0.0, 1.0, 1.2, 10.0, 1e-20, 10**400])
)


def expected(cls: type, values: Mapping[str, Any]) -> bool:
    """Whether the metadata allow all of these values, decided here from their text."""
    found = [
        (values[field.name], allowed(field))
        for field in dataclasses.fields(cls)
        if not (values[field.name] is None and optional(field))
    ]
    if any(value not in rule.values if isinstance(rule, Choice) else value is None for value, rule in found):
        return False
    return all(
        _inside(value, rule.text, values) and not (rule.whole and isinstance(value, float))
        for value, rule in found
        if isinstance(rule, Interval)
    )


def _inside(value: float, text: str, values: Mapping[str, Any]) -> bool:
    low, high = (sum(_float(values.get(term, term)) for term in end.split(" + ")) for end in text[1:-1].split(", "))
    size = _float(value)
    if 3.4e38 < abs(size) < math.inf or abs(value) == 10**400:
        return False
    return low <= size <= high and not (size == low and text[0] == "(") and not (size == high and text[-1] == ")")


def _float(value: Any) -> float:
    return math.inf if value == 10**400 else float(value)


@pytest.mark.parametrize("name", [name for name, cls in REGISTERED.items() if dataclasses.fields(cls)])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_the_metadata_allow_constructs_and_what_they_forbid_does_not(name: str, data: st.DataObject) -> None:
    cls = REGISTERED[name]
    known = [field.name for field in dataclasses.fields(cls)]
    given_fields = data.draw(st.dictionaries(st.sampled_from(known), st.one_of(ANY_NUMBER, st.none()), max_size=3))
    values = {field.name: field.default for field in dataclasses.fields(cls)} | NEEDED.get(name, {}) | given_fields
    error = refusal(name, given_fields)
    if expected(cls, values):
        assert not error or re.search("expected both or neither|more than a float32 holds|too many bounds", error)
    else:
        assert re.match(rf"{cls.__name__}: \w+ = .* is not allowed; expected ", error)
        assert any(re.search(rf"\b{field}\b", error) for field in given_fields)


def refusal(name: str, fields: dict[str, Any]) -> str:
    try:
        made = make(name, **fields)
    except ValueError as error:
        return str(error)
    assert all(getattr(made, field) == value for field, value in fields.items())
    return ""


# --- the mechanism ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 0}, "Toy: start = 0 is not allowed; expected a number in (0, end]"),
        ({"start": 0.9, "end": 0.8}, "Toy: start = 0.9 is not allowed; expected a number in (0, end] = (0, 0.8]"),
        ({"start": 0.9, "end": "0.8"}, "Toy: end = '0.8' is not allowed; expected a number in (0, 1]"),
        ({"end": math.nan}, "Toy: end = nan is not allowed; expected a number in (0, 1]"),
        (
            {"cap": 1.5},
            "Toy: cap = 1.5 is not allowed; expected a number in [1 + end, inf] = [2, inf], or None",
        ),
        ({"size": None}, "Toy: size = None is not allowed; expected a number in (0, inf)"),
        ({"size": True}, "Toy: size = True is not allowed; expected a number in (0, inf)"),
        ({"size": 10**400}, "Toy: size = 100000000000000000...0000000000000000000 is not allowed; expected"),
        ({"size": torch.ones(2, 1)}, "Toy: size = tensor([[1.], [1.]]) is not allowed; expected a number in (0, inf)"),
        ({"steps": 10}, "Toy: steps = 10 is not allowed; expected an integer in [1, 10)"),
        ({"steps": 2.0}, "Toy: steps = 2.0 is not allowed; expected an integer in [1, 10)"),
        ({"steps": True}, "Toy: steps = True is not allowed; expected an integer in [1, 10)"),
        ({"level": "word"}, "Toy: level = 'word' is not allowed; expected 'token' or 'sequence'"),
        ({"level": None}, "Toy: level = None is not allowed; expected 'token' or 'sequence'"),
        ({"mode": "slow"}, "Toy: mode = 'slow' is not allowed; expected 'fast', or None"),
        ({"shuffle": 1}, "Toy: shuffle = 1 is not allowed; expected True or False"),
        ({"shuffle": "yes"}, "Toy: shuffle = 'yes' is not allowed; expected True or False"),
    ],
)
def test_an_error_names_class_field_value_and_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Toy(**{"size": 1.0} | fields)
    assert str(error.value).startswith(message)


def test_what_is_allowed_stays_as_it_was_given() -> None:
    made = Toy(size=2.0, start=1, end=1, cap=math.inf, free=np.float32(3), shuffle=False)
    assert (made.size, made.start, made.cap, made.shuffle) == (2, 1, math.inf, False)
    assert (type(made.start), type(made.size), type(made.free)) == (int, float, np.float32)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(2), 2),
        (Fraction(1, 2), 0.5),
        (10**20, 1e20),
    ],
)
def test_numbers_of_other_kinds_become_those_that_tensors_and_json_take(value: Any, plain: float) -> None:
    size = Toy(size=value).size
    assert (type(size), size) == (type(plain), plain)
    steps = Toy(size=1, steps=np.int64(4)).steps
    assert (type(steps), steps) == (int, 4)


def test_a_finite_number_that_a_float32_does_not_hold_is_refused() -> None:
    for value in (1e39, 10**400, Fraction(10**400)):
        with pytest.raises(
            ValueError, match=r"is not allowed; expected a number in \(0, inf\), and a finite one up to"
        ):
            Toy(size=value)
    with pytest.raises(ValueError, match=r"expected a number in \(0, 1\]$"):
        Toy(size=1, end=1e39)


def test_a_range_may_end_at_a_field_that_is_none_and_names_only_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Capped(Checked):
        cap: float | None = number(None, "[1, inf]")
        low: float = number(0.5, "[0, cap]")

    @dataclass(frozen=True, kw_only=True)
    class Misspelt(Checked):
        cap: float = number(1, "[1, inf]")
        low: float = number(0.5, "[0, kap]")

    assert Capped(low=9).low == 9
    with pytest.raises(ValueError, match=re.escape("low = 9 is not allowed; expected a number in [0, cap] = [0, 2]")):
        Capped(low=9, cap=2)
    with pytest.raises(TypeError, match="'kap', which is not a field"):
        Misspelt()


def test_the_ends_of_a_class_with_slots_are_its_fields() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Slotted(Checked):
        end: float = number(1.0, "[0, 5]")
        start: float = number(0.5, "[0, end]")

    with pytest.raises(ValueError, match=re.escape("start = 3 is not allowed; expected a number in [0, end] = [0, 1]")):
        Slotted(start=3)


def test_ranges_in_words() -> None:
    assert [range_text(field) for field in dataclasses.fields(Toy)] == [
        "in (0, end]",
        "in (0, 1]",
        "None or in [1 + end, inf]",
        "in (0, inf)",
        "an integer in [1, 10)",
        "'token' or 'sequence'",
        "None or 'fast'",
        "True or False",
        "None or any",
    ]


@pytest.mark.parametrize("text", ["", "0, 1", "[0 1]", "[0, 1", "[0, 1, 2]", "]0, 1[", "x >= 0"])
def test_another_notation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an interval; expected one such as"):
        number(0, text)


def test_check_value_is_the_same_check_for_an_argument() -> None:
    check_value("kl_coef", 0, "[0, inf)")
    with pytest.raises(ValueError, match=re.escape("kl_coef = inf is not allowed; expected a number in [0, inf)")):
        check_value("kl_coef", math.inf, "[0, inf)")
    check_value("retries", 2, "[0, inf)", whole=True)
    with pytest.raises(ValueError, match=re.escape("retries = 1.5 is not allowed; expected an integer in [0, inf)")):
        check_value("retries", 1.5, "[0, inf)", whole=True)
