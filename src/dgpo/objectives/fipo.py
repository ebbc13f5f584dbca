"""FIPO: a clip whose weight follows what becomes of the tokens after it (arXiv 2603.19835)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

SAFE = (0.8, 1.0)
"""Range of the influence beyond `safety`, in both codes."""


@dataclass(frozen=True, kw_only=True)
class FIPO(Objective):
    """A hard clip times the influence of the token, which is larger if the tokens that follow have become more likely.

    With x_k the log ratio of token k and r_t the ratio of token t, the sum is over the tokens of the response from t
    on, without those beyond the dual clip::

        F_t = Σ_{k>=t} 2^((t - k)/half_life) · x_k        future KL
        f_t = clamp(exp(F_t), influence_min, influence_max)
              and for A < 0 and r_t > safety within 0.8 … 1

        left         A < 0, r < 1 - eps_low     w = 0
        right        A > 0, r > 1 + eps_high    w = 0
        dual clip    A < 0, r > dual_clip       w = 0
        else                                    w = f · r

    φ = w, because the influence is a constant for the gradient. The distance k - t counts columns, including those of
    masked tokens in between.

    Args:
        eps_low: the left boundary is 1 - eps_low.
        eps_high: the right boundary is 1 + eps_high.
        dual_clip: ratio beyond which a token with A < 0 is dropped, and any token left out of F; the authors use 10.
        half_life: tokens after which the influence of a log ratio is halved.
        influence_min: lower bound of f; with 1, tokens are only strengthened. The authors use 0.8 for models of 7B.
        influence_max: upper bound of f.
        safety: ratio beyond which a token with A < 0 is not strengthened; inf for none. The authors' script sets 10,
            their code and ms-swift fall back to 4.

    Source: the authors' repository qwenpilot/FIPO@3ef4104c verl/trainer/ppo/core_algos.py:942, read in the history of a
    fork, vukrosic/FIPO; modelscope/ms-swift@3602360a swift/rlhf_trainers/grpo_trainer.py:899. Deviation: the authors'
    code also drops every response with more than one token beyond the dual clip, from the normaliser too.
    """

    name = "fipo"
    papers = (
        Paper(
            arxiv_id="2603.19835",
            title="FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization",
            authors=names(
                "Chiyu Ma, Shuo Yang, Kexin Huang, Jinda Lu, Haoming Meng, Shangshang Wang, Bolin Ding, "
                "Soroush Vosoughi, Guoyin Wang, Jingren Zhou"
            ),
            year=2026,
            code="https://github.com/qwenpilot/FIPO",
        ),
    )
    guards = ("dual_clip",)
    elsewhere: ClassVar = dict.fromkeys(FRAMEWORKS, Conformance(note="ms-swift has it as `loss_type=fipo`"))
    aliases: ClassVar = {"future_kl": ""}

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    eps_low: float = number(0.2, "[0, 1)")
    eps_high: float = number(0.28, "[0, inf)")
    dual_clip: float | None = number(None, "[1 + eps_high, inf]")
    half_life: float = number(32.0, "(0, inf)")
    influence_min: float = number(1.0, "[0, 1]")
    influence_max: float = number(1.2, "[1, 10]")
    safety: float = number(10.0, "(0, inf]")

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        bounds = Boundaries.at(tokens.log_ratio, math.log1p(-self.eps_low), math.log1p(self.eps_high))
        return bounds.capped(tokens.advantage < 0, self.dual_clip)

    def _influence(self, tokens: TokenBatch) -> Tensor:
        """f [B, T]."""
        x = tokens.log_ratio
        taken = x if self.dual_clip is None else torch.where(x > math.log(self.dual_clip), 0.0, x)
        future = _discounted(taken, 2 ** (-1 / self.half_life))
        low = math.log(self.influence_min) if self.influence_min > 0 else -math.inf
        influence = future.clamp(low, math.log(self.influence_max)).exp()
        unsafe = (tokens.advantage < 0) & (x > math.log(self.safety))
        return torch.where(unsafe, influence.clamp(*SAFE), influence)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, negative = tokens.log_ratio, tokens.advantage < 0
        dropped = (negative & (x < math.log1p(-self.eps_low))) | (
            (tokens.advantage > 0) & (x > math.log1p(self.eps_high))
        )
        if self.dual_clip is not None:
            dropped |= negative & (x > math.log(self.dual_clip))
        return torch.where(dropped, 0.0, self._influence(tokens) * x.exp())

    def properties(self) -> Properties:
        return Properties(
            continuous=False,
            upper_bound=math.inf if self.dual_clip is None else self.influence_max * self.dual_clip,
            not_ratio_inside="the influence multiplies the ratio",
            limit_negative=None,
            limit_positive=None,
        )


def _discounted(values: Tensor, gamma: float) -> Tensor:
    """Σ_{k>=t} gamma^(k-t) · values_k along the last dimension, by doubling: each pass reaches twice as far."""
    total, reach = values, 1
    while reach < values.shape[-1] and (factor := gamma**reach) > 0:
        later = torch.nn.functional.pad(total[..., reach:], (0, reach))
        total, reach = total + factor * later, 2 * reach
    return total
