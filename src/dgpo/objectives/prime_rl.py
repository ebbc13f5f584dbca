"""prime-rl's two losses: masks on the change of probability, and a penalty on the log ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.dppo import DPPOTV, moved_by
from dgpo.objectives.dppo import PAPER as DPPO_PAPER
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Limit, Objective, Penalty, Properties, Read
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class PrimeRL(DPPOTV):
    """prime-rl's default loss: `DPPOTV` without a cap, and a penalty on the log ratio of every token.

    With r the importance ratio, π = π_θ and q = π_old of the token::

        left     A < 0, q - π > delta_low     w = 0
        right    A > 0, π - q > delta_high    w = 0
        else                                  w = min(r, ratio_cap)
        penalty  kl_tau · (log r)²            of dropped tokens and of those with A = 0, too

    φ as for `DPPOTV`.

    Args:
        delta_low: a difference of probabilities; `dppo_mask_low` there.
        delta_high: a difference of probabilities; `dppo_mask_high` there.
        ratio_cap: the largest weight; prime-rl has none.
        kl_tau: coefficient of the penalty, without the factor 1/2; 0 is `DPPOTV`.

    Source: PrimeIntellect-ai/prime-rl@559b4477 src/prime_rl/trainer/rl/loss.py:109, defaults of `DefaultLossConfig`. It
    takes the penalty from Kimi K2.5 (arXiv 2602.02276). There the ratio is taken against the sampler's log-probs; pass
    those as `old_logprob` to do the same. Its `adv_tau` multiplies A and is no part of w.
    """

    name = "prime_rl"
    papers = (DPPO_PAPER,)
    elsewhere = dict.fromkeys(
        FRAMEWORKS, Conformance(note="`dppo_tv` where there is one is the same without a penalty")
    )

    ratio_cap: float = number(math.inf, "[1, inf]")
    kl_tau: float = number(1e-3, "[0, inf)")

    @property
    def penalises(self) -> bool:
        return self.kl_tau > 0

    def penalty(self, tokens: TokenBatch) -> Penalty:
        return Penalty.quadratic(tokens, 2 * self.kl_tau)


@dataclass(frozen=True, kw_only=True)
class PrimeRLIPO(Objective):
    """prime-rl's loss `ipo`: a token is dropped once its probability has moved far in either direction, whatever A is.

    With r the importance ratio, π = π_θ and q = π_old of the token::

        abs(π - q) > ipo_threshold    w = 0
        else                          w = r
        penalty                       kl_tau · (log r)²

    φ is r inside, and its value at the boundary beyond it. A token that has drifted against its advantage is
    dropped as well, so only the penalty brings it back.

    Args:
        ipo_threshold: a difference of probabilities. A rare token can be dropped only when it rises.
        kl_tau: coefficient of the penalty, without the factor 1/2.

    Source: PrimeIntellect-ai/prime-rl@559b4477 src/prime_rl/trainer/rl/loss.py:164, defaults of `IPOLossConfig`. The
    ratio and `adv_tau` as for `PrimeRL`. It is not the preference loss of the same name.
    """

    name = "prime_rl_ipo"
    papers = (DPPO_PAPER,)
    elsewhere = dict.fromkeys(FRAMEWORKS, Conformance(note="`dppo_tv` there acts on one side by the sign of A"))

    ipo_threshold: float = number(0.1, "(0, inf]")
    kl_tau: float = number(1e-3, "[0, inf)")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "old_logprob"})

    @property
    def penalises(self) -> bool:
        return self.kl_tau > 0

    def penalty(self, tokens: TokenBatch) -> Penalty:
        return Penalty.quadratic(tokens, 2 * self.kl_tau)

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return moved_by(tokens, self.ipo_threshold, self.ipo_threshold)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, low, high = self.boundaries(tokens)
        return torch.where((low <= x) & (x <= high), x.exp(), 0.0)

    def potential(self, tokens: TokenBatch) -> Tensor:
        _, low, high = self.boundaries(tokens)
        # `boundaries` detaches what it returns: the log ratio of the batch has the gradient
        return torch.minimum(torch.maximum(tokens.log_ratio, low), high).exp()

    def properties(self) -> Properties:
        # π_old = 1/2 in the limits: a probability falls by no more than that
        falls: Limit = "zero" if self.ipo_threshold < 0.5 else "finite"
        return Properties(
            continuous=self.ipo_threshold >= 1,
            upper_bound=math.inf,
            limit_negative=falls,
            limit_positive=falls,
        )
