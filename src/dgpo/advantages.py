"""Advantages A: how good a response was within its group of responses to the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = ("std", "none", "leave_one_out")
STD_EPSILON = 1e-6
"""Added to the standard deviation, as in verl (TRL adds 1e-4)."""


def group_advantage(rewards: Tensor, group_size: int, scale: str = "std") -> Tensor:
    """Group-relative advantages of B responses whose groups of G stand side by side.

    With R the rewards of one group, mean and (unbiased) std over the group::

        std             A = (R - mean(R)) / (std(R) + 1e-6)       GRPO, arXiv 2402.03300
        none            A =  R - mean(R)                          Dr. GRPO, arXiv 2503.20783
        leave_one_out   A =  R - mean of the other G - 1          RLOO, arXiv 2402.14740

    A group without spread (max == min) gives exactly 0, whatever rounding does to its mean; `degenerate_groups`
    counts those. A singleton has nothing to be compared with and gives 0 too (verl lets its raw reward through).
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
    groups = _grouped(rewards, group_size)
    scored = ~groups.isnan()
    values = torch.where(scored, groups, 0.0)
    count = scored.sum(-1, keepdim=True)
    centred = values - values.sum(-1, keepdim=True) / count.clamp(min=1)
    if scale == "std":
        squares = torch.where(scored, centred, 0.0).square().sum(-1, keepdim=True)
        centred = centred / ((squares / (count - 1).clamp(min=1)).sqrt() + STD_EPSILON)
    elif scale == "leave_one_out":
        centred = centred * count / (count - 1).clamp(min=1)
    return torch.where(scored & ~_without_spread(groups).unsqueeze(-1), centred, 0.0).flatten()


def degenerate_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[B / G] bool: groups whose rewards do not differ (or hold fewer than two scored responses): all A are 0."""
    return _without_spread(_grouped(rewards, group_size))


def _grouped(rewards: Tensor, group_size: int) -> Tensor:
    if rewards.dim() != 1:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}; expected [B], one scalar per response")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(
            f"group_size = {group_size} does not divide the batch of {rewards.shape[0]} rewards; "
            "expected whole groups, side by side"
        )
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    return rewards.detach().to(dtype).view(-1, group_size)


def _without_spread(groups: Tensor) -> Tensor:
    unscored = groups.isnan()
    highest = torch.where(unscored, -torch.inf, groups).amax(-1)
    lowest = torch.where(unscored, torch.inf, groups).amin(-1)
    return highest <= lowest
