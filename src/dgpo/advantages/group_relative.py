"""Rewards centred in their group: GRPO, Dr. GRPO and RLOO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.groups import grouped, moments, without_spread

SCALES = ("std", "none", "leave_one_out")
STD_EPSILON = 1e-6
"""Added to the standard deviation, as in verl (TRL adds 1e-4)."""


def group_advantage(rewards: Tensor, group_size: int, scale: str = "std") -> Tensor:
    """Group-relative advantages of B responses in consecutive groups of G.

    With R the rewards of one group, mean and (unbiased) std over the group::

        std             A = (R - mean(R)) / (std(R) + 1e-6)       GRPO, arXiv 2402.03300
        none            A =  R - mean(R)                          Dr. GRPO, arXiv 2503.20783
        leave_one_out   A =  R - mean of the other G - 1          RLOO, arXiv 2402.14740

    A group without spread (max == min) gives exactly 0, whatever rounding does to its mean; `degenerate_groups`
    counts those. A group of one response gives 0 too: there is nothing to compare it with (verl keeps its raw reward).
    A NaN reward marks a response that could not be scored: it gets A = 0 and is left out of its group's statistics.

    Args:
        rewards: [B] one scalar reward per response.
        group_size: G >= 1, responses per prompt; must divide B.
        scale: one of the three above.

    Returns:
        [B] advantages, float64 for float64 rewards, float32 otherwise.

    Raises:
        ValueError: a wrong shape, a group size that does not divide B, an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale = {scale!r} is not known; expected one of {', '.join(SCALES)}")
    groups = grouped(rewards, group_size)
    centred, std, count = moments(groups)
    if scale == "std":
        centred = centred / (std + STD_EPSILON)
    elif scale == "leave_one_out":
        # R - mean of the other n - 1 is (R - mean of all n) · n / (n - 1)
        centred = centred * count / (count - 1).clamp(min=1)
    # exactly 0, not the rounding of a mean of equal rewards: consumers test for A == 0
    return torch.where(~groups.isnan() & ~without_spread(groups).unsqueeze(-1), centred, 0.0).flatten()


@dataclass(frozen=True, kw_only=True)
class Standardised(Advantage):
    """GRPO's: centred in its group and divided by the group's standard deviation (`group_advantage`, "std")."""

    scale: ClassVar[str] = "std"

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        return group_advantage(rewards, group_size, self.scale)


@dataclass(frozen=True, kw_only=True)
class Centred(Standardised):
    """Dr. GRPO's: centred in its group, and not scaled (`group_advantage`, "none")."""

    scale: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Standardised):
    """RLOO's: against the mean of the other responses of its group (`group_advantage`, "leave_one_out")."""

    scale: ClassVar[str] = "leave_one_out"
