"""Building by name: what comes out, and what an error says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from dgpo import advantages, aggregation, correction, objectives
from dgpo.registry import build, did_you_mean, parse


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


@dataclass(frozen=True, kw_only=True)
class Anything:
    width: Any = 1.0
    steps: Any = 3
    level: Any = "token"
    url: Any = ""


REGISTRY: dict[str, type] = {"plain": Plain, "demanding": Demanding, "bare": Bare}


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("dpgo", ["drpo", "dgpo", "grpo", "maspo"], ", did you mean 'dgpo'?"),
        ("masp", ["dgpo", "grpo", "maspo"], ", did you mean 'maspo'?"),
        ("eps-low", ["eps_low", "eps_high"], ", did you mean 'eps_low'?"),
        ("xyz", ["dgpo", "grpo"], ""),
        ("model", ["delta", "beta"], ""),
        ("lr", ["lora_r"], ""),
        ("entropy", ["std", "entropy_shaped"], ", did you mean 'entropy_shaped'?"),
        ("GRPO", ["dgpo", "grpo"], ", did you mean 'grpo'?"),
        ("Seq Mean.Token-Mean", ["seq-mean-token-mean"], ", did you mean 'seq-mean-token-mean'?"),
        ("", ["dgpo"], ""),
        (7, ["dgpo"], ""),
        ("dgpo", [], ""),
    ],
)
def test_did_you_mean(word: object, known: list[str], expected: str) -> None:
    assert did_you_mean(word, known) == expected


def test_aliases_come_first_where_their_name_is_known() -> None:
    aliases = {"model": ("model_name_or_path", "checkpoint"), "n": ("samples",)}
    assert did_you_mean("Model", ["mode", "checkpoint"], aliases) == ", did you mean 'checkpoint'?"
    assert did_you_mean("n", ["num"], aliases) == ""


@pytest.mark.parametrize(
    ("spec", "name", "fields"),
    [
        ("plain", "plain", {}),
        (" plain ", "plain", {}),
        ("plain:width=2", "plain", {"width": 2}),
        ("plain: width = 2.5 , steps=4", "plain", {"width": 2.5, "steps": 4}),
        ("plain:width=1e-3,steps=-2", "plain", {"width": 1e-3, "steps": -2}),
        ("plain:width=.5", "plain", {"width": 0.5}),
        ("plain:width=None,steps=null", "plain", {"width": None, "steps": None}),
        ("plain:width=inf,steps=-inf", "plain", {"width": math.inf, "steps": -math.inf}),
        ("plain:width=True,steps=false", "plain", {"width": True, "steps": False}),
        ("plain:level=sequence", "plain", {"level": "sequence"}),
        ("plain:url=a=b:c", "plain", {"url": "a=b:c"}),
        ('{"name": "plain", "width": 2}', "plain", {"width": 2}),
        ({"name": "plain", "width": 2}, "plain", {"width": 2}),
        ({"name": "plain"}, "plain", {}),
    ],
)
def test_one_text_holds_name_and_fields(spec: Any, name: str, fields: dict[str, Any]) -> None:
    assert parse("thing", spec) == (name, fields)
    assert build("thing", {"plain": Anything}, spec, {}) == Anything(**fields)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("plain:", "thing: '' in 'plain:' has no field; expected NAME:FIELD=VALUE,FIELD=VALUE"),
        ("plain:width", "thing: 'width' in 'plain:width' has no value; expected NAME:FIELD=VALUE,FIELD=VALUE"),
        ("plain:width=", "thing: 'width=' in 'plain:width=' has no value; expected NAME:FIELD=VALUE,FIELD=VALUE"),
        ("plain:=2", "thing: '=2' in 'plain:=2' has no field; expected NAME:FIELD=VALUE,FIELD=VALUE"),
        ("plain:width=2,", "thing: '' in 'plain:width=2,' has no field; expected NAME:FIELD=VALUE,FIELD=VALUE"),
        ("plain:width=2,width=3", "thing 'plain:width=2,width=3': 'width' is given twice, as 2 and as 3"),
        ("plain(width=2)", "unknown thing 'plain(width=2)'; fields of 'plain' are written NAME:FIELD=VALUE"),
        ("plain width=2", "unknown thing 'plain width=2'; fields of 'plain' are written NAME:FIELD=VALUE"),
        ("plain,width=2", "unknown thing 'plain,width=2'; fields of 'plain' are written NAME:FIELD=VALUE"),
        ("plane:width=2", "unknown thing 'plane', did you mean 'plain'?"),
        ("plain:widht=2", "thing 'plain' has no field 'widht', did you mean 'width'?"),
        (":width=2", "unknown thing ''; known: plain, demanding, bare"),
        ('{"name": "plain"', "is not valid JSON"),
        ('{"width": 2}', "thing {'width': 2} has no 'name'; expected {'name': NAME, FIELD: VALUE} or NAME:FIELD"),
        ('{"name": "plain", "width": 2, "width": 3}', "'width' is given twice, as 2 and as 3"),
        ({"width": 2}, "thing {'width': 2} has no 'name'"),
    ],
)
def test_a_wrong_text_says_what_was_expected(spec: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        build("thing", REGISTRY, spec, {})
    assert message in str(error.value)


def test_a_field_is_given_once() -> None:
    with pytest.raises(ValueError, match="thing 'plain': 'width' is given twice, as 2 and as 3"):
        build("thing", REGISTRY, "plain:width=2", {"width": 3})
    assert build("thing", REGISTRY, "plain:width=2", {"steps": 4}) == Plain(width=2, steps=4)


def test_other_names_for_one_thing() -> None:
    elsewhere = {"old_name": "'plain' with width=2"}
    for word in ("old_name", "Old-Name", "OLD.NAME"):
        with pytest.raises(ValueError, match=f"unknown thing {word!r}: here it is 'plain' with width=2; known: plain"):
            build("thing", REGISTRY, word, {}, elsewhere)


@pytest.mark.parametrize("word", objectives.ELSEWHERE)
def test_every_name_from_elsewhere_is_explained(word: str) -> None:
    assert word not in objectives.OBJECTIVES
    with pytest.raises(ValueError, match=re.escape(f"unknown objective {word!r}: here it is ")):
        objectives.make(word)
    with pytest.raises(ValueError, match=re.escape(f"unknown objective {word!r}: here it is ")):
        objectives.find(word)


def test_all_four_registries_read_the_text() -> None:
    assert objectives.make("dgpo:n=2,m=inf") == objectives.DGPO(n=2, m=math.inf)
    assert objectives.make("dgpo:n=2", m=3) == objectives.DGPO(n=2, m=3)
    assert aggregation.make("seq-mean-token-sum-norm:length=9") == aggregation.SeqMeanTokenSumNorm(length=9)
    assert correction.make("truncate:level=sequence,cap=3") == correction.Truncate(level="sequence", cap=3)
    assert advantages.make("entropy_shaped:alpha=0.1,kappa=3") == advantages.EntropyShaped(alpha=0.1, kappa=3)


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
        ("demanding", {"width": 2.0}, "thing 'demanding' needs 'length', which has no default"),
    ],
)
def test_errors_name_what_was_asked_for_and_what_there_is(name: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        build("thing", REGISTRY, name, fields)
    assert str(error.value) == message


def test_objectives_are_built_by_name() -> None:
    assert objectives.make("dgpo", n=2) == objectives.DGPO(n=2)
    with pytest.raises(ValueError, match=r"unknown objective 'dgpo_', did you mean 'dgpo'\?; known: aspo,"):
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
