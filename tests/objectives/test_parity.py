"""Values and gradients against the recorded values of tests/golden."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo
from dgpo import TokenBatch, aggregation, correction, objectives, policy_loss
from dgpo.advantages import entropy_shaped
from dgpo.correction import Correction

GOLDEN = Path(__file__).parent.parent / "golden"
OTHER = {"extreme"}
"""Of another format than one list of cases."""
LEAST_CASES = {"dgpo": 36, "maspo": 30, "bapo": 30}
"""Every other file has at least 24."""
WITH_PAPER = dict.fromkeys(("maspo", "gppo", "ce_gppo", "aspo", "dac", "bapo", "drpo", "m2po", "fipo"), 3)
"""Files with cases in which the authors' code deviates from their paper."""
OUR_AGGREGATION = {"sequence-mean-geometric": "seq-mean-token-mean", "only-token-mean": "token-mean"}
CONVENTION = "clamp20_keep_grad"


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def objective_of(case: dict[str, Any]) -> str:
    """Our name: that of the method in the file, unless the case says another."""
    return str(case.get("objective", case["method"]))


RECORDED = {path.stem: read(path.stem) for path in sorted(GOLDEN.glob("*.json")) if path.stem not in OTHER}
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


def as_objective(case: dict[str, Any], fields: dict[str, Any], objective: str) -> objectives.Objective:
    """The recorded hyper-parameters as fields: either search of BAPO has its own target."""
    if objective == "bapo":
        fields.pop("rho0")
    elif objective == "bapo_algorithm1":
        fields.pop("target_ratio")
        fields["dual_clip"] = case["paper_algorithm1"]["dual_clip"]
    return objectives.make(objective, **fields)


def loss_and_gradient(
    case: dict[str, Any], objective: str, **overrides: float
) -> tuple[Tensor, Tensor, objectives.Objective]:
    """The last is the objective, calibrated on the case."""
    fields = dict(case["hyperparameters"])
    length, factor = taken_out(fields)
    logprob, advantage = matrix(case["logp"]).requires_grad_(), matrix(case["advantages"])
    entropy = matrix(case["entropy"]) if "entropy" in case else None
    if "shaped_advantages" in case:
        assert entropy is not None
        advantage = entropy_shaped(advantage, entropy, fields.pop("alpha"), fields.pop("kappa"))
        shaped = matrix(case["shaped_advantages"])
        valid = matrix(case["mask"]).bool()
        torch.testing.assert_close(advantage[valid], shaped[valid], rtol=1e-12, atol=1e-15)
    how = OUR_AGGREGATION.get(case["aggregation"], case["aggregation"])
    norm = {"length": length or logprob.shape[1]} if how == "seq-mean-token-sum-norm" else {}
    made = as_objective(case, fields | overrides, objective)
    out = policy_loss(
        logprob,
        matrix(case["old_logp"]),
        advantage,
        matrix(case["mask"]),
        objective=made,
        aggregation=aggregation.make(how, **norm),
        rollout_logprob=matrix(case["rollout_logp"]) if "rollout_logp" in case else None,
        correction=factor,
        entropy=entropy,
    )
    (gradient,) = torch.autograd.grad(out.value, logprob)
    tokens = TokenBatch(logprob.detach(), matrix(case["old_logp"]), advantage, matrix(case["mask"]), entropy=entropy)
    return out.value.detach(), gradient, made.calibrate(tokens)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_value_and_gradient_equal_the_recorded_values(name: str, index: int) -> None:
    case = RECORDED[name][index]
    expected = case.get("paper", case)
    value, gradient, _ = loss_and_gradient(case, objective_of(case))
    recorded = matrix(expected["grad_logp"])
    # the authors' autograd of a sigmoid cancels; every other file is compared token by token
    floor = 1e-6 * recorded.abs().max().item() if name == "sapo" else 1e-15
    torch.testing.assert_close(gradient, recorded, rtol=1e-6, atol=floor)
    if case.get("compared") != "gradient":
        assert value.item() == pytest.approx(case.get("loss_potential", expected["loss"]), rel=1e-6, abs=0)


@pytest.mark.parametrize(
    "name", [name for name, cases in RECORDED.items() if any("compared" in case for case in cases)]
)
def test_the_value_is_not_compared_only_where_it_differs(name: str) -> None:
    """φ is not the authors' surrogate, and where it happens to be, its comparison must not be skipped."""
    cases = RECORDED[name]
    assert {case["compared"] for case in cases} == {"gradient"}
    pairs = [(loss_and_gradient(case, objective_of(case))[0].item(), case.get("paper", case)["loss"]) for case in cases]
    assert any(value != pytest.approx(loss, rel=1e-3) for value, loss in pairs)


@pytest.mark.parametrize("index", range(len(RECORDED["sapo"])))
def test_sapos_value_differs_by_a_constant(index: int) -> None:
    """φ is the authors' (4/τ) · sigmoid(τ (r - 1)) less 2/τ - 1."""
    case = RECORDED["sapo"][index]
    value, _, made = loss_and_gradient(case, "sapo")
    assert isinstance(made, objectives.SAPO)
    advantage, mask = matrix(case["advantages"]), matrix(case["mask"])
    tau = made.tau_neg + (made.tau_pos - made.tau_neg) * (advantage > 0).double()
    shift = ((2 / tau - 1) * advantage * mask).sum(-1) / mask.sum(-1)
    assert value.item() - shift.mean().item() == pytest.approx(case["loss"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("index", range(len(RECORDED["bapo"])))
def test_bapos_search_finds_the_recorded_bounds(index: int) -> None:
    case = RECORDED["bapo"][index]
    _, _, found = loss_and_gradient(case, "bapo")
    assert isinstance(found, objectives.BAPO)
    assert found.c_low == pytest.approx(case["bounds"]["c_low"], rel=1e-12)
    assert found.c_high == pytest.approx(case["bounds"]["c_high"], rel=1e-12)


def test_p3os_effective_sample_size_is_the_recorded_one() -> None:
    for case in RECORDED["p3o"]:
        _, _, found = loss_and_gradient(case, "p3o")
        assert isinstance(found, objectives.P3O)
        assert found.ess == pytest.approx(case["ess"], rel=1e-8)


@pytest.mark.parametrize("index", range(len(RECORDED["bapo"])))
def test_bapos_paper_is_an_objective_of_its_own(index: int) -> None:
    """The search of Algorithm 1 with its own target, without a dual clip; independent of the authors' code."""
    case = RECORDED["bapo"][index]
    expected = case["paper_algorithm1"]
    value, gradient, found = loss_and_gradient(case, "bapo_algorithm1")
    assert isinstance(found, objectives.BAPOAlgorithm1)
    torch.testing.assert_close(gradient, matrix(expected["grad_logp"]), rtol=1e-6, atol=1e-15)
    assert value.item() == pytest.approx(expected["loss"], rel=1e-6, abs=0)
    assert (found.c_low, found.c_high) == pytest.approx((expected["c_low"], expected["c_high"]), rel=1e-12)


def test_dcpos_only_token_mean_of_the_readme_is_a_sum_of_means() -> None:
    """Recorded as `paper_otm`: a sum over responses of their token means, so B times our mean of them."""
    cases = [case for case in RECORDED["dac"] if "paper_otm" in case]
    assert len(cases) >= 3
    for case in cases:
        _, gradient, _ = loss_and_gradient({**case, "aggregation": "seq-mean-token-mean"}, "dac")
        recorded = matrix(case["paper_otm"]["grad_logp"])
        torch.testing.assert_close(len(gradient) * gradient, recorded, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("index", UNCLAMPED)
def test_maspo_without_the_clamps_of_the_code_is_the_papers_equation(index: int) -> None:
    case = RECORDED["maspo"][index]
    value, gradient, _ = loss_and_gradient(case, "maspo", sigma_high=math.inf, adv_low=0, adv_high=math.inf)
    expected = case["paper_unclamped_sigma"]
    torch.testing.assert_close(gradient, matrix(expected["grad_logp"]), rtol=1e-6, atol=1e-15)
    assert value.item() == pytest.approx(expected["loss"], rel=1e-6, abs=0)


def test_every_file_was_exercised() -> None:
    """The numbers of cases, and that the special ones are among them, so that an emptied file cannot pass."""
    assert [name for name, cases in RECORDED.items() if len(cases) < LEAST_CASES.get(name, 24)] == []
    assert len(RECORDED) >= 22
    assert len(UNCLAMPED) == 17
    papers = {name: sum("paper" in case for case in RECORDED[name]) for name in WITH_PAPER}
    assert papers == WITH_PAPER
    assert sum("entropy" in case for case in RECORDED["aspo"]) == 9
    assert all("paper_algorithm1" in case for case in RECORDED["bapo"])
    assert any(len(set(row)) > 1 for case in RECORDED["gspo_token"] for row in case["advantages"])
    assert all("shaped_advantages" in case for case in RECORDED["entropy_advantage"])
    assert {case["hyperparameters"]["correction"] for case in RECORDED["tis"]} == {"truncate", "icepop"}
    assert {case["hyperparameters"]["level"] for case in RECORDED["tis"]} == {"token", "sequence"}
    assert any("two_sided_delta" in case["hyperparameters"] for case in RECORDED["grpo_no_dual_clip"])
    for name, cases in RECORDED.items():
        assert {objective_of(case) for case in cases} < set(objectives.OBJECTIVES)
        assert len({objective_of(case) for case in cases}) == 1, name
        assert any(value != 0 for case in cases for row in case["grad_logp"] for value in row)
    assert len(EXTREME) == 16
    assert len(FINITE) == 15
    assert all(len(case["methods"]) == 8 for case in EXTREME)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_method_with_code_of_its_authors_has_recorded_figures(name: str) -> None:
    """The search of BAPO's paper is recorded beside that of its authors' code, as `paper_algorithm1`."""
    papers = objectives.OBJECTIVES[name].papers
    if papers and papers[0].code:
        recorded = {objective_of(cases[0]) for cases in RECORDED.values()} | {"bapo_algorithm1"}
        assert name in recorded, f"{papers[0].code} is the authors' code; record tests/golden/{name}.json from it"


@pytest.mark.parametrize("how", aggregation.AGGREGATIONS)
def test_every_aggregation_is_in_most_files(how: str) -> None:
    """Some authors force one: see the files of SAPO, GSPO, GMPO, VESPO and DRPO."""
    found = [
        name
        for name, cases in RECORDED.items()
        if any(OUR_AGGREGATION.get(case["aggregation"], case["aggregation"]) == how for case in cases)
    ]
    assert len(found) >= 16


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
