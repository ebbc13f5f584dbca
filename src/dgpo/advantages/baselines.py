"""Other baselines than the mean of the group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.group_relative import STD_EPSILON
from dgpo.advantages.groups import grouped, moments, without_spread
from dgpo.fields import choice, number

EXACT = 1e-9
"""K·n that is an integer in exact arithmetic may exceed it by this in floating point."""


@dataclass(frozen=True, kw_only=True)
class AsymmetricReinforce(Advantage):
    """AsymRE: the mean of the group, shifted, as baseline, for responses of an older policy.

    With R the rewards of one group::

        A = R - (mean(R) + shift)

    A negative shift learns more from successes than from failures. It gives a group without spread the advantage
    -shift. A group of one response gets 0 (Trinity-RFT keeps its raw reward).

    Args:
        shift: added to the baseline; -0.1 in Trinity-RFT.

    Source: arXiv 2506.20520; Trinity-RFT@d4baca61 trinity/algorithm/advantage_fn/asymre_advantage.py.
    """

    needs_spread: ClassVar[bool] = False

    shift: float = number(-0.1, "(-inf, inf)")

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        centred, _, count = moments(groups)
        # exactly -shift without spread, not the rounding of a mean of equal rewards
        centred = torch.where(without_spread(groups).unsqueeze(-1), 0.0, centred)
        return torch.where(~groups.isnan() & (count > 1), centred - self.shift, 0.0).flatten()


@dataclass(frozen=True, kw_only=True)
class Quantile(Advantage):
    """QAE: a quantile of the group's rewards as baseline, so that most responses have advantage 0.

    With R the n rewards of one group and Q its K-quantile::

        A = (R - Q) / (std(R) + 1e-6)

    With rewards 0 and 1 and a share p of correct responses, Q is 0 up to p = 1 - K, where only successes are learnt
    from, and 1 beyond it, where only failures are. A group without spread gives 0.

    Args:
        quantile: K.
        interpolation: "none" takes the smallest reward that at least K·n rewards do not exceed, as the paper defines
            it; "linear" interpolates between two rewards, as `torch.quantile` in the authors' code does, which gives
            all responses of some groups an advantage.

    Source: arXiv 2509.22611; the README of junkangwu/QAE, which has the changed lines.
    """

    quantile: float = number(0.4, "(0, 1)")
    interpolation: Literal["none", "linear"] = choice("none", "none", "linear")

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        scored = ~groups.isnan()
        _, std, count = moments(groups)
        # unscored ones last, where no place below reaches
        ordered, n = torch.where(scored, groups, torch.inf).sort(-1).values, count.double()
        if self.interpolation == "linear":
            place = self.quantile * (n - 1).clamp(min=0)
            low, high = place.floor(), place.ceil()
            first, last = ordered.gather(-1, low.long()), ordered.gather(-1, high.long())
            # equal ends may be infinite, in a group without a scored response
            baseline = torch.where(first == last, first, first + (last - first) * (place - low).to(groups.dtype))
        else:
            place = (self.quantile * n - EXACT).ceil().long() - 1
            baseline = ordered.gather(-1, place.clamp(min=0))
        found = (groups - baseline) / (std + STD_EPSILON)
        return torch.where(scored & ~without_spread(groups).unsqueeze(-1), found, 0.0).flatten()
