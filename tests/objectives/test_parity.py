"""Values and gradients against the recorded figures of tests/golden, and weights against the table of the reference."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo
from dgpo import TokenBatch, aggregation, correction, objectives, policy_loss
from dgpo.correction import Correction

GOLDEN = Path(__file__).parent.parent / "golden"
OBJECTIVE_OF_FILE = {
    "dgpo": "dgpo",
    "maspo": "maspo",
    "grpo": "grpo",
    "grpo_no_dual_clip": "grpo",
    "dapo": "grpo",
    "tis": "grpo",
}
NUMBER_OF_CASES = {"dgpo": 36, "maspo": 30, "grpo": 24, "grpo_no_dual_clip": 24, "dapo": 24, "tis": 24}
CONVENTION = "clamp20_keep_grad"


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


RECORDED = {name: read(name) for name in OBJECTIVE_OF_FILE}
CASES = [pytest.param(name, i, id=f"{name}-{i}") for name, cases in RECORDED.items() for i in range(len(cases))]
UNCLAMPED = [i for i, case in enumerate(RECORDED["maspo"]) if "paper_unclamped_sigma" in case]
EXTREME = read("extreme")["cases"]
FINITE = [case for case in EXTREME if not case["optional"]]


def matrix(rows: list[list[Any]], dtype: torch.dtype = torch.float64) -> Tensor:
    """The recorded rows; non-finite numbers are written as strings."""
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=dtype)


def taken_out(fields: dict[str, Any]) -> tuple[float | None, Correction | None]:
    """Remove what belongs to the aggregation and the correction from a case's hyper-parameters, and return it."""
    length = fields.pop("length_normalizer", None)
    if fields.get("two_sided_delta") is not None:
        fields["dual_clip"] = fields["two_sided_delta"]
    fields.pop("two_sided_delta", None)
    kind = fields.pop("correction", None)
    if kind is None:
        return length, None
    cls = {"truncate": correction.Truncate, "icepop": correction.Band}[kind]
    own = {name: fields.pop(name) for name in ("level", "cap", "band_low", "band_high") if name in fields}
    return length, cls(**own)


def loss_and_gradient(case: dict[str, Any], objective: str, **overrides: float) -> tuple[Tensor, Tensor]:
    fields = dict(case["hyperparameters"])
    length, factor = taken_out(fields)
    logprob = matrix(case["logp"]).requires_grad_()
    how = case["aggregation"]
    norm = {"length": length or logprob.shape[1]} if how == "seq-mean-token-sum-norm" else {}
    out = policy_loss(
        logprob,
        matrix(case["old_logp"]),
        matrix(case["advantages"]),
        matrix(case["mask"]),
        objective=objectives.make(objective, **(fields | overrides)),
        aggregation=aggregation.make(how, **norm),
        rollout_logprob=matrix(case["rollout_logp"]) if "rollout_logp" in case else None,
        correction=factor,
    )
    (gradient,) = torch.autograd.grad(out.value, logprob)
    return out.value.detach(), gradient


@pytest.mark.parametrize(("name", "index"), CASES)
def test_value_and_gradient_equal_the_recorded_figures(name: str, index: int) -> None:
    case = RECORDED[name][index]
    expected = case.get("paper", case)
    value, gradient = loss_and_gradient(case, OBJECTIVE_OF_FILE[name])
    torch.testing.assert_close(gradient, matrix(expected["grad_logp"]), rtol=1e-6, atol=1e-15)
    recorded = case["loss_potential"] if name == "dgpo" else expected["loss"]
    assert value.item() == pytest.approx(recorded, rel=1e-6, abs=0)


@pytest.mark.parametrize("index", UNCLAMPED)
def test_maspo_without_the_clamps_of_the_code_is_the_papers_equation(index: int) -> None:
    case = RECORDED["maspo"][index]
    value, gradient = loss_and_gradient(case, "maspo", sigma_high=math.inf, adv_low=0, adv_high=math.inf)
    expected = case["paper_unclamped_sigma"]
    torch.testing.assert_close(gradient, matrix(expected["grad_logp"]), rtol=1e-6, atol=1e-15)
    assert value.item() == pytest.approx(expected["loss"], rel=1e-6, abs=0)


def test_every_file_was_exercised() -> None:
    """The numbers of cases, and that the special ones are among them, so that an emptied file cannot pass."""
    assert {name: len(cases) for name, cases in RECORDED.items()} == NUMBER_OF_CASES
    assert len(CASES) == sum(NUMBER_OF_CASES.values())
    assert len(UNCLAMPED) == 17
    assert sum("paper" in case for case in RECORDED["maspo"]) == 3
    assert {case["hyperparameters"]["correction"] for case in RECORDED["tis"]} == {"truncate", "icepop"}
    assert {case["hyperparameters"]["level"] for case in RECORDED["tis"]} == {"token", "sequence"}
    assert any("two_sided_delta" in case["hyperparameters"] for case in RECORDED["grpo_no_dual_clip"])
    for cases in RECORDED.values():
        assert {case["aggregation"] for case in cases} == set(aggregation.AGGREGATIONS)
        assert any(value != 0 for case in cases for row in case["grad_logp"] for value in row)
    assert len(EXTREME) == 16
    assert len(FINITE) == 15
    assert all(len(case["methods"]) == 8 for case in EXTREME)


def expected_extreme(run: dict[str, Any]) -> dict[str, Any]:
    expected = run["expected"][CONVENTION]
    while isinstance(expected, str):
        expected = run["expected"][expected.removeprefix("same as ")]
    return expected


def extreme_runs(dtype: torch.dtype) -> list[Any]:
    wanted = [case for case in FINITE if dtype == torch.float64 or case["float32_safe"]]
    suffix = str(dtype).removeprefix("torch.")
    return [
        pytest.param(case, run, dtype, id=f"{case['id']}-{run['method']}{i}-{suffix}")
        for case in wanted
        for i, run in enumerate(case["methods"])
    ]


@pytest.mark.parametrize(("case", "run", "dtype"), [*extreme_runs(torch.float64), *extreme_runs(torch.float32)])
def test_extreme_inputs(case: dict[str, Any], run: dict[str, Any], dtype: torch.dtype) -> None:
    expected = expected_extreme(run)
    logprob = matrix(case["logp"], dtype).requires_grad_()
    out = policy_loss(
        logprob,
        matrix(case["old_logp"], dtype),
        matrix(case["advantages"], dtype),
        matrix(case["mask"], dtype),
        objective=objectives.make(run["method"], **run["hyperparameters"]),
        aggregation=case["aggregation"],
    )
    (gradient,) = torch.autograd.grad(out.value, logprob)
    value = expected["loss_potential"] if run["method"] == "dgpo" else expected["loss"]
    tolerance, floor = (1e-6, 0.0) if dtype == torch.float64 else (2e-5, 1e-30)
    assert gradient.dtype == out.value.dtype == dtype
    torch.testing.assert_close(gradient, matrix(expected["grad_logp"], dtype), rtol=tolerance, atol=floor)
    assert out.value.item() == pytest.approx(float(value), rel=tolerance, abs=floor)


def test_float32_runs_are_among_the_extreme_ones() -> None:
    assert len(extreme_runs(torch.float64)) == 15 * 8
    assert len(extreme_runs(torch.float32)) == sum(case["float32_safe"] for case in FINITE) * 8 > 0


def test_an_infinite_logprob_at_a_valid_position_is_refused() -> None:
    (case,) = [case for case in EXTREME if case["optional"]]
    tokens = TokenBatch(*(matrix(case[key]) for key in ("logp", "old_logp", "advantages", "mask")))
    with pytest.raises(ValueError, match=r"logprob\[0, 0\] = -inf .*row 0, column 0"):
        dgpo.check(tokens)


# Rows of the table of weights at q = e^-6.9, eps 0.2, to the digits that are printed there.
# Columns: (A, log ratio).
COLUMNS = [(-1, -0.5), (-1, -2.0), (-1, 2.0), (1, -2.0), (1, 0.4), (1, 3.0)]
WEIGHTS = {
    "IS": ("dgpo", {"n": 0, "m": math.inf}, ".607 .135 7.39 .135 1.49 20.1"),
    "GRPO": ("grpo", {}, "0 0 7.39 .135 0 0"),
    "GRPO + dual clip 3": ("grpo", {"dual_clip": 3}, "0 0 0 .135 0 0"),
    "MASPO(.3)": ("maspo", {"alpha": 0.3}, ".606 .134 7.39 .135 1.49 1.31"),
    "DGPO(1,1)": ("dgpo", {"n": 1, "m": 1}, ".460 .0229 7.39 .135 1.20 1.2"),
    "DGPO(1,2)": ("dgpo", {"n": 1, "m": 2}, ".460 .0229 7.39 .135 1.34 4.91"),
    "DGPO(2,2)": ("dgpo", {"n": 2, "m": 2}, ".349 .00387 7.39 .135 1.34 4.91"),
    "DGPO(3,3)": ("dgpo", {"n": 3, "m": 3}, ".264 6.55e-4 7.39 .135 1.39 7.85"),
}


@pytest.mark.parametrize("row", WEIGHTS)
@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=[f"A={a:+d} x={x:+}" for a, x in COLUMNS])
def test_weights_of_the_reference_table(row: str, column: int) -> None:
    name, fields, figures = WEIGHTS[row]
    advantage, x = COLUMNS[column]
    old = torch.tensor([[-6.9]], dtype=torch.float64)
    tokens = TokenBatch(old + x, old, torch.tensor([float(advantage)]), torch.ones(1, 1, dtype=torch.bool))
    weight = objectives.make(name, **fields).weight(tokens).item()
    printed = Decimal(figures.split()[column])
    if printed == 0:
        assert weight == 0
    else:
        half_a_digit = 0.5 * 10.0 ** printed.as_tuple().exponent
        assert weight == pytest.approx(float(printed), abs=half_a_digit * (1 + 1e-9))
