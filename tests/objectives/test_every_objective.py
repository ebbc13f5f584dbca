"""One suite over every registered method: the checks of `dgpo.testing`, and what is asked of our own beside them.

A method is tested here with its defaults and the settings that its own test file declares, without an edit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from closed_forms import methods

from dgpo import objectives
from dgpo.objectives import OBJECTIVES, Objective
from dgpo.testing import CHECKS, Check
from dgpo.testing.contract import changes

VARIANTS = {name: method.settings for name, method in methods().items()}
CASES = [(name, fields) for name in OBJECTIVES for fields in [{}, *VARIANTS.get(name, [])]]
every_case = pytest.mark.parametrize(
    ("name", "fields"),
    CASES,
    ids=[f"{name}({', '.join(f'{k}={v}' for k, v in fields.items())})" for name, fields in CASES],
)
every_name = pytest.mark.parametrize("name", OBJECTIVES)


@every_case
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_check(name: str, fields: dict[str, Any], check: Check) -> None:
    if fields and check is CHECKS["no_host_synchronisation"]:
        return  # slow, and fields change no code path that reads values
    check(objectives.make(name, **fields))


@every_case
def test_make_round_trips_asdict(name: str, fields: dict[str, Any]) -> None:
    objective = objectives.make(name, **fields)
    assert isinstance(objective, OBJECTIVES[name])
    assert all(field.kw_only for field in dataclasses.fields(objective))
    assert objectives.make(name, **dataclasses.asdict(objective)) == objective
    assert {key: getattr(objective, key) for key in fields} == fields


@every_case
def test_survives_yaml(name: str, fields: dict[str, Any]) -> None:
    objective = objectives.make(name, **fields)
    yaml = pytest.importorskip("yaml", reason="needs pyyaml: the extra train")
    text = yaml.safe_dump(dataclasses.asdict(objective))
    assert objectives.make(name, **yaml.safe_load(text)) == objective


@every_name
def test_declares_its_properties(name: str) -> None:
    """The base class claims nothing, so a method that forgot to declare its own must not get into the registry."""
    assert OBJECTIVES[name].properties is not Objective.properties


@every_name
def test_an_unknown_field_names_the_nearest_one(name: str) -> None:
    known = [field.name for field in dataclasses.fields(OBJECTIVES[name])]
    misspelt = max(known, key=len) + max(known, key=len)[-1] if known else "anything"
    with pytest.raises(ValueError, match=f"objective '{name}' has no field '{misspelt}'") as error:
        objectives.make(name, **{misspelt: 1})
    assert (f"did you mean {max(known, key=len)!r}?" if known else "its fields: none") in str(error.value)


@every_name
def test_documents_its_formula_and_its_source(name: str) -> None:
    text = OBJECTIVES[name].__doc__ or ""
    assert "w = " in text
    assert "arXiv" in text or "Source" in text


@every_name
def test_what_a_method_declares_changes_its_weight(name: str) -> None:
    """With some of the fields that it is declared for: at their limits (an infinite trust region), it may not."""
    cases = [objectives.make(name, **fields) for fields in [{}, *VARIANTS.get(name, [])]]
    for read in sorted(set().union(*(case.reads for case in cases))):
        declared = [case for case in cases if read in case.reads]
        assert any(changes(case, read, seed) for case in declared for seed in range(30)), read


def test_reads_depends_on_the_fields() -> None:
    assert "advantage_size" in objectives.make("maspo").reads
    assert "advantage_size" not in objectives.make("maspo", beta_pos=0.0, beta_neg=0.0).reads
    assert "batch" not in objectives.make("bapo", c_low=0.7, c_high=1.3).reads
    assert "entropy" not in objectives.make("aspo").reads
    assert "entropy" in objectives.make("aspo", entropy_quantile=0.8).reads
