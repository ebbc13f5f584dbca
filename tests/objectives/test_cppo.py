"""CPPO: the closed form of one token, and the mask of whole responses against Algorithm 1 of the paper."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import Method, by_region
from mpmath import mpf

from dgpo import TokenBatch, objectives
from dgpo.objectives import CPPO


def cppo_form(x: Any, q: Any, sign: int, delta: Any, **_: Any) -> Any:
    """The first token has all of delta, whatever the budget: as in DPPO."""
    change = mpmath.exp(q) * (mpmath.exp(x) - 1)
    w = mpf(0) if sign * change > delta else mpmath.exp(x)
    return w, w, w


METHODS = {
    "cppo": Method(
        closed_form=cppo_form,
        settings=[{"delta": 1, "budget_min": 1, "budget_max": 1}],
        extreme=[{"delta": 1e-7}, {"delta": 1e-50}],
    ),
}

test_closed_form = by_region(METHODS)


def kept(x: list[float], q: list[float], advantage: float, objective: CPPO) -> list[bool]:
    """Algorithm 1, token by token, with the budget of eq. 22."""
    T, changes = len(x), [abs(math.exp(b + a) - math.exp(b)) for a, b in zip(x, q, strict=True)]
    place = (T - 1) * 0.9
    low, ordered = int(place), sorted(changes)
    quantile = ordered[low] + (place - low) * (ordered[min(low + 1, T - 1)] - ordered[low])
    budget = min(max(quantile, objective.budget_min), objective.budget_max)
    spent = allowed = 0.0
    found = []
    for t in range(T):
        position = 1 - (1 - objective.position_min) * t / max(T - 1, 1)
        limit = min(objective.delta, objective.delta + budget * allowed - spent)
        found.append(advantage * x[t] <= 0 or position * changes[t] <= limit)
        spent, allowed = spent + position * changes[t], allowed + position
    return found


@pytest.mark.parametrize("fields", [{}, {"delta": 0.15, "position_min": 0.3}, {"budget_min": 0.005, "budget_max": 0.1}])
def test_the_mask_is_that_of_the_algorithm(fields: dict[str, Any], make_batch: Any) -> None:
    objective, dropped, by_the_prefix = CPPO(**fields), 0, 0
    for seed in range(6):
        batch = make_batch(B=6, T=40, spread=0.4, seed=seed)
        weight = objective.weight(batch.tokens())
        for row, valid in enumerate(batch.mask):
            x = (batch.logprob - batch.old_logprob)[row][valid].tolist()
            q, advantage = batch.old_logprob[row][valid].tolist(), batch.advantage[row].item()
            keep = kept(x, q, advantage, objective)
            assert [w != 0 for w in weight[row][valid].tolist()] == keep
            dropped += keep.count(False)
            # nothing but the prefix drops a change of less than delta
            by_the_prefix += sum(
                not kept_here and abs(math.exp(b + a) - math.exp(b)) <= objective.delta
                for kept_here, a, b in zip(keep, x, q, strict=True)
            )
    assert dropped > 12
    assert by_the_prefix > 2


def test_without_a_budget_and_positions_it_is_dppo(make_batch: Any) -> None:
    tokens = make_batch(B=6, T=40, spread=0.7).tokens()
    free = CPPO(delta=0.1, position_min=1, budget_min=1, budget_max=1)
    same = objectives.make("dppo_tv", delta_low=0.1, delta_high=0.1, ratio_cap=math.inf)
    torch.testing.assert_close(free.weight(tokens), same.weight(tokens), rtol=1e-12, atol=0)


def test_a_prefix_that_has_drifted_drops_what_moves_further_and_keeps_what_comes_back() -> None:
    q = torch.full((1, 12), math.log(0.5), dtype=torch.float64)
    x = torch.full_like(q, math.log(1.2))
    x[0, -1] = math.log(0.9)
    weight = CPPO().weight(TokenBatch(q + x, q, torch.ones(1), torch.ones_like(q, dtype=torch.bool)))
    # each token changes by 0.1, of which 0.04 are free: after the second 0.2 - 2 · 0.06 are left, which is not enough
    assert weight[0, :2].tolist() == pytest.approx([1.2] * 2)
    assert (weight[0, 2:-1] == 0).all()
    assert weight[0, -1].item() == pytest.approx(0.9)
