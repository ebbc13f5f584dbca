"""A method declares a setting for every framework or for none; it names real fields, and claims no check that does not
run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dgpo import aggregation, objectives
from dgpo.cli.objectives import run
from dgpo.objectives import OBJECTIVES
from dgpo.objectives.conformance import CHECKED, NOBODY_LOOKED, as_markdown, as_text
from dgpo.objectives.frameworks import FRAMEWORKS, NO_LIMIT, Conformance, Of
from dgpo.registry import parse

RECORDS = [(name, framework) for name, cls in OBJECTIVES.items() for framework in cls.elsewhere]
LOOKED_AT = [name for name, cls in OBJECTIVES.items() if cls.elsewhere]
OTHER_TEST = Path(__file__).with_name("test_conformance_frameworks.py")
TRL_TEST = Path(__file__).resolve().parents[1] / "training" / "test_conformance_trl.py"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_method_has_a_record_for_every_framework_or_for_none(name: str) -> None:
    assert list(OBJECTIVES[name].elsewhere) in (list(FRAMEWORKS), [])


@pytest.mark.parametrize(("name", "framework"), RECORDS)
def test_settings_name_real_fields_and_aggregations(name: str, framework: str) -> None:
    record = OBJECTIVES[name].elsewhere[framework]
    fields = {field.name for field in dataclasses.fields(OBJECTIVES[name])}
    assert set(record.only or {}) <= fields
    if record.setting is None:
        assert (record.aggregation, record.averages, record.only) == (None, None, None)
        with pytest.raises(ValueError, match="not available"):
            record.options(objectives.make(name))
        return
    followed = {value.field for value in record.setting.values() if isinstance(value, Of)}
    assert followed <= fields
    assert followed | set(record.only or {}) == fields, "a field that no option follows would be lost"
    for average in (record.aggregation, *(record.averages or {}).values()):
        if average is not None:
            how, own = parse("aggregation", average)
            aggregation.make(how, **({"length": 4} if how.endswith("norm") else {}) | own)
    assert record.aggregation in aggregation.AGGREGATIONS
    assert record.averages is None or framework == "trl", "only TRL's loss type joins a weight and an average"
    options = record.options(objectives.make(name, **(record.only or {})))
    assert list(options) == list(record.setting)
    assert not any(isinstance(value, Of) for value in options.values())


def test_a_check_is_claimed_where_a_test_runs_it_and_only_there() -> None:
    for framework in CHECKED:
        test = (TRL_TEST if framework == "trl" else OTHER_TEST).read_text(encoding="utf-8")
        assert f'available("{framework}")' in test, "parametrised over every row of the framework"


def test_options_follow_the_fields() -> None:
    verl = objectives.CISPO.elsewhere["verl"]
    assert verl.options(objectives.CISPO(cap=4))["clip_ratio_high"] == 3
    grpo = objectives.GRPO.elsewhere
    assert grpo["trl"].options(objectives.GRPO())["delta"] is None
    assert grpo["verl"].options(objectives.GRPO())["clip_ratio_c"] == NO_LIMIT
    assert grpo["verl"].options(objectives.GRPO(dual_clip=3))["clip_ratio_c"] == 3
    with pytest.raises(ValueError, match=r"ratio_cap = 20\.0 has no setting there; expected inf"):
        objectives.DPPOTV.elsewhere["skyrl"].options(objectives.DPPOTV())


@pytest.mark.parametrize("name", LOOKED_AT)
def test_markdown_has_a_row_per_framework(name: str) -> None:
    lines = as_markdown(OBJECTIVES[name]).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(FRAMEWORKS.values())
    assert {line.count("|") for line in lines} == {6}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_the_command_prints_the_records(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert run([name]) == 0
    text = capsys.readouterr().out.partition("The same gradient elsewhere:\n")[2]
    assert text == as_text(OBJECTIVES[name], 90) + "\n"
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")] == list(FRAMEWORKS.values())
    assert max(len(line) for line in text.splitlines()) <= 90


def test_a_method_needs_no_records_and_inherits_none() -> None:
    class Mine(objectives.GRPO):
        pass

    assert (Mine.name, Mine.papers, Mine.elsewhere, Mine.aliases) == ("", (), {}, {})
    assert as_markdown(Mine) == as_text(Mine) == NOBODY_LOOKED


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        objectives.IS.elsewhere["trl"].note = "changed"  # type: ignore[misc]
    assert str(Of(field="cap", plus=-1)) == "cap - 1"
    assert Conformance().setting is None
