"""DPPO: trust regions on the probability of the token, not on its ratio (arXiv 2602.04879)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.numerics import expm1_minus, log1m_exp, rounding
from dgpo.objectives.frameworks import SKYRL_SUM, Conformance, Of
from dgpo.objectives.objective import Boundaries, Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch

PAPER = Paper(
    arxiv_id="2602.04879",
    title="Rethinking the Trust Region in LLM Reinforcement Learning",
    authors=("Penghui Qi", "Xiangxin Zhou", "Zichen Liu", "Tianyu Pang", "Chao Du", "Min Lin", "Wee Sun Lee"),
    year=2026,
    code="https://github.com/sail-sg/Stable-RL",
)


NEWTON_STEPS = 4
"""To the rounding of float64, for deltas of 1e-3 to 2 and probabilities of e^-20 to 1 - 1e-7."""


def _elsewhere(divergence: str, verl_note: str, skyrl_note: str) -> dict[str, Conformance]:
    """The settings of one of the two divergences: "tv" or "kl"."""
    low, high = Of(field="delta_low"), Of(field="delta_high")
    return {
        "trl": Conformance(),
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": f"dppo_{divergence}",
                "clip_ratio_low": low,
                "clip_ratio_high": high,
                "clip_ratio_c": Of(field="ratio_cap"),
            },
            aggregation="token-mean",
            note=verl_note,
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "dppo",
                "dppo.dppo_type": f"binary_{divergence}",
                "dppo.delta_low": low,
                "dppo.delta_high": high,
            },
            aggregation="token-mean",
            only={"ratio_cap": math.inf},
            note=f"{skyrl_note}. {SKYRL_SUM}",
        ),
        "liger": Conformance(),
    }


def moved_by(tokens: TokenBatch, delta_low: float, delta_high: float) -> Boundaries:
    """Where the probability of a token is delta_low below or delta_high above π_old; -inf where it cannot be."""
    # delta/q, in log space: 1/q alone overflows for a rare token
    low, high = ((math.log(delta) - tokens.old_logprob).exp() for delta in (delta_low, delta_high))
    # log 0 = -inf: no bound
    return Boundaries(tokens.log_ratio, torch.log1p(-low.clamp(max=1)), torch.log1p(high))


@dataclass(frozen=True, kw_only=True)
class DPPOTV(Objective):
    """A token is dropped once its probability has moved too far along its advantage, in total variation.

    With r the importance ratio, π = π_θ and q = π_old of the token::

        left     A < 0, q - π > delta_low     w = 0                     i.e. r < 1 - delta_low / q
        right    A > 0, π - q > delta_high    w = 0                     i.e. r > 1 + delta_high / q
        else                                  w = min(r, ratio_cap)

    φ is r up to ratio_cap, ratio_cap · (1 + log(r / ratio_cap)) from there on, and constant beyond the boundary.

    Args:
        delta_low: a difference of probabilities. A rare token (q <= delta_low) is never dropped on the left.
        delta_high: a difference of probabilities. Their example in verl runs with 0.15 on both sides; 0.2 is the
            `clip_ratio` that both codes use if nothing else is set.
        ratio_cap: the largest weight. verl's code falls back to 20 and the authors' own to 10, but either takes
            `clip_ratio_c`, which verl's actor sets to 3; the example sets 10,000, because truncation biases.

    Source: sail-sg/Stable-RL@c6af1d11 core_algos.py:1160, verl-project/verl@1dda039b core_algos.py:1379. There, the
    ratio is taken against the sampler's log-probs; pass those as `old_logprob` to do the same. A = 0 gives no gradient.
    """

    name = "dppo_tv"
    papers = (PAPER,)
    guards = ("ratio_cap",)
    elsewhere = _elsewhere(
        "tv",
        "the clip options are differences of probabilities here, and `clip_ratio_c` is the cap of the ratio: the "
        "actor's 3 unless set",
        "the ratio has no cap, and is taken against the sampler where its log-probs are given",
    )
    aliases: ClassVar = {"dppo": " or 'dppo_kl'"}

    delta_low: float = number(0.2, "(0, inf]")
    delta_high: float = number(0.2, "(0, inf]")
    ratio_cap: float = number(20.0, "[1, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "advantage_sign", "old_logprob"})

    def _bounds(self, tokens: TokenBatch) -> Boundaries:
        return moved_by(tokens, self.delta_low, self.delta_high)

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        # the cap acts for either sign of A, and so on every token
        return self._bounds(tokens).capped(tokens.mask, self.ratio_cap)

    def _clipped(self, tokens: TokenBatch) -> Tensor:
        x, log_lo, log_hi = self._bounds(tokens)
        negative, positive = torch.maximum(x, log_lo), torch.minimum(x, log_hi)
        return torch.where(tokens.advantage < 0, negative, torch.where(tokens.advantage > 0, positive, x))

    def weight(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        # clamping returns x itself where it does not act: the comparison is exact
        return torch.where(self._clipped(tokens) == x, x.exp().clamp(max=self.ratio_cap), 0.0)

    def potential(self, tokens: TokenBatch) -> Tensor:
        x = self._clipped(tokens)
        curved = x.clamp(max=math.log(self.ratio_cap))
        return curved.exp() * (1 + (x - curved))

    def properties(self) -> Properties:
        return Properties(
            continuous=min(self.delta_low, self.delta_high) >= 1,  # a probability cannot move by more
            upper_bound=self.ratio_cap,
            limit_negative="zero" if self.delta_low < 1 else "finite",  # for q > delta_low; finite for a rarer token
            limit_positive="finite",
        )


@dataclass(frozen=True, kw_only=True)
class DPPOKL(Objective):
    """A token is dropped once its binary KL divergence (the token against everything else) is too large.

    With r the importance ratio, π = π_θ and q = π_old of the token, and
    KL = q · log(q / π) + (1 - q) · log((1 - q) / (1 - π))::

        left     A < 0, π < q, KL > delta_low     w = 0
        right    A > 0, π > q, KL > delta_high    w = 0
        else                                      w = min(r, ratio_cap)

    φ = w, because the boundary has no closed form in r.

    Args:
        delta_low: in nats; 0.05 is that of the example in verl.
        delta_high: in nats.
        ratio_cap: as for `DPPOTV`.

    Source: sail-sg/Stable-RL@c6af1d11 core_algos.py:1160, verl-project/verl@1dda039b core_algos.py:1460. As for
    `DPPOTV`.
    """

    name = "dppo_kl"
    papers = (PAPER,)
    guards = ("ratio_cap",)
    elsewhere = _elsewhere(
        "kl",
        "the clip options are in nats here; `clip_ratio_c` as for `dppo_tv`. Its logarithm adds 1e-8",
        "as for `dppo_tv`",
    )

    delta_low: float = number(0.05, "(0, inf]")
    delta_high: float = number(0.05, "(0, inf]")
    ratio_cap: float = number(20.0, "[1, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "advantage_sign", "old_logprob"})

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        old, rest = tokens.old_logprob, _log_complement(tokens.old_logprob)
        # the token rises as far as everything else falls: to log(π/q) from y = log((1 - π)/(1 - q))
        y = _fallen(rest, self.delta_high)
        high = torch.where(y.isneginf(), math.inf, torch.log1p(-torch.expm1(y) * (rest - old).exp()))
        low = _fallen(old, self.delta_low)
        return Boundaries(tokens.log_ratio, low, high).capped(tokens.mask, self.ratio_cap)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        limit = torch.where(tokens.advantage < 0, torch.full_like(x, self.delta_low), self.delta_high)
        dropped = (tokens.advantage.sign() * x > 0) & (_divergence(x, tokens.old_logprob) > limit)
        return torch.where(dropped, 0.0, x.exp().clamp(max=self.ratio_cap))

    def properties(self) -> Properties:
        return Properties(
            continuous=min(self.delta_low, self.delta_high) == math.inf,
            upper_bound=self.ratio_cap,
            limit_negative="zero" if self.delta_low < math.inf else "finite",
            limit_positive="finite",
        )


def _divergence(x: Tensor, old_logprob: Tensor) -> Tensor:
    """KL of the two outcomes after a log ratio x: 0 at x = 0, and it grows with abs(x)."""
    q, old_rest = old_logprob.exp(), _log_complement(old_logprob)
    # log (1 - π)/(1 - q): of a small change from the change, otherwise from the two
    shift = q * torch.expm1(x) / old_rest.exp()
    apart = _log_complement(old_logprob + x) - old_rest
    change = torch.where(shift < 0.5, torch.log1p(-shift.clamp(max=0.5)), apart)
    # KL with the terms of first order, which cancel, left out of both sums: neither is negative
    return q * expm1_minus(x) + old_rest.exp() * expm1_minus(change)


def _fallen(logprob: Tensor, delta: float) -> Tensor:
    """The log ratio below 0 at which `_divergence` reaches delta; -inf where `MAX_LOG_RATIO` nats do not reach it."""
    p = logprob.exp()
    # start where the second-order KL, q x² / (2 (1 - q)), reaches delta
    x = -(2 * delta * _log_complement(logprob).exp() / p).sqrt().clamp(max=MAX_LOG_RATIO)
    for _ in range(NEWTON_STEPS):
        # dKL/dx = q (r - 1) / (1 - π)
        slope = p * torch.expm1(x) / _log_complement(logprob + x).exp()
        step = (_divergence(x, logprob) - delta) / slope
        x = torch.where(slope == 0, x, x - step).clamp(min=-MAX_LOG_RATIO)  # at x = 0, of a delta that rounds to 0
    reached = _divergence(torch.full_like(x, -MAX_LOG_RATIO), logprob) > delta
    return torch.where(reached, x, -math.inf)


def _log_complement(logprob: Tensor) -> Tensor:
    """log(1 - p), for p up to 1 less one rounding."""
    return log1m_exp(logprob.clamp(max=-rounding(logprob)))
