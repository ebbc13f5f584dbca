"""MaxRL: centred rewards divided by the success rate of the group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.groups import grouped, moments, without_spread
from dgpo.fields import choice


@dataclass(frozen=True, kw_only=True)
class MaxRL(Advantage):
    """Maximum likelihood instead of expected reward: hard prompts weigh 1 / (success rate).

    With R the N rewards of one group, all >= 0::

        divide_by = "mean"    A = (R - mean(R)) / mean(R)
        divide_by = "sum"     A = (R - mean(R)) / (N · mean(R))

    Algorithm 1 of the paper has the 1/N and sums over the responses of a prompt; the authors' code and prime-rl leave
    it out and average over responses. So "mean" is the paper's gradient wherever the aggregation averages over
    responses, and "sum" wherever it adds them up. "sum" beside an average makes the gradient N times smaller.

    A group without spread, and a group of one response, gives 0.

    Args:
        divide_by: one of the two above.

    Raises:
        ValueError: from `of_groups`, a negative reward, for which the mean may be 0 or negative.

    Source: arXiv 2602.02710, algorithm 1; tajwarfahim/maxrl@c0698ebb verl/trainer/ppo/core_algos.py:403, which adds
    1e-6 to the mean; prime-rl@559b4477 src/prime_rl/orchestrator/algo/max_rl.py.
    """

    divide_by: Literal["mean", "sum"] = choice("mean", "mean", "sum")

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        if (groups < 0).any():
            lowest = groups[~groups.isnan()].amin().item()
            raise ValueError(
                f"advantage 'maxrl' needs rewards >= 0, got {lowest:.6g}; take another advantage, or leave out "
                "rewards that are penalties"
            )
        centred, _, count = moments(groups)
        total = groups.nansum(-1, keepdim=True)
        divisor = total / count.clamp(min=1) if self.divide_by == "mean" else total
        learns = ~groups.isnan() & ~without_spread(groups).unsqueeze(-1)
        # a group with spread has a reward above 0; the others divide by 1
        return torch.where(learns, centred / torch.where(divisor > 0, divisor, 1.0), 0.0).flatten()
