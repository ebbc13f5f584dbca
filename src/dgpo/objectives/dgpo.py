"""DGPO: Decoupled Gradient Policy Optimization (arXiv 2603.14389)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import ACL_2026, Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2603.14389",
    title=(
        "From log π to π: Taming Divergence in Soft Clipping via Bilateral Decoupled Decay "
        "of Probability Gradient Weight"
    ),
    authors=names(
        "Xiaoliang Fu, Jiaye Lin, Yangyi Fang, Chaowen Hu, Cong Qin, Zekai Shao, Binbin Zheng, Lu Pan, Ke Zeng"
    ),
    year=2026,
    venue="ACL 2026",
    book=ACL_2026,
    anthology="2026.acl-long.1921",
    pages="41410-41430",
    code="https://github.com/FlyTune/DGPO-RL",
)

NO_POWER = 1e-18
"""Exponents below it are 0 in every dtype."""

ELSEWHERE = dict.fromkeys(
    FRAMEWORKS, Conformance(note="its corner DGPO(n=0, m=1, eps_high=c-1, reverse_cap=c) is `cispo` with cap=c")
)


@dataclass(frozen=True, kw_only=True)
class DGPO(Objective):
    """Weights on ∇π that decay beyond the clip range, where those of GRPO are 0 and those of GPPO diverge on the left.

    With r the importance ratio, lo = 1 - eps_low, hi = 1 + eps_high, u = r/lo and v = r/hi::

        left    A < 0, r < lo    w = lo · u^(n+1)          polynomial decay of the weight on ∇π: it goes to 0 as π^n
        right   A > 0, r > hi    w = hi · v^(1 - 1/m)      reciprocal-root decay: w/π falls as π^(-1/m)
        else                     w = r

    Its potential φ, with dφ/dlogprob = w, is r inside, lo·(n + u^(n+1))/(n+1) on the left and
    hi·(1 + (v^λ - 1)/λ), λ = 1 - 1/m, on the right (hi·(1 + log v) for m = 1): continuous, with continuous slope.

    Args:
        n: exponent of the left decay, real. 0 leaves the left unclipped, inf is GRPO's hard clip. The authors' README
            recommends n = 1, and says that 1.5B "can use" n = 2; we do not know what the paper's runs used.
        m: root of the right decay, real. 1 is GPPO's constant weight, inf leaves the right unclipped.
        eps_low: the left boundary is 1 - eps_low.
        eps_high: the right boundary is 1 + eps_high.
        reverse_cap: largest weight for A < 0, where r >> 1 is otherwise unbounded; None as in the paper.
        right_cap: largest weight for A > 0, which for m > 1 otherwise grows without bound; None as in the paper.
            Both caps keep the gradient (w = cap), unlike a dual clip, which zeroes it.

    Source: paper Figure 2 and its two boundary definitions, defaults from the authors' yaml; FlyTune/DGPO-RL@cc225d44
    verl/trainer/ppo/core_algos.py:920-932. Deviations from that code:

    * it takes `exp` of every branch at every token, so log r > 88.7/(n+1) gives NaN gradients on tokens that no branch
      selects, masked and A = 0 tokens included; here each branch sees only its own region;
    * its boundary branches are not clamped and its inside branch loses the gradient beyond ±20 nats; here every log
      ratio enters the weight clamped to ±20 and the gradient through logprob is kept;
    * its loss value is w · A, which is not an integral of the gradient; ours is φ · A. The gradients are equal.
    """

    name = "dgpo"
    papers = (PAPER,)
    guards = ("reverse_cap",)
    elsewhere = ELSEWHERE

    n: float = number(1, "[0, inf]")
    m: float = number(2, "[1, inf]")
    eps_low: float = number(0.2, "[0, 1)")
    eps_high: float = number(0.2, "[0, inf)")
    reverse_cap: float | None = number(None, "[1, inf]")
    right_cap: float | None = number(None, "[1 + eps_high, inf]")

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        # n = 0 leaves w = r on the left, and m = inf on the right up to its cap
        low = math.log1p(-self.eps_low) if self.n > 0 else -math.inf
        high = math.log1p(self.eps_high) if self.m < math.inf else math.inf
        both = Boundaries.at(tokens.log_ratio, low, high).capped(tokens.advantage < 0, self.reverse_cap)
        return both.capped(tokens.advantage > 0, self.right_cap)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, negative, positive = tokens.log_ratio, tokens.advantage < 0, tokens.advantage > 0
        log_lo, log_hi = math.log1p(-self.eps_low), math.log1p(self.eps_high)
        left, right = negative & (x < log_lo), positive & (x > log_hi)
        # the fill values keep 0 · inf out of the branches that are not taken
        log_u = torch.where(left, x - log_lo, -1.0)
        log_v = torch.where(right, x - log_hi, 1.0)
        log_w = torch.where(left, log_lo + (self.n + 1) * log_u, x)
        log_w = torch.where(right, log_hi + self._root() * log_v, log_w)
        if self.reverse_cap is not None:
            log_w = torch.where(negative, log_w.clamp(max=math.log(self.reverse_cap)), log_w)
        if self.right_cap is not None:
            log_w = torch.where(positive, log_w.clamp(max=math.log(self.right_cap)), log_w)
        return log_w.exp()

    def potential(self, tokens: TokenBatch) -> Tensor:
        x, negative, positive = tokens.log_ratio, tokens.advantage < 0, tokens.advantage > 0
        log_lo, log_hi = math.log1p(-self.eps_low), math.log1p(self.eps_high)
        # beyond a cap w is constant, so φ continues as a straight line in x from where the cap was reached
        beyond = torch.zeros_like(x)
        if self.reverse_cap is not None and self.reverse_cap < math.inf:
            excess = torch.where(negative, x - math.log(self.reverse_cap), 0.0).clamp(min=0.0)
            x, beyond = x - excess, beyond + self.reverse_cap * excess
        # with m = 1 w never exceeds hi, the least cap that is allowed, and its root of 0 could not divide
        if self.right_cap is not None and self.right_cap < math.inf and self.m > 1:
            reached = log_hi + (math.log(self.right_cap) - log_hi) / self._root()
            excess = torch.where(positive, x - reached, 0.0).clamp(min=0.0)
            x, beyond = x - excess, beyond + self.right_cap * excess
        left, right = negative & (x < log_lo), positive & (x > log_hi)
        phi = torch.where(left | right, 0.0, x).exp()
        phi = torch.where(left, self._fallen(torch.where(left, x - log_lo, -1.0)), phi)
        phi = torch.where(right, self._risen(torch.where(right, x - log_hi, 1.0)), phi)
        return phi + beyond

    def _root(self) -> float:
        """λ = 1 - 1/m, without the cancellation at m = 1."""
        return 1.0 if self.m == math.inf else (self.m - 1) / self.m

    def _fallen(self, log_u: Tensor) -> Tensor:
        """φ on the left: a sum of two terms >= 0, so that nothing cancels for a large n or a small u."""
        lo, power = 1 - self.eps_low, self.n + 1
        if power == math.inf:
            return torch.full_like(log_u, lo)
        return lo * (self.n / power) + (lo / power) * (power * log_u).exp()

    def _risen(self, log_v: Tensor) -> Tensor:
        """φ on the right, log_v > 0."""
        hi, root = 1 + self.eps_high, self._root()
        # v^λ - 1 is λ · log v up to a relative λ/2 · log v, below rounding for the largest log ratio there is
        risen = log_v if root < NO_POWER else torch.expm1(root * log_v) / root
        return hi * (1 + risen)

    def properties(self) -> Properties:
        negative = math.inf if self.reverse_cap is None else self.reverse_cap
        positive = math.inf if self.right_cap is None else self.right_cap
        return Properties(
            continuous=math.isfinite(self.n),
            upper_bound=max(negative, 1 + self.eps_high if self.m == 1 else positive),
            limit_negative="zero" if self.n > 0 else "finite",
            limit_positive="finite",
        )
