"""ρ = π_old/μ in closed form, at the level of a token and of a response, and as a factor of the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo import TokenBatch, correction, policy_loss
from dgpo.correction import CORRECTIONS, Band, Correction, Geometric, Given, KPop, Reject, Truncate, Veto

OLD = [[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.0, -4.0, -2.0]]
SAMPLER = [[-1.6, -1.7, -0.5, -1.0], [-0.9, -1.3, -9.0, -2.0]]
MASK = [[True, True, False, True], [True, True, True, False]]


def tokens(old: list[list[float]] = OLD, sampler: list[list[float]] | None = SAMPLER) -> TokenBatch:
    old_logprob = torch.tensor(old, dtype=torch.float64)
    rollout = None if sampler is None else torch.tensor(sampler, dtype=torch.float64)
    mask = torch.tensor(MASK)
    return TokenBatch(old_logprob + 0.1, old_logprob, torch.tensor([1.0, -1.0]), mask, rollout_logprob=rollout)


def mismatch(level: str) -> list[list[float]]:
    """π_old/μ by token, or the product over the valid tokens of the response, in plain Python."""
    found = []
    for old, sampler, mask in zip(OLD, SAMPLER, MASK, strict=True):
        logs = [o - s if valid else 0.0 for o, s, valid in zip(old, sampler, mask, strict=True)]
        found.append([math.exp(sum(logs) if level == "sequence" else d) for d in logs])
    return found


def valid(values: Tensor | list[list[float]]) -> list[float]:
    rows = values.tolist() if isinstance(values, Tensor) else values
    return [value for row, mask in zip(rows, MASK, strict=True) for value, on in zip(row, mask, strict=True) if on]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [0.5, 1.5, 2.0, 1000.0])
def test_truncate_is_the_capped_mismatch(level: Any, cap: float) -> None:
    expected = [min(value, cap) for value in valid(mismatch(level))]
    assert valid(Truncate(level=level, cap=cap).factor(tokens())) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.0, 1.0), (0.9, 150.0)])
def test_band_drops_what_lies_outside(level: Any, low: float, high: float) -> None:
    expected = [value if low <= value <= high else 0.0 for value in valid(mismatch(level))]
    assert valid(Band(level=level, band_low=low, band_high=high).factor(tokens())) == pytest.approx(expected, rel=1e-13)


WHOSE = ("none", "token", "sequence", "batch")


@pytest.mark.parametrize(
    "corrected",
    [
        Given(values=torch.full((2, 4), 0.5)),
        Truncate(cap=1e9),
        Truncate(level="sequence", cap=1e9),
        Band(band_low=0, band_high=1e9),
        Band(level="sequence", band_low=0, band_high=1e9),
        Geometric(band_low=0.4, band_high=0.7, ratio="token"),
        Geometric(band_low=0.9, band_high=1.05),
        Reject(threshold=1.2),
        Reject(over="sum", threshold=2.3, estimator="k2"),
        Reject(over="token", threshold=0.16, estimator="k2"),
        Reject(over="token", threshold=9.0, ratio="sequence"),
        Veto(band_low=0.1),
        KPop(threshold=0.14, ratio="none"),
    ],
    ids=str,
)
def test_a_level_says_whose_log_probs_are_read(corrected: Correction) -> None:
    """Those of the token [0, 0] itself, of another one of its response, or of another response change ρ there.

    By several amounts, since a mask changes only where a threshold is crossed.
    """
    before = corrected.factor(tokens())[0, 0]
    found = "none"
    for whose, (row, column) in zip(WHOSE[1:], ((0, 0), (0, 1), (1, 0)), strict=True):
        for by in (0.25, -0.4, 1.5, -3.0):
            old = [list(values) for values in OLD]
            old[row][column] += by
            found = whose if corrected.factor(tokens(old))[0, 0] != before else found
    assert found == corrected.level


# --- rejections -------------------------------------------------------------------------------------------------------

FOLDER = Path(__file__).parent / "golden" / "corrections"
RECORDED = [
    pytest.param(case, id=f"{path.stem}-{case['setting']}-{number}")
    for path in sorted(FOLDER.glob("*.json"))
    for number, case in enumerate(json.loads(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("case", RECORDED)
def test_recorded_rejections(case: dict[str, Any]) -> None:
    """verl's mask times its weights, and the masks of SkyRL and slime."""
    old, sampler, mask, expected = (
        torch.tensor(case[name], dtype=torch.float64) for name in ("old_logprob", "rollout_logprob", "mask", "factor")
    )
    batch = TokenBatch(old, old, torch.ones(len(old)), mask.bool(), rollout_logprob=sampler)
    found = correction.make(case["correction"], **case["fields"]).factor(batch)
    torch.testing.assert_close(torch.where(mask.bool(), found, 0.0), expected, rtol=1e-9, atol=1e-11)


def test_recorded_rejections_keep_some_and_reject_some() -> None:
    cases = [case for (case,) in (param.values for param in RECORDED)]
    for name in ("reject", "geometric", "veto"):
        kept = [
            value > 0
            for case in cases
            if case["correction"] == name
            for factors, mask in zip(case["factor"], case["mask"], strict=True)
            for value, on in zip(factors, mask, strict=True)
            if on
        ]
        assert 0.1 < sum(kept) / len(kept) < 0.9, name


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("threshold", [0.001, 0.01, 0.1, 1.0])
def test_kpop_keeps_tokens_of_small_binary_divergence(threshold: float) -> None:
    """Over a grid of probabilities, both ends of the clamp included."""
    grid = [1e-9, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.9, 0.999, 1.0]
    pairs = [(p, q) for p in grid for q in grid]
    old, sampler = (torch.tensor([[math.log(pair[i]) for pair in pairs]], dtype=torch.float64) for i in (0, 1))
    batch = TokenBatch(old, old, torch.ones(1), torch.ones_like(old).bool(), rollout_logprob=sampler)
    found = KPop(threshold=threshold).factor(batch)[0].tolist()
    both = set()
    for (p, q), factor in zip(pairs, found, strict=True):
        inside = [min(max(x, 1e-6), 1 - 1e-6) for x in (p, q)]
        worst = max(binary_kl(*inside), binary_kl(*reversed(inside)))
        assert abs(worst - threshold) > 1e-9  # no rounding decides
        both.add(worst <= threshold)
        assert factor == pytest.approx(p / q if worst <= threshold else 0.0, rel=1e-12)
    assert both == {True, False}


def test_kpop_is_wide_in_ratio_for_rare_tokens() -> None:
    for q, ratio, kept in ((1e-4, 10.0, True), (0.09, 10.0, False), (0.09, 1.5, True)):
        old, sampler = (torch.tensor([[math.log(x)]], dtype=torch.float64) for x in (q * ratio, q))
        batch = TokenBatch(old, old, torch.ones(1), torch.ones(1, 1).bool(), rollout_logprob=sampler)
        assert bool(KPop().kept(batch)) is kept


@pytest.mark.parametrize("ratio", ["none", "token", "sequence"])
def test_kept_tokens_have_the_ratio_that_was_chosen(ratio: Any) -> None:
    everything = Veto(band_low=0, ratio=ratio, cap=1.5)
    expected = [1.0] * 6 if ratio == "none" else [min(value, 1.5) for value in valid(mismatch(ratio))]
    assert valid(everything.factor(tokens())) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("corrected", [Geometric(), Reject(), Reject(over="mean"), Veto(band_low=0.5), KPop()], ids=str)
def test_masked_tokens_reject_nothing(corrected: Correction) -> None:
    sampler = [[*row] for row in OLD]
    sampler[0][2], sampler[1][3] = -90.0, math.nan
    assert valid(corrected.factor(tokens(OLD, sampler))) == [1.0] * 6


def test_the_cases_above_reach_both_sides() -> None:
    by_token, by_sequence = valid(mismatch("token")), valid(mismatch("sequence"))
    assert min(by_token) < 0.5 < 2.0 < max(by_token)
    assert min(by_sequence) < 0.5 < 2.0 < max(by_sequence)


def test_the_edges_of_a_band_belong_to_it() -> None:
    matching = tokens(OLD, OLD)
    assert set(valid(Band(band_low=1.0, band_high=2.0).factor(matching))) == {1.0}
    assert set(valid(Band(band_low=0.5, band_high=1.0).factor(matching))) == {1.0}


@pytest.mark.parametrize(
    "corrected", [*(cls() for cls in CORRECTIONS.values()), Truncate(level="sequence"), Band(level="sequence")], ids=str
)
def test_a_sampler_that_is_the_trainer_needs_no_correction(corrected: Correction) -> None:
    assert valid(corrected.factor(tokens(OLD, OLD))) == [1.0] * 6


def test_a_sequence_shares_one_factor_and_ignores_its_masked_tokens() -> None:
    sampler = [[-1.6, -1.7, math.nan, -1.0], [-0.9, -1.3, -9.0, math.inf]]
    factor = Truncate(level="sequence", cap=1e9).factor(tokens(OLD, sampler))
    assert valid(factor) == pytest.approx(valid(mismatch("sequence")), rel=1e-13)
    assert (factor == factor[:, :1]).all()


def test_a_hopeless_mismatch_stays_finite() -> None:
    """The log mismatch is clamped to ±20, of a token and of the sum over a response."""
    far = [[-100.0, -300.0, 0.0, -50.0], [-1.0, -1.0, -1.0, -1.0]]
    near = [[-1.0, -1.0, -1.0, -1.0], [-100.0, -200.0, -300.0, -1.0]]
    for level in ("token", "sequence"):
        factor = Truncate(level=level, cap=1e12).factor(tokens(far, near))  # type: ignore[arg-type]
        assert valid(factor) == pytest.approx([math.exp(-20)] * 3 + [math.exp(20)] * 3, rel=1e-13)


def test_factors_are_detached_and_of_the_dtype_of_the_batch(make_batch: Callable[..., Any]) -> None:
    for dtype in (torch.float32, torch.float64):
        batch = make_batch(dtype=dtype)
        batch.rollout_logprob.requires_grad_()
        batch.old_logprob.requires_grad_()
        for corrected in (*(cls() for cls in CORRECTIONS.values()), Given(values=torch.ones(5, 1, requires_grad=True))):
            factor = corrected.factor(batch.tokens())
            assert (factor.shape, factor.dtype, factor.requires_grad) == (batch.mask.shape, dtype, False)


def test_given_values_are_taken_as_they_are() -> None:
    """Per token, or one per response; nothing at a masked position."""
    values = torch.tensor([[0.5, 1.5, math.nan, 2.0], [0.0, 1.0, 3.0, math.inf]])
    assert Given(values=values).factor(tokens()).tolist() == [[0.5, 1.5, 0.0, 2.0], [0.0, 1.0, 3.0, 0.0]]
    by_row = Given(values=torch.tensor([[0.5], [2.0]])).factor(tokens())
    assert by_row.tolist() == [[0.5, 0.5, 0.0, 0.5], [2.0, 2.0, 2.0, 0.0]]


@pytest.mark.parametrize("corrected", [Truncate(cap=1.3), Band(), Reject(threshold=0.1, ratio="token")], ids=str)
def test_the_correction_multiplies_the_policy_term_and_nothing_else(
    corrected: Correction, make_batch: Callable[..., Any]
) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    positional = (batch.logprob, batch.old_logprob, batch.advantage, batch.mask)
    extra = {"ref_logprob": batch.ref_logprob, "kl_coef": 0.2, "rollout_logprob": batch.rollout_logprob}
    rho = corrected.factor(batch.tokens())

    out = policy_loss(*positional, correction=corrected, **extra)
    same = policy_loss(batch.logprob, batch.old_logprob, batch.advantage.unsqueeze(1) * rho, batch.mask, **extra)
    torch.testing.assert_close(out.value, same.value, rtol=1e-12, atol=0)
    found, expected = (torch.autograd.grad(loss.value, batch.logprob)[0] for loss in (out, same))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    plain = policy_loss(*positional, **extra)
    torch.testing.assert_close(out.weight, plain.weight, rtol=0, atol=0)  # never folded into w
    assert out.statistics == plain.statistics


# --- making one, and what is refused ----------------------------------------------------------------------------------


def test_make_builds_by_name() -> None:
    assert correction.make("truncate", level="sequence", cap=3.0) == Truncate(level="sequence", cap=3.0)
    assert correction.make("band", band_low=0.1) == Band(band_low=0.1, band_high=2.0, level="token")
    assert Truncate() == Truncate(level="token", cap=2.0)
    assert Band(0.5, 3.0, level="sequence") == Band(band_low=0.5, band_high=3.0, level="sequence")
    with pytest.raises(ValueError, match=r"unknown correction 'truncated', did you mean 'truncate'\?"):
        correction.make("truncated")
    with pytest.raises(ValueError, match=r"correction 'band' has no field 'band_hihg', did you mean 'band_high'\?"):
        correction.make("band", band_hihg=3)


@pytest.mark.parametrize("corrected", [cls() for cls in CORRECTIONS.values()], ids=list(CORRECTIONS))
def test_a_correction_without_the_samplers_logprobs_is_refused(corrected: Correction) -> None:
    with pytest.raises(ValueError, match=r"pass rollout_logprob \[B, T\], got None"):
        corrected.factor(tokens(OLD, None))


@pytest.mark.parametrize("cls", [Truncate, Band])
def test_an_unknown_level_is_refused(cls: type[Correction]) -> None:
    with pytest.raises(
        ValueError, match=f"{cls.__name__}: level = 'response' is not allowed; expected 'token' or 'sequence'"
    ):
        cls(level="response")  # type: ignore[call-arg]


@pytest.mark.parametrize("cap", [0, -1.0, math.nan, True, "2"])
def test_an_impossible_cap_is_refused(cap: Any) -> None:
    with pytest.raises(ValueError, match=f"Truncate: cap = {cap!r} is not allowed; expected a number in"):
        Truncate(cap=cap)


@pytest.mark.parametrize(("low", "high"), [(2.0, 0.5), (1.0, 1.0), (-0.1, 2.0), (math.nan, 2.0), (0.5, math.nan)])
def test_an_impossible_band_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"Band: band_(low|high) = .* is not allowed; expected a number in"):
        Band(band_low=low, band_high=high)


def test_given_factors_are_compared_by_identity() -> None:
    one, other = (Given(values=torch.ones(2, 3)) for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2
    assert Truncate(cap=2.0) == Truncate(cap=2.0) != Truncate(cap=3.0)
