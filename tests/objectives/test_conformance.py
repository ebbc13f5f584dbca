"""The conformance table covers every method and framework, names real fields, and claims no check that does not run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dgpo import aggregation, objectives
from dgpo.cli.objectives import run
from dgpo.objectives import OBJECTIVES
from dgpo.objectives.conformance import (
    CHECKED,
    CONFORMANCE,
    FRAMEWORKS,
    NO_LIMIT,
    Conformance,
    Of,
    as_markdown,
    as_text,
)

RECORDS = [(name, framework) for name, records in CONFORMANCE.items() for framework in records]
OTHER_TEST = Path(__file__).with_name("test_conformance_frameworks.py")
TRL_TEST = Path(__file__).resolve().parents[1] / "training" / "test_conformance_trl.py"


def test_every_method_has_a_record_for_every_framework() -> None:
    assert set(CONFORMANCE) == set(OBJECTIVES)
    for name, records in CONFORMANCE.items():
        assert list(records) == list(FRAMEWORKS), name


@pytest.mark.parametrize(("name", "framework"), RECORDS)
def test_settings_name_real_fields_and_aggregations(name: str, framework: str) -> None:
    record = CONFORMANCE[name][framework]
    fields = {field.name for field in dataclasses.fields(OBJECTIVES[name])}
    assert set(record.only or {}) <= fields
    if record.setting is None:
        assert (record.aggregation, record.only) == (None, None)
        with pytest.raises(ValueError, match="not available"):
            record.options(objectives.make(name))
        return
    followed = {value.field for value in record.setting.values() if isinstance(value, Of)}
    assert followed <= fields
    assert followed | set(record.only or {}) == fields, "a field that no option follows would be lost"
    assert record.aggregation in aggregation.AGGREGATIONS
    options = record.options(objectives.make(name, **(record.only or {})))
    assert list(options) == list(record.setting)
    assert not any(isinstance(value, Of) for value in options.values())


def test_a_check_is_claimed_where_a_test_runs_it_and_only_there() -> None:
    available = {name for name, records in CONFORMANCE.items() if records["trl"].setting is not None}
    trl = TRL_TEST.read_text(encoding="utf-8")
    assert set(re.findall(r'^    \("(\w+)", \{', trl, re.MULTILINE)) == available, "CASES must cover every row"
    others = OTHER_TEST.read_text(encoding="utf-8")
    for framework in set(CHECKED) - {"trl"}:
        assert f'available("{framework}")' in others, "parametrised over every row of the framework"


def test_options_follow_the_fields() -> None:
    verl = CONFORMANCE["cispo"]["verl"]
    assert verl.options(objectives.CISPO(cap=4))["clip_ratio_high"] == 3
    grpo = CONFORMANCE["grpo"]
    assert grpo["trl"].options(objectives.GRPO())["delta"] is None
    assert grpo["verl"].options(objectives.GRPO())["clip_ratio_c"] == NO_LIMIT
    assert grpo["verl"].options(objectives.GRPO(dual_clip=3))["clip_ratio_c"] == 3
    with pytest.raises(ValueError, match=r"ratio_cap = 20\.0 has no setting there; expected inf"):
        CONFORMANCE["dppo_tv"]["skyrl"].options(objectives.DPPOTV())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_markdown_has_a_row_per_framework(name: str) -> None:
    lines = as_markdown(name).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(FRAMEWORKS.values())
    assert {line.count("|") for line in lines} == {6}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_command_prints_the_records(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert run([name]) == 0
    text = capsys.readouterr().out.partition("The same gradient elsewhere:\n")[2]
    assert text == as_text(name, 90) + "\n"
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")] == list(FRAMEWORKS.values())
    assert max(len(line) for line in text.splitlines()) <= 90


def test_a_method_from_elsewhere_needs_no_records() -> None:
    assert "No framework" in as_markdown("toy")
    assert "No framework" in as_text("toy")


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFORMANCE["is"]["trl"].note = "changed"  # type: ignore[misc]
    assert str(Of(field="cap", plus=-1)) == "cap - 1"
    assert Conformance().setting is None
