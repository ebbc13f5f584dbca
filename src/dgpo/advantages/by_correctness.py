"""Rewards without a baseline: correct responses are reinforced and wrong ones suppressed, each by a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.groups import grouped
from dgpo.fields import number


@dataclass(frozen=True, kw_only=True)
class NegativeSamples(Advantage):
    """NSR: learn from wrong responses alone. There is no baseline, so a group in which all are wrong counts.

    ::

        A = positive     R > 0
        A = -negative    R <= 0

    `positive=1, negative=0` is PSR, positive sample reinforcement. The authors' code has rewards 0 and 1, and drops the
    responses that get 0 here from the batch, so that its mean is over the others.

    Args:
        positive: weight of a correct response; the λ of W-REINFORCE.
        negative: weight of a wrong response.

    Source: arXiv 2506.01347; TianHongZXY/RLVR-Decomposed@a5d4e7c1 verl/trainer/ppo/core_algos.py:111.
    """

    needs_spread: ClassVar[bool] = False

    positive: float = number(0.0, "[0, inf)")
    negative: float = number(1.0, "[0, inf)")

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        # 0.0, not -0.0: consumers test for A == 0, people read a log
        found = torch.where(groups > 0, self.positive, 0.0 - self.negative)
        return torch.where(groups.isnan(), 0.0, found.to(groups.dtype)).flatten()


@dataclass(frozen=True, kw_only=True)
class WeightedReinforce(NegativeSamples):
    """W-REINFORCE: NSR with a small weight on correct responses, `NegativeSamples(positive=0.1)`.

    Args:
        positive: λ; the paper recommends 0.1.
        negative: as in `NegativeSamples`.
    """

    positive: float = number(0.1, "[0, inf)")
