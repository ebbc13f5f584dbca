"""Groups of responses to one prompt: their moments over the scored responses, and which have no spread."""

from __future__ import annotations

import torch
from torch import Tensor


def degenerate_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[B / G] bool: groups without spread, where all rewards are equal or fewer than two responses are scored.

    The advantages above (all 0 in such a group), dynamic sampling and metrics all use this definition. `total_rewards`
    reduces several rewards per response to one.

    Args:
        rewards: [B] one scalar reward per response, NaN where there is none.
        group_size: G >= 1; must divide B.
    """
    return without_spread(grouped(rewards, group_size))


def grouped(rewards: Tensor, group_size: int) -> Tensor:
    """[B / G, G] rewards, detached: float64 stays, everything else becomes float32."""
    if rewards.dim() != 1:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}; expected [B], one scalar per response")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(
            f"group_size = {group_size} does not divide the batch of {rewards.shape[0]} rewards; "
            "expected complete groups, one after another"
        )
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    return rewards.detach().to(dtype).view(-1, group_size)


def moments(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred rewards [B/G, G], their unbiased standard deviation and number [B/G, 1], over the scored ones."""
    scored = ~groups.isnan()
    values = torch.where(scored, groups, 0.0)
    count = scored.sum(-1, keepdim=True)
    # finite also where a reward is NaN (minus the mean): callers mask those places
    centred = values - values.sum(-1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(scored, centred, 0.0).square().sum(-1, keepdim=True)
    return centred, (squares / (count - 1).clamp(min=1)).sqrt(), count


def without_spread(groups: Tensor) -> Tensor:
    """[B / G] bool: groups whose scored rewards are all equal, or that have fewer than two."""
    lowest, highest = value_range(groups, ~groups.isnan())
    return highest <= lowest


def value_range(groups: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest of each group's scored values; ∞ and -∞ where there are none."""
    lowest = torch.where(scored, groups, torch.inf).amin(-1)
    return lowest, torch.where(scored, groups, -torch.inf).amax(-1)
