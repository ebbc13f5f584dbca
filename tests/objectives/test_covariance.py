"""Clip-Cov and KL-Cov: the closed forms, which tokens are candidates, the draw among them, and the penalty."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from closed_forms import Method, by_region, clipped
from mpmath import mpf

from dgpo import TokenBatch
from dgpo.objectives import ClipCov, KLCov


def clip_cov_form(
    x: Any,
    q: Any,
    sign: int,
    eps_low: Any,
    eps_high: Any,
    cov_low: Any,
    cov_high: Any,
    mean_advantage: Any,
    mean_logprob: Any,
    threshold: Any,
    **_: Any,
) -> Any:
    """With a threshold of 1 every candidate is drawn."""
    w, phi, size = clipped(x, 1 - eps_low, 1 + eps_high, sign, None)
    cov = (sign - mean_advantage) * (q + x - mean_logprob)
    if threshold == 1 and cov_low < cov < cov_high and w == mpmath.exp(x):
        return mpf(0), mpf(0), mpf(1)
    return w, phi, size


def kl_cov_form(x: Any, q: Any, sign: int, **_: Any) -> Any:
    r = mpmath.exp(x)
    return r, r, r


METHODS = {
    "clip_cov": Method(
        closed_form=clip_cov_form,
        settings=[{"eps_low": 0.2, "eps_high": 0.28, "share": 1, "cov_low": 0.1}],
        extreme=[{"mean_advantage": 0, "mean_logprob": 0, "threshold": 1}],
    ),
    "kl_cov": Method(closed_form=kl_cov_form, settings=[{"share": 0.2, "coef": 0.1}, {"coef": 0}]),
}

test_closed_form = by_region(METHODS)

WIDE = {"cov_low": 0.0, "cov_high": 100.0, "eps_low": 0.2, "eps_high": 0.28}


def candidates(tokens: TokenBatch, objective: ClipCov) -> list[tuple[int, int]]:
    """Written out, token by token."""
    valid = tokens.mask
    a, lp = tokens.advantage, tokens.logprob
    mean_a, mean_lp = a[valid].mean().item(), lp[valid].mean().item()
    found = []
    for i, j in valid.nonzero().tolist():
        cov = (a[i, j].item() - mean_a) * (lp[i, j].item() - mean_lp)
        r = tokens.ratio[i, j].item()
        outside = (a[i, j] < 0 and r < 1 - objective.eps_low) or (a[i, j] > 0 and r > 1 + objective.eps_high)
        if objective.cov_low < cov < objective.cov_high and not outside:
            found.append((i, j))
    return found


def drawn(tokens: TokenBatch, objective: ClipCov) -> list[tuple[int, int]]:
    """The tokens without weight that the clip alone would keep."""
    found = objective.calibrate(tokens)
    zero = (found.weight(tokens) == 0) & (objective.weight(tokens) != 0) & tokens.mask
    return [(i, j) for i, j in zero.nonzero().tolist()]


@pytest.mark.parametrize("share", [0.002, 0.05, 0.1, 1.0])
def test_as_many_candidates_are_drawn_as_the_share_allows(share: float, make_batch: Any) -> None:
    for seed in range(4):
        tokens = make_batch(B=16, T=40, spread=0.3, seed=seed).tokens()
        objective = ClipCov(share=share, **WIDE)
        known = candidates(tokens, objective)
        assert len(known) > 100
        chosen = drawn(tokens, objective)
        assert set(chosen) <= set(known)
        assert len(chosen) == min(len(known), max(int(share * int(tokens.mask.sum())), 1))


def test_the_draw_is_uniform_and_follows_the_seed(make_batch: Any) -> None:
    """Each of n candidates is drawn k/n of the time, over 150 seeds; the variance is that of independent draws."""
    tokens = make_batch(B=6, T=20, spread=0.3).tokens()
    known = candidates(tokens, ClipCov(**WIDE))
    counts, seeds = dict.fromkeys(known, 0), 150
    for seed in range(seeds):
        for token in drawn(tokens, ClipCov(share=0.1, seed=seed, **WIDE)):
            counts[token] += 1
    share = int(0.1 * int(tokens.mask.sum())) / len(known)
    spread = [(count - seeds * share) / (seeds * share * (1 - share)) ** 0.5 for count in counts.values()]
    assert max(map(abs, spread)) < 4.5
    assert 0.6 < sum(z * z for z in spread) / len(spread) < 1.4


def test_the_draw_is_the_same_in_any_order_and_precision(make_batch: Any) -> None:
    batch = make_batch(B=8, T=20, spread=0.3)
    objective = ClipCov(share=0.05, **WIDE)
    weight = objective.calibrate(batch.tokens()).weight(batch.tokens())
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    parts = [getattr(batch, name) for name in ("logprob", "old_logprob", "advantage", "mask")]
    turned = TokenBatch(*(part[order] for part in parts))
    assert torch.equal(objective.calibrate(turned).weight(turned), weight[order])
    single = TokenBatch(*(part.float() if part.is_floating_point() else part for part in parts))
    assert torch.equal(objective.calibrate(single).weight(single) == 0, weight == 0)


def test_a_batch_without_a_candidate_is_only_clipped(make_batch: Any) -> None:
    tokens = make_batch().tokens()
    objective = ClipCov(cov_low=50.0, cov_high=60.0, eps_low=0.2, eps_high=0.2)
    assert torch.equal(objective.calibrate(tokens).weight(tokens), objective.weight(tokens))
    nothing = torch.zeros(2, 0)
    assert ClipCov().calibrate(TokenBatch(nothing, nothing, torch.ones(2), nothing)).threshold == 1


@pytest.mark.parametrize("share", [0.001, 0.03, 0.25, 1.0])
def test_the_tokens_of_highest_covariance_carry_the_penalty(share: float, make_batch: Any) -> None:
    for seed in range(4):
        tokens = make_batch(B=8, T=20, spread=0.5, seed=seed).tokens()
        objective = KLCov(share=share, coef=0.3).calibrate(tokens)
        kappa, slope = objective.penalty(tokens)
        valid, x = tokens.mask, tokens.logprob - tokens.old_logprob
        a, lp = tokens.advantage[valid], tokens.logprob[valid]
        cov = (a - a.mean()) * (lp - lp.mean())
        count = max(int(share * int(valid.sum())), 1)
        highest = torch.zeros_like(cov).scatter(0, cov.topk(count).indices, 1.0)
        torch.testing.assert_close(kappa[valid], 0.3 * x[valid].abs() * highest, rtol=1e-12, atol=0)
        torch.testing.assert_close(slope[valid], 0.3 * x[valid].sign() * highest, rtol=1e-12, atol=0)
        assert not kappa[~valid].any()


def test_without_a_coefficient_nothing_is_read_and_nothing_is_penalised(make_batch: Any) -> None:
    plain = KLCov(coef=0)
    assert plain.calibrate(make_batch().tokens()) is plain
    assert plain.reads == {"ratio"}
    assert not plain.penalises
    nothing = torch.zeros(2, 3)
    empty = TokenBatch(nothing, nothing, torch.ones(2), nothing)
    assert not KLCov().calibrate(empty).penalty(empty).slope.any()
