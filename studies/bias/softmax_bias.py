"""The exact laboratory: bias and variance of every method where the true gradient is known.

One state, V tokens, logits z, π = softmax(z). For the token a, ∇ log π_a = e_a - π, whose squared length is

    N² = 1 - 2 π_a + Σ_j π_j²

so every expectation over tokens is a finite sum. Responses have length 1, on which a sequence-level objective is the
token-level one with the same bounds. Arithmetic is float64 on the CPU; the same arguments give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dgpo.objectives import Objective
from dgpo.registry import did_you_mean
from dgpo.tokens import TokenBatch

DTYPE = torch.float64

Baseline = Literal["none", "old", "current"]
"""What is subtracted from A: nothing, its mean under π_old (as a group of responses has it), or its mean under π."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Exact moments of the estimate g = A·w·∇ log π of one token drawn from π_old, for each of S policies.

    Attributes:
        gradient: [S, V] true gradient ∇ = E_old[r·A·∇ log π] = ∇ Σ_a π_a A_a, on the logits.
        mean: [S, V] E_old[g].
        variance: [S] E‖g‖² - ‖E g‖², of one draw.
        bound: [S] E_old[abs(A · (w - r))·N] >= ‖E g - ∇‖: what a pointwise bound on abs(w - r) bounds.
    """

    gradient: Tensor
    mean: Tensor
    variance: Tensor
    bound: Tensor


def moments(objective: Objective, old_logits: Tensor, logits: Tensor, advantage: Tensor) -> Moments:
    """Sums over the whole vocabulary, none of them sampled.

    An adaptive objective is calibrated for each policy on tokens that count with π_old, their advantage being
    π_old·A; where it adds up masses that are linear in abs(A), that is its calibration in expectation.

    Args:
        objective: the method.
        old_logits: [S, V] of π_old.
        logits: [S, V] of π.
        advantage: [S, V] A of every token.

    Raises:
        ValueError: shapes that differ or are not [S, V].
    """
    if old_logits.dim() != 2 or not old_logits.shape == logits.shape == advantage.shape:
        shapes = ", ".join(str(list(values.shape)) for values in (old_logits, logits, advantage))
        raise ValueError(f"old_logits, logits, advantage have shapes {shapes}; expected [S, V] for each")
    A, old, new = advantage.to(DTYPE), old_logits.to(DTYPE).log_softmax(-1), logits.to(DTYPE).log_softmax(-1)
    q, p = old.exp(), new.exp()
    # `pull` is what a penalty of the method adds to w · A
    (w, pull), r = _coefficients(objective, old, new, A), (new - old).exp()
    squared = 1 - 2 * p + p.square().sum(-1, keepdim=True)

    def gradient(coefficient: Tensor) -> Tensor:
        return coefficient - p * coefficient.sum(-1, keepdim=True)  # Σ_a k_a (e_a - π)

    mean = gradient(q * w * A + q * pull)
    return Moments(
        gradient=gradient(p * A),
        mean=mean,
        variance=(q * (w * A + pull).square() * squared).sum(-1) - mean.square().sum(-1),
        bound=(q * (A * (w - r) + pull).abs() * squared.sqrt()).sum(-1),
    )


def _coefficients(objective: Objective, old: Tensor, new: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """[S, V] each: w, and less the slope of the penalty; every token a response of its own."""

    def tokens(rows: slice, scale: Tensor | float) -> TokenBatch:
        x, x_old, A = (values[rows].reshape(-1, 1) for values in (new, old, advantage * scale))
        return TokenBatch(x, x_old, A, torch.ones_like(A, dtype=torch.bool))

    adaptive, found = "batch" in objective.reads, []
    for rows in [slice(i, i + 1) for i in range(len(new))] if adaptive else [slice(None)]:
        chosen, batch = objective.calibrate(tokens(rows, old.exp())) if adaptive else objective, tokens(rows, 1.0)
        w = chosen.weight(batch)
        found.append((w, -chosen.penalty(batch).slope if chosen.penalises else torch.zeros_like(w)))
    w, pull = (torch.cat(parts).view_as(new) for parts in zip(*found, strict=True))
    return w, pull


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How far a method's estimate is from the true gradient, in units of its length, for S random policies.

    Attributes:
        bias: [S] ‖E g - ∇‖ / ‖∇‖.
        variance: [S] E‖ĝ - E ĝ‖² / ‖∇‖² of ĝ, the mean of the draws.
        bound: [S] E_old[abs(A · (w - r))·N] / ‖∇‖ >= bias.
    """

    bias: Tensor
    variance: Tensor
    bound: Tensor

    @property
    def mse(self) -> Tensor:
        """[S] bias² + variance, E‖ĝ - ∇‖² / ‖∇‖²."""
        return self.bias.square() + self.variance


def estimator(
    objective: Objective,
    drift: float,
    seeds: Iterable[int] = range(40),
    vocabulary: int = 400,
    draws: int = 256,
    baseline: Baseline = "none",
) -> Estimator:
    """Exact bias and variance of a method after the policy has drifted, over random policies and advantages.

    For each seed, from one float64 generator and in this order::

        z_old = -1.2 · log(1 … V) + 0.3 · randn        A = -1 where rand < 0.5, else +1
        z     = z_old + drift · A + drift · randn

    The drift follows A as it was drawn; the baseline is subtracted afterwards. It leaves the true gradient as it is,
    because Σ_a ∇π_a = 0, and changes every estimate whose w is not r::

        E_old[(A - b) · w · ∇ log π]  =  E_old[A · w · ∇ log π] - b · E_old[w · ∇ log π]        w the same for both

    The last expectation is Σ_a ∇π_a = 0 for w = r, and E_old[(w - r) · ∇ log π] otherwise. Where w reads the sign of A,
    the baseline changes w as well.

    Args:
        objective: the method.
        drift: >= 0; half of it follows the advantage, half is noise.
        seeds: S of them.
        vocabulary: V, >= 2.
        draws: tokens in one estimate, >= 1.
        baseline: "none", "old" or "current": subtracts nothing from A, E_old[A] or E_π[A].

    Raises:
        ValueError: an argument outside its range, no seed, or an unknown baseline.
    """
    seeds = list(seeds)
    if not (0 <= drift < math.inf and vocabulary >= 2 and draws >= 1 and seeds):
        raise ValueError(
            f"drift = {drift}, vocabulary = {vocabulary}, draws = {draws}, {len(seeds)} seeds; expected a finite "
            "drift >= 0, vocabulary >= 2, draws >= 1 and at least one seed"
        )
    known = get_args(Baseline)
    if baseline not in known:
        raise ValueError(f"unknown baseline {baseline!r}{did_you_mean(baseline, known)}; known: {', '.join(known)}")
    draws_of = zip(*(drifted(drift, seed, vocabulary) for seed in seeds), strict=True)
    old, new, advantage = (torch.stack(values) for values in draws_of)
    if baseline != "none":
        policy = (old if baseline == "old" else new).softmax(-1)
        advantage = advantage - (policy * advantage).sum(-1, keepdim=True)
    found = moments(objective, old, new, advantage)
    size = found.gradient.norm(dim=-1)
    return Estimator(
        bias=(found.mean - found.gradient).norm(dim=-1) / size,
        variance=found.variance / (draws * size.square()),
        bound=found.bound / size,
    )


def drifted(drift: float, seed: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """z_old, z and A [V] of one seed, as `estimator` draws them."""
    generator = torch.Generator().manual_seed(seed)
    zipf = -1.2 * torch.arange(1, vocabulary + 1, dtype=DTYPE).log()
    old = zipf + 0.3 * torch.randn(vocabulary, generator=generator, dtype=DTYPE)
    below = torch.rand(vocabulary, generator=generator, dtype=DTYPE) < 0.5
    advantage = torch.where(below, -1.0, 1.0).to(DTYPE)
    return old, old + drift * advantage + drift * torch.randn(vocabulary, generator=generator, dtype=DTYPE), advantage
