"""Building by name: what comes out, and what an error says."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dgpo import objectives
from dgpo.registry import build, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Plain:
    width: float = 1.0
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Demanding:
    length: int
    width: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Bare:
    pass


REGISTRY: dict[str, type] = {"plain": Plain, "demanding": Demanding, "bare": Bare}


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("dpgo", ["dgpo", "grpo", "maspo"], ", did you mean 'dgpo'?"),
        ("masp", ["dgpo", "grpo", "maspo"], ", did you mean 'maspo'?"),
        ("eps-low", ["eps_low", "eps_high"], ", did you mean 'eps_low'?"),
        ("xyz", ["dgpo", "grpo"], ""),
        ("", ["dgpo"], ""),
        (7, ["dgpo"], ""),
        ("dgpo", [], ""),
    ],
)
def test_did_you_mean(word: object, known: list[str], expected: str) -> None:
    assert did_you_mean(word, known) == expected


def test_build_passes_the_fields_on() -> None:
    assert build("thing", REGISTRY, "plain", {"width": 2.0}) == Plain(width=2.0)
    assert build("thing", REGISTRY, "demanding", {"length": 3}) == Demanding(length=3)
    assert build("thing", REGISTRY, "bare", {}) == Bare()


def test_a_field_with_a_default_factory_is_not_required() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Factory:
        steps: tuple[int, ...] = field(default_factory=tuple)

    assert build("thing", {"factory": Factory}, "factory", {}) == Factory(steps=())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("plane", {}, "unknown thing 'plane', did you mean 'plain'?; known: plain, demanding, bare"),
        ("zzz", {}, "unknown thing 'zzz'; known: plain, demanding, bare"),
        ("plain", {"widht": 1}, "thing 'plain' has no field 'widht', did you mean 'width'?; its fields: width, steps"),
        ("plain", {"colour": 1}, "thing 'plain' has no field 'colour'; its fields: width, steps"),
        ("bare", {"width": 1}, "thing 'bare' has no field 'width'; its fields: none"),
        ("demanding", {"width": 2.0}, "thing 'demanding' needs 'length': 'demanding' has no default for it"),
    ],
)
def test_errors_name_what_was_asked_for_and_what_there_is(name: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        build("thing", REGISTRY, name, fields)
    assert str(error.value) == message


def test_objectives_are_built_by_name() -> None:
    assert objectives.make("dgpo", n=2) == objectives.DGPO(n=2)
    with pytest.raises(ValueError, match=r"unknown objective 'dgpo_', did you mean 'dgpo'\?; known: dgpo,"):
        objectives.make("dgpo_")
    with pytest.raises(ValueError, match=r"objective 'dgpo' has no field 'eps_hi', did you mean 'eps_high'\?"):
        objectives.make("dgpo", eps_hi=0.28)
    with pytest.raises(ValueError, match=r"DGPO: n = -1 is not allowed; expected a number in \[0, inf\]"):
        objectives.make("dgpo", n=-1)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_registered_objective_is_exported_under_its_class_name(name: str) -> None:
    cls = objectives.OBJECTIVES[name]
    assert getattr(objectives, cls.__name__) is cls
    assert cls.__name__ in objectives.__all__
    assert type(objectives.make(name)) is cls
