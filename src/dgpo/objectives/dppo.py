"""DPPO: trust regions on the probability of the token, not on its ratio (arXiv 2602.04879)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.numerics import expm1_minus, log1m_exp
from dgpo.objectives.objective import Objective, Properties
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2602.04879",
    title="Rethinking the Trust Region in LLM Reinforcement Learning",
    authors=("Penghui Qi", "Xiangxin Zhou", "Zichen Liu", "Tianyu Pang", "Chao Du", "Min Lin", "Wee Sun Lee"),
    year=2026,
    code="https://github.com/sail-sg/Stable-RL",
)


@dataclass(frozen=True, kw_only=True)
class DPPOTV(Objective):
    """A token is dropped once its probability has moved too far along its advantage, in total variation.

    With r the importance ratio, π = π_θ and q = π_old of the token::

        left     A < 0, q - π > delta_low     w = 0                     i.e. r < 1 - delta_low / q
        right    A > 0, π - q > delta_high    w = 0                     i.e. r > 1 + delta_high / q
        else                                  w = min(r, ratio_cap)

    φ is r, from ratio_cap on ratio_cap · (1 + log(r / ratio_cap)), and its value at the boundary beyond it.

    Args:
        delta_low: > 0, a difference of probabilities. A rare token (q <= delta_low) is never dropped on the left.
        delta_high: > 0, a difference of probabilities. Their example in verl runs with 0.15 on both sides; 0.2 is the
            `clip_ratio` that both codes read where nothing else is set.
        ratio_cap: >= 1. verl's code falls back to 20 and the authors' own to 10, but either takes `clip_ratio_c`, which
            verl's actor sets to 3; the example sets 10,000, because truncation biases.

    Source: sail-sg/Stable-RL@c6af1d11 core_algos.py:1160, verl-project/verl@1dda039b core_algos.py:1379. There the
    ratio is taken against the sampler's log-probs; pass those as `old_logprob` for the same. A = 0 carries no gradient.
    """

    papers = (PAPER,)

    delta_low: float = 0.2
    delta_high: float = 0.2
    ratio_cap: float = 20.0

    def __post_init__(self) -> None:
        self._check_field("delta_low", 0, open_low=True)
        self._check_field("delta_high", 0, open_low=True)
        self._check_field("ratio_cap", 1)

    def _clipped(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        # delta/q, in log space: 1/q alone overflows for a rare token
        low, high = ((math.log(delta) - tokens.old_logprob).exp() for delta in (self.delta_low, self.delta_high))
        log_lo = torch.log1p(-low.clamp(max=1))  # -inf: no bound
        log_hi = torch.log1p(high)
        negative, positive = torch.maximum(x, log_lo), torch.minimum(x, log_hi)
        return torch.where(tokens.advantage < 0, negative, torch.where(tokens.advantage > 0, positive, x))

    def weight(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
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
    """The same with the divergence of two outcomes, the token and everything else.

    With r the importance ratio, π = π_θ and q = π_old of the token, and
    KL = q · log(q / π) + (1 - q) · log((1 - q) / (1 - π))::

        left     A < 0, π < q, KL > delta_low     w = 0
        right    A > 0, π > q, KL > delta_high    w = 0
        else                                      w = min(r, ratio_cap)

    φ = w: the boundary has no closed form in r.

    Args:
        delta_low: > 0, in nats; 0.05 is that of the example in verl.
        delta_high: > 0, in nats.
        ratio_cap: >= 1; as for `DPPOTV`.

    Source: sail-sg/Stable-RL@c6af1d11 core_algos.py:1160, verl-project/verl@1dda039b core_algos.py:1460. As for
    `DPPOTV`.
    """

    papers = (PAPER,)

    delta_low: float = 0.05
    delta_high: float = 0.05
    ratio_cap: float = 20.0

    def __post_init__(self) -> None:
        self._check_field("delta_low", 0, open_low=True)
        self._check_field("delta_high", 0, open_low=True)
        self._check_field("ratio_cap", 1)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, q = tokens.log_ratio, tokens.old_logprob.exp()
        old_rest = _log_complement(tokens.old_logprob)
        # log (1 - π)/(1 - q): of a small change from the change, otherwise from the two
        shift = q * torch.expm1(x) / old_rest.exp()
        apart = _log_complement(tokens.old_logprob + x) - old_rest
        change = torch.where(shift < 0.5, torch.log1p(-shift.clamp(max=0.5)), apart)
        # KL with the terms of first order, which cancel, left out of both sums: neither is negative
        divergence = q * expm1_minus(x) + old_rest.exp() * expm1_minus(change)
        limit = torch.where(tokens.advantage < 0, torch.full_like(x, self.delta_low), self.delta_high)
        dropped = (tokens.advantage.sign() * x > 0) & (divergence > limit)
        return torch.where(dropped, 0.0, x.exp().clamp(max=self.ratio_cap))

    def properties(self) -> Properties:
        return Properties(
            continuous=min(self.delta_low, self.delta_high) == math.inf,
            upper_bound=self.ratio_cap,
            limit_negative="zero" if self.delta_low < math.inf else "finite",
            limit_positive="finite",
        )


def _log_complement(logprob: Tensor) -> Tensor:
    """log(1 - p), for p up to 1 less one rounding."""
    return log1m_exp(logprob.clamp(max=-torch.finfo(logprob.dtype).eps))
