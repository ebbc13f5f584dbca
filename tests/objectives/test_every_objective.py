"""One suite over every registered method: the checks of `dgpo.testing`, and what is asked of our own beside them.

A method added to the registry is tested here with its defaults, without an edit; settings worth testing beside the
defaults go into `VARIANTS`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dgpo import objectives
from dgpo.objectives import OBJECTIVES, Objective
from dgpo.testing import CHECKS, Check
from dgpo.testing.contract import changes

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dgpo": [
        {"n": 0, "m": math.inf},
        {"n": 2, "m": 1},
        {"n": 3, "m": 3, "eps_low": 0.1, "eps_high": 0.28},
        {"n": 0.5, "m": 1.5},
        {"n": math.inf, "m": math.inf},
        {"eps_low": 0, "eps_high": 0},
        {"reverse_cap": 3, "right_cap": 5},
        {"m": 1, "reverse_cap": 1.5},
    ],
    "grpo": [
        {"eps_high": 0.28},
        {"dual_clip": 3},
        {"eps_low": 0.3, "dual_clip": 1.1},
        {"eps_low": 0, "eps_high": 0},
    ],
    "maspo": [
        {"alpha": 0.5},
        {"alpha": 0, "sigma_base": 0.5},
        {"sigma_high": math.inf, "adv_low": 0, "adv_high": math.inf},
        {"beta_pos": 0.3, "beta_neg": 0.3},
    ],
    "cispo": [{"cap": 1}, {"cap": 1.2}, {"cap": math.inf}],
    "cispo_two_sided": [{"eps_high": 4, "eps_low": 1}, {"eps_low": 0, "eps_high": 0}],
    "gppo": [{"eps_high": 0.28, "dual_clip": 10}, {"eps_low": 0, "eps_high": 0}],
    "ce_gppo": [
        {"beta1": 1, "beta2": 1},
        {"beta1": 0, "beta2": 0},
        {"beta1": 0.5, "beta2": 2, "dual_clip": 1.5},
        {"beta1": 3, "eps_low": 0},
    ],
    "aspo": [
        {"entropy_quantile": 0.8},
        {"dual_clip_pos": math.inf, "dual_clip_neg": math.inf},
        {"dual_clip_pos": 1.5, "dual_clip_neg": 2, "eps_low": 0.1, "eps_high": 0.28},
    ],
    "sapo": [{"tau_pos": 5, "tau_neg": 0.1}],
    "sapo_unilateral": [{"tau_pos": 5, "tau_neg": 0.1}],
    "dac": [{"dual_clip": 10}, {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 3}, {"eps_low": 0, "eps_high": 0}],
    "bapo": [{"c_low": 0.7, "c_high": 1.3, "dual_clip": 3}, {"target_ratio": 0.5}, {"target_ratio": 5}],
    "bapo_algorithm1": [{"c_low": 1, "c_high": 1}, {"rho0": 0.9, "dual_clip": 3}],
    "gspo": [{"eps_low": 0.2, "eps_high": 0.28}, {"eps_low": 0, "eps_high": 0}],
    "gmpo": [
        {"log_clip_low": 0, "log_clip_high": 0.1},
        {"log_clip_low": 1, "log_clip_high": math.inf},
        {"log_clip_low": math.inf, "log_clip_high": math.inf},
    ],
    "vespo": [{"k_pos": 1.5, "lambda_neg": 2.5}, {"k_pos": 0, "k_neg": 0}],
    "dppo_tv": [{"delta_low": 1, "delta_high": 1}, {"delta_low": 0.1, "ratio_cap": math.inf}, {"ratio_cap": 1}],
    "dppo_kl": [
        {"delta_low": math.inf, "delta_high": math.inf},
        {"delta_low": 0.01, "delta_high": 0.2, "ratio_cap": 1e4},
        {"ratio_cap": 1},
    ],
    "drpo": [{"delta": 0.3}, {"delta": math.inf}],
}
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
    assert {name for name, cls in OBJECTIVES.items() if "entropy" in cls().reads} == set()
