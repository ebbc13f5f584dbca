"""From several rewards per response to the one that advantages are computed from."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo.advantages.groups import grouped, moments, value_range, without_spread

REWARD_AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
COLUMN_EPSILON = 1e-4
"""Added to the standard deviation of each reward by `normalize_then_sum`, as in TRL."""
ROUNDING = 2.0**-21
"""Bound, relative to the summands, on the difference that float32 rewards and weights leave between two totals that are
equal in exact arithmetic: 2^-24 for each of the two rewards, twice that for the weight, and the rest for a standard
deviation."""


def total_rewards(rewards: Tensor, weights: Tensor, group_size: int, aggregation: str = "sum_then_normalize") -> Tensor:
    """Total reward R of each response, from its K rewards; advantages are computed from it.

    With r the rewards and w the weights; mean and (unbiased) std over the group's rewards of one kind::

        sum_then_normalize   R = Σ_k w_k · r_k
        normalize_then_sum   R = Σ_k w_k · (r_k - mean_k) / (std_k + 1e-4)

    A NaN reward adds nothing to R, and neither does a reward without spread to the second R; R is NaN where all K
    rewards are. Sums are formed in float64. Where the totals of a group differ by no more than the rounding of float32
    rewards and weights (0.1 + 0.2 and 0.3 + 0.0), all are set to one value, so that `degenerate_groups` and the
    advantages agree on which groups have no spread.

    Args:
        rewards: [B, K], in consecutive groups; NaN where a reward function returned none.
        weights: [K], of any sign.
        group_size: G >= 1; must divide B.
        aggregation: one of the two above, the values of TRL's `multi_objective_aggregation`.

    Returns:
        [B] float64.

    Raises:
        ValueError: a wrong shape, a group size that does not divide B, an unknown aggregation, an infinite reward.

    Source: trl 1.16 `GRPOTrainer._generate_and_score_completions`, in float32 there and without the last step.
    """
    if aggregation not in REWARD_AGGREGATIONS:
        raise ValueError(
            f"aggregation = {aggregation!r} is not known; expected one of {', '.join(REWARD_AGGREGATIONS)}"
        )
    if rewards.dim() != 2 or weights.shape != rewards.shape[1:]:
        raise ValueError(
            f"rewards has shape {tuple(rewards.shape)} and weights {tuple(weights.shape)}; expected [B, K] and [K]"
        )
    if rewards.isinf().any():
        raise ValueError("rewards contains an infinity; expected finite numbers, or NaN for a missing reward")
    columns = rewards.detach().double().T
    # [K, B/G, G]
    given = torch.stack([grouped(column, group_size) for column in columns])
    weight = weights.detach().double().view(-1, 1, 1)
    values = torch.where(given.isnan(), 0.0, given)
    if aggregation == "normalize_then_sum":
        centred, std, _ = moments(given)
        # without spread, `centred` is the rounding of the mean, which 1 / 1e-4 would amplify
        weight = torch.where(without_spread(given).unsqueeze(-1), 0.0, weight / (std + COLUMN_EPSILON))
        parts = weight * torch.where(given.isnan(), 0.0, centred)
    else:
        # a missing reward adds 0, and the ranges below compare it as 0
        parts = weight * values
    scored = ~given.isnan().all(0)
    lowest, highest = value_range(parts, scored)
    # [K, B/G, 1]: which rewards differ within a group
    varies = (highest > lowest).unsqueeze(-1)
    # a single varying reward is compared exactly: no sum, no rounding
    summed = torch.where(varies, weight.abs() * values.abs().amax(-1, keepdim=True), 0.0).sum(0)
    rounding = torch.where(varies.sum(0) > 1, ROUNDING * summed, 0.0).squeeze(-1)
    totals = parts.sum(0)
    lowest, highest = value_range(totals, scored)
    totals = torch.where((highest - lowest <= rounding).unsqueeze(-1), highest.unsqueeze(-1), totals)
    return torch.where(scored, totals, torch.nan).flatten()
