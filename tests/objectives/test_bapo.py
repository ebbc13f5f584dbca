"""BAPO: what either search finds, in which order it looks, and what becomes of a batch without one side."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from closed_forms import NEAR, Method, by_region, clipped
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.objectives import BAPO, BAPOAlgorithm1
from dgpo.objectives.bapo import AdaptiveClip


def bapo_form(x: Any, q: Any, sign: int, c_low: Any, c_high: Any, dual_clip: Any, **_: Any) -> Any:
    return clipped(x, c_low, c_high, sign, dual_clip)


BOUNDS: list[dict[str, Any]] = [{"c_low": 0.7, "c_high": 1.3}, {"c_low": 1, "c_high": 1, "dual_clip": 1 + NEAR}]
METHODS = {
    "bapo": Method(
        closed_form=bapo_form,
        settings=[{"c_low": 0.7, "c_high": 1.3, "dual_clip": 3}, {"target_ratio": 0.5}, {"target_ratio": 5}],
        extreme=BOUNDS,
    ),
    "bapo_algorithm1": Method(
        closed_form=bapo_form,
        settings=[{"c_low": 1, "c_high": 1}, {"rho0": 0.9, "dual_clip": 3}],
        extreme=BOUNDS,
    ),
}

test_closed_form = by_region(METHODS)


VERSIONS = [BAPO, BAPOAlgorithm1]
both = pytest.mark.parametrize("version", VERSIONS)
Row = tuple[float, float, float]
"""(log ratio, A, log π_old) of a token."""
rows = st.lists(
    st.tuples(st.floats(-3, 3), st.floats(-2, 2), st.floats(-6, -3.01)).map(
        lambda row: tuple(round(v, 3) for v in row)
    ),
    min_size=1,
    max_size=10,
)


def batch_of(drawn: list[Row]) -> TokenBatch:
    x, advantage, old = torch.tensor(drawn, dtype=torch.float64).reshape(-1, 3).unbind(1)
    logprob = (old + x).unsqueeze(0)
    return TokenBatch(logprob, old.unsqueeze(0), advantage.unsqueeze(0), torch.ones_like(logprob, dtype=torch.bool))


def sums(tokens: TokenBatch, c_low: float, c_high: float, weigh_with_q: bool) -> tuple[float, float]:
    """P and N, token by token."""
    positive = negative = 0.0
    for x, a, old, valid in zip(
        (tokens.logprob - tokens.old_logprob).flatten().tolist(),
        tokens.advantage.flatten().tolist(),
        tokens.old_logprob.flatten().tolist(),
        tokens.mask.flatten().tolist(),
        strict=True,
    ):
        mass = abs(a) * (math.exp(old) if weigh_with_q else 1.0)
        if valid and a > 0:
            positive += mass * min(math.exp(x), c_high)
        elif valid and a < 0:
            negative += mass * max(math.exp(x), c_low)
    return positive, negative


def walk(tokens: TokenBatch, objective: AdaptiveClip) -> tuple[float, float]:
    """Either search as its text tells it, one step at a time."""
    low, high, first = objective.c_low_start, objective.c_high_start, isinstance(objective, BAPO)

    def reached() -> bool:
        positive, negative = sums(tokens, low, high, weigh_with_q=not first)
        if isinstance(objective, BAPO):
            return positive >= objective.target_ratio * negative
        assert isinstance(objective, BAPOAlgorithm1)
        return positive >= objective.rho0 * (positive + negative)

    def raise_low() -> None:
        nonlocal low
        while not reached() and low < objective.c_low_max:
            low = min(low + objective.c_low_step, objective.c_low_max)

    def raise_high() -> None:
        nonlocal high
        while not reached() and high < objective.c_high_max:
            high = min(high + objective.c_high_step, objective.c_high_max)

    for phase in (raise_low, raise_high) if first else (raise_high, raise_low):
        phase()
    return low, high


@both
@given(drawn=rows, steps=st.tuples(*[st.sampled_from([0.05, 0.07, 0.4, 5.0])] * 2))
def test_the_search_is_that_of_its_text(
    version: type[AdaptiveClip], drawn: list[Row], steps: tuple[float, float]
) -> None:
    """The text is the authors' loop: the next bound is min(c + step, c_max), also where no step meets the end."""
    tokens, objective = batch_of(drawn), version(c_low_step=steps[0], c_high_step=steps[1])
    found = objective.calibrate(tokens)
    assert (found.c_low, found.c_high) == pytest.approx(walk(tokens, objective), rel=1e-9)


@given(drawn=rows, low=st.floats(0.05, 0.95), higher=st.floats(0.0, 0.5), high=st.floats(1, 3))
def test_raising_c_low_never_raises_the_ratio(drawn: list[Row], low: float, higher: float, high: float) -> None:
    """A clipped negative token counts with c_low · |A|, more than r · |A|."""
    tokens = batch_of(drawn)
    for weigh_with_q in (False, True):
        positive, negative = sums(tokens, low, high, weigh_with_q)
        same, more = sums(tokens, min(low + higher, 1.0), high, weigh_with_q)
        assert same == positive
        assert more >= negative


@given(drawn=rows, target=st.floats(0.1, 5))
def test_so_the_first_phase_runs_to_its_end_once_it_starts(drawn: list[Row], target: float) -> None:
    found = BAPO(target_ratio=target).calibrate(batch_of(drawn))
    assert found.c_low in (0.6, pytest.approx(0.9))
    if found.c_high != 1.2:
        assert found.c_low == pytest.approx(0.9)


@both
def test_the_ends_are_reached_whatever_the_rounding(version: type[AdaptiveClip]) -> None:
    """0.6 + 6 · 0.05 and 1.2 + 36 · 0.05, neither of which is exact."""
    hopeless = batch_of([(2.0, -1.0, -3.0), (0.0, 0.001, -3.0)])
    found = version().calibrate(hopeless)
    assert (found.c_low, found.c_high) == pytest.approx((0.9, 3.0), rel=1e-12)
    uneven = version(c_low_step=0.07, c_high_step=0.7).calibrate(hopeless)
    assert (uneven.c_low, uneven.c_high) == (0.9, 3.0)
    large = version(c_low_step=5.0, c_high_step=5.0).calibrate(hopeless)
    assert (large.c_low, large.c_high) == (0.9, 3.0)
    fixed = version(c_low_max=0.6, c_high_max=1.2).calibrate(hopeless)
    assert (fixed.c_low, fixed.c_high) == (0.6, 1.2)


def test_the_versions_raise_their_bounds_in_another_order() -> None:
    """Equal π_old and a target of as much positive as negative mass: then only the order differs."""
    tokens = batch_of([(1.0, 1.0, -4.0), (0.5, -1.0, -4.0)])  # P = min(e, c_high), N = e^0.5 = 1.65
    code, paper = BAPO().calibrate(tokens), BAPOAlgorithm1().calibrate(tokens)
    assert (code.c_low, code.c_high) == pytest.approx((0.9, 1.65), rel=1e-12)
    assert (paper.c_low, paper.c_high) == pytest.approx((0.6, 1.65), rel=1e-12)


def test_the_paper_weighs_with_the_probability() -> None:
    tokens = batch_of([(0.0, 1.0, -0.1), (0.0, -3.0, -9.0)])
    assert BAPOAlgorithm1().calibrate(tokens).c_high == 1.2
    assert BAPO().calibrate(tokens).c_high == pytest.approx(3.0)


def test_the_target_is_a_ratio_and_not_a_share() -> None:
    """P = 1 and N = 2: a ratio of 1/2, which the authors' script asks for, a share of 1/3."""
    tokens = batch_of([(0.0, 1.0, -4.0), (0.0, -2.0, -4.0)])
    assert BAPO(target_ratio=0.5).calibrate(tokens).c_high == 1.2
    assert BAPO(target_ratio=0.51).calibrate(tokens).c_high == pytest.approx(3.0)
    assert BAPOAlgorithm1(rho0=0.333).calibrate(tokens).c_high == 1.2
    assert BAPOAlgorithm1(rho0=0.334).calibrate(tokens).c_high == pytest.approx(3.0)


@both
@pytest.mark.parametrize(
    ("drawn", "bounds"),
    [
        ([(0.3, 1.0, -4.0), (0.1, 0.5, -4.0)], (0.6, 1.2)),
        ([(0.3, -1.0, -4.0), (0.1, -0.5, -4.0)], (0.9, 3.0)),
        ([(0.3, 0.0, -4.0)], (0.6, 1.2)),
    ],
    ids=["no negatives", "no positives", "no advantage"],
)
def test_a_batch_without_one_side(version: type[AdaptiveClip], drawn: list[Row], bounds: tuple[float, float]) -> None:
    """Without negatives nothing is missing; without positives no bound is enough."""
    found = version().calibrate(batch_of(drawn))
    assert (found.c_low, found.c_high) == pytest.approx(bounds, rel=1e-12)


@both
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 4)])
def test_an_empty_batch_keeps_the_start_bounds(version: type[AdaptiveClip], shape: tuple[int, int]) -> None:
    zeros = torch.zeros(shape, requires_grad=True)
    mask = torch.zeros(shape, dtype=torch.bool)
    advantage = torch.ones(shape[0])
    found = version().calibrate(TokenBatch(zeros, zeros.detach(), advantage, mask))
    assert (found.c_low, found.c_high) == (0.6, 1.2)
    assert policy_loss(zeros, zeros.detach(), advantage, mask, objective=version()).value.item() == 0


@both
def test_a_calibrated_objective_returns_itself(version: type[AdaptiveClip], make_batch: Any) -> None:
    given_bounds = version(c_low=0.75, c_high=1.4)
    assert given_bounds.calibrate(make_batch().tokens()) is given_bounds
    found = version().calibrate(make_batch().tokens())
    assert found.calibrate(make_batch(seed=1).tokens()) is found
    assert dataclasses.replace(found, c_low=None, c_high=None) == version()


@both
def test_uncalibrated_the_start_bounds_hold(version: type[AdaptiveClip], make_batch: Any) -> None:
    tokens = make_batch(spread=1.0).tokens()
    fixed = version(c_low=0.6, c_high=1.2)
    torch.testing.assert_close(version().weight(tokens), fixed.weight(tokens), rtol=0, atol=0)
    torch.testing.assert_close(version().potential(tokens), fixed.potential(tokens), rtol=0, atol=0)


@both
def test_the_bound_that_it_claims_covers_every_calibration(version: type[AdaptiveClip]) -> None:
    assert version(dual_clip=2).properties().upper_bound == 3
    assert version(dual_clip=5).properties().upper_bound == 5
    assert version(dual_clip=2, c_low=0.6, c_high=1.3).properties().upper_bound == 2
    assert version().properties().upper_bound == math.inf


@both
def test_the_loss_calibrates(version: type[AdaptiveClip], make_batch: Any) -> None:
    batch = make_batch(B=8, T=6, spread=1.0)
    found = version().calibrate(batch.tokens())
    assert found.c_low is not None

    def loss(objective: AdaptiveClip) -> Tensor:
        return policy_loss(batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective=objective).value

    assert loss(version()) == loss(found)
    assert found.calibrate(batch.tokens()) is found


@both
def test_all_ranks_find_the_same_bounds(
    version: type[AdaptiveClip], make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of two ranks, added up as torch.distributed would, give what one rank finds on the whole batch."""
    batch = make_batch(B=8, T=6, spread=1.0, seed=4)

    def part(rows: slice) -> TokenBatch:
        return TokenBatch(batch.logprob[rows], batch.old_logprob[rows], batch.advantage[rows], batch.mask[rows])

    objective = objectives.make(next(name for name, cls in objectives.OBJECTIVES.items() if cls is version))
    whole = objective.calibrate(part(slice(None)))
    seen: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: seen.append(sums.clone()))
    for rows_of_rank in (slice(0, 3), slice(3, 8)):
        objective.calibrate(part(rows_of_rank))
    total = seen[0] + seen[1]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.copy_(total))
    for rows_of_rank in (slice(0, 3), slice(3, 8)):
        assert objective.calibrate(part(rows_of_rank)) == whole


def test_a_step_that_makes_too_many_bounds_is_refused() -> None:
    said = r"BAPO: c_high_step = 1e-06 makes too many bounds from 1.2 to 3; expected at least 0.00018"
    with pytest.raises(ValueError, match=said):
        BAPO(c_high_step=1e-6)
    with pytest.raises(ValueError, match="too many bounds from 1.2 to 1e"):
        BAPO(c_high_max=1e9)
    assert BAPO(c_high_max=1e9, c_high_step=1e6).c_high_max == 1e9
