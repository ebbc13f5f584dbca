"""Advantages A: how good a response was within its group of responses to the same prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dgpo.fields import Checked, number
from dgpo.registry import build

SCALES = ("std", "none", "leave_one_out")
REWARD_AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
STD_EPSILON = 1e-6
"""Added to the standard deviation, as in verl (TRL adds 1e-4)."""
COLUMN_EPSILON = 1e-4
"""Added to the standard deviation of each reward by `normalize_then_sum`, as in TRL."""
ROUNDING = 2.0**-21
"""Bound, relative to the summands, on the difference that float32 rewards and weights leave between two totals that are
equal in exact arithmetic: 2^-24 for each of the two rewards, twice that for the weight, and the rest for a standard
deviation."""

History = dict[str, list[float]]
"""prompt -> [steps, mean, standard deviation], cumulative over the steps in which it was sampled."""


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
    given = torch.stack([_grouped(column, group_size) for column in columns])
    weight = weights.detach().double().view(-1, 1, 1)
    values = torch.where(given.isnan(), 0.0, given)
    if aggregation == "normalize_then_sum":
        centred, std, _ = _moments(given)
        # without spread, `centred` is the rounding of the mean, which 1 / 1e-4 would amplify
        weight = torch.where(_without_spread(given).unsqueeze(-1), 0.0, weight / (std + COLUMN_EPSILON))
        parts = weight * torch.where(given.isnan(), 0.0, centred)
    else:
        # a missing reward adds 0, and the ranges below compare it as 0
        parts = weight * values
    scored = ~given.isnan().all(0)
    lowest, highest = _range(parts, scored)
    # [K, B/G, 1]: which rewards differ within a group
    varies = (highest > lowest).unsqueeze(-1)
    # a single varying reward is compared exactly: no sum, no rounding
    summed = torch.where(varies, weight.abs() * values.abs().amax(-1, keepdim=True), 0.0).sum(0)
    rounding = torch.where(varies.sum(0) > 1, ROUNDING * summed, 0.0).squeeze(-1)
    totals = parts.sum(0)
    lowest, highest = _range(totals, scored)
    totals = torch.where((highest - lowest <= rounding).unsqueeze(-1), highest.unsqueeze(-1), totals)
    return torch.where(scored, totals, torch.nan).flatten()


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
    groups = _grouped(rewards, group_size)
    centred, std, count = _moments(groups)
    if scale == "std":
        centred = centred / (std + STD_EPSILON)
    elif scale == "leave_one_out":
        # R - mean of the other n - 1 is (R - mean of all n) · n / (n - 1)
        centred = centred * count / (count - 1).clamp(min=1)
    # exactly 0, not the rounding of a mean of equal rewards: consumers test for A == 0
    return torch.where(~groups.isnan() & ~_without_spread(groups).unsqueeze(-1), centred, 0.0).flatten()


def entropy_shaped(advantage: Tensor, entropy: Tensor, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """`A + min(alpha · H, |A| / kappa)` per token: uncertain tokens of good responses count more, of bad ones less.

    The bonus is never negative and, for kappa > 1, never changes the sign of A; A = 0 stays 0.

    Args:
        advantage: [B] or [B, T].
        entropy: [B, T] entropy of the current policy, in nats; detached here.
        alpha: >= 0; the paper uses 0.4 with GRPO and 0.1 with PPO.
        kappa: > 1; the paper uses 2.

    Returns:
        [B, T].

    Source: Cheng et al., arXiv 2506.14758, eq. 5-6. No code of it was found.
    """
    if advantage.dim() == 1:
        advantage = advantage.unsqueeze(1)
    return advantage + torch.minimum(alpha * entropy.detach(), advantage.abs() / kappa)


def smooth_advantage(rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
    """DCPO's smooth advantage standardisation: this step's statistics mixed with those of all steps of the prompt.

    For the i-th step in which a prompt is sampled, with its rewards R of this step, mean and std of this step ("new")
    and cumulative ("total")::

        a_new   = (R - mean_new) / std_new            0 where the std is 0
        a_total = (R - mean_total) / std_total        0 where the std is 0, up to the rounding of float32
        A = the one of smaller size of  a_total/i + (1 - 1/i) · a_new  and  a_new/i + (1 - 1/i) · a_total

        mean_total(i) = ((i-1) · mean_total(i-1) + mean_new) / i
        var_total(i)  = ((i-1) · var_total(i-1) + var_new + (i-1)/i · (mean_new - mean_total(i-1))²) / i

    A group without spread can have A ≠ 0 here, once the prompt has had spread in another step: that is its purpose.
    A NaN reward gets A = 0 and is left out.

    Args:
        rewards: [B], in consecutive groups.
        group_size: G >= 1. A response alone in its group, as evaluation may have them, has a_new = 0.
        prompts: [B / G] one key per group. A prompt that occurs twice in a batch counts as two steps.
        history: statistics by prompt; updated in place. When a run is resumed inside a generation, its
            prompts are sampled again and count as one more step.

    Source: arXiv 2509.02333, section 4.2; lime-RL/DCPO@01787b0f verl/trainer/ppo/core_algos.py:363-470 (its variances
    are those of torch.std, unbiased, without an epsilon).

    Raises:
        ValueError: a group size that does not divide B, or a number of prompts other than B / G.
    """
    groups = _grouped(rewards, group_size)
    if len(prompts) != len(groups):
        raise ValueError(
            f"got {len(prompts)} prompts for {len(groups)} groups of {group_size}; expected one prompt per group"
        )
    scored = ~groups.isnan()
    centred, std, _ = _moments(groups)
    spread = ~_without_spread(groups)
    out = torch.zeros_like(groups)
    for row, prompt in enumerate(prompts):
        if not scored[row].any():
            continue
        values = groups[row]
        own = values[scored[row]].double()
        # without spread the mean of equal rewards may differ from them by rounding, their maximum does not
        new_mean, new_std = (float(own.mean()), float(std[row])) if spread[row] else (float(own.amax()), 0.0)
        steps, mean, deviation = history.get(prompt, [0, 0.0, 0.0])
        i = steps + 1
        variance = (steps * deviation**2 + new_std**2 + steps / i * (new_mean - mean) ** 2) / i
        mean, deviation = (steps * mean + new_mean) / i, variance**0.5
        history[prompt] = [i, mean, deviation]
        a_new = centred[row] / new_std if new_std > 0 else torch.zeros_like(values)
        # if every step has the same reward, the means still differ by rounding
        steady = deviation <= ROUNDING * abs(mean)
        a_total = torch.zeros_like(values) if steady else (values - mean) / deviation
        first, second = a_total / i + (1 - 1 / i) * a_new, a_new / i + (1 - 1 / i) * a_total
        out[row] = torch.where(scored[row], torch.where(first.abs() < second.abs(), first, second), 0.0)
    return out.flatten()


def degenerate_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[B / G] bool: groups without spread, where all rewards are equal or fewer than two responses are scored.

    The advantages above (all 0 in such a group), dynamic sampling and metrics all use this definition. `total_rewards`
    reduces several rewards per response to one.

    Args:
        rewards: [B] one scalar reward per response, NaN where there is none.
        group_size: G >= 1; must divide B.
    """
    return _without_spread(_grouped(rewards, group_size))


# --- advantages as values, for configurations ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Advantage(Checked, ABC):
    """How a trainer turns rewards into advantages."""

    reads: ClassVar[frozenset[Literal["entropy", "history"]]] = frozenset()
    """What it reads besides rewards: "entropy" if `shaped` reads the current entropies, so that the advantage changes
    in every update; "history" if `of_groups` keeps statistics by prompt, which a checkpoint must then save."""

    @abstractmethod
    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        """[B] advantages from the rewards of complete groups, once per generation."""

    def shaped(self, advantage: Tensor, entropy: Tensor) -> Tensor:
        """The advantage in the loss, [B] or [B, T], computed in every update; by default `advantage` unchanged."""
        return advantage


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


@dataclass(frozen=True, kw_only=True)
class EntropyShaped(Standardised):
    """GRPO's, with a bonus for uncertain tokens, computed in every update (`entropy_shaped`).

    Args:
        alpha: size of the bonus per nat of entropy; the paper uses 0.4 with GRPO.
        kappa: the bonus is at most |A| / kappa; the paper uses 2.
    """

    reads = frozenset({"entropy"})

    alpha: float = number(0.4, "[0, inf)")
    kappa: float = number(2.0, "(1, inf]")

    def shaped(self, advantage: Tensor, entropy: Tensor) -> Tensor:
        return entropy_shaped(advantage, entropy, self.alpha, self.kappa)


@dataclass(frozen=True, kw_only=True)
class Smooth(Advantage):
    """DCPO's: this step's statistics mixed with those of all steps of the prompt (`smooth_advantage`)."""

    reads = frozenset({"history"})

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        return smooth_advantage(rewards, group_size, prompts, history)


ADVANTAGES: dict[str, type[Advantage]] = {
    "std": Standardised,
    "none": Centred,
    "leave_one_out": LeaveOneOut,
    "entropy_shaped": EntropyShaped,
    "smooth": Smooth,
}


def make(name: str | Mapping[str, Any], **fields: Any) -> Advantage:
    """Build an advantage by name, for example `make("entropy_shaped", alpha=0.4)`.

    Args:
        name: as accepted by `dgpo.registry.parse`, with or without fields.
        fields: further fields.

    Raises:
        ValueError: an unknown name or field, with the nearest known one; or a field outside its range.
    """
    return build("advantage", ADVANTAGES, name, fields)


def _grouped(rewards: Tensor, group_size: int) -> Tensor:
    if rewards.dim() != 1:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}; expected [B], one scalar per response")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(
            f"group_size = {group_size} does not divide the batch of {rewards.shape[0]} rewards; "
            "expected complete groups, one after another"
        )
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    return rewards.detach().to(dtype).view(-1, group_size)


def _moments(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred rewards [B/G, G], their unbiased standard deviation and number [B/G, 1], over the scored ones."""
    scored = ~groups.isnan()
    values = torch.where(scored, groups, 0.0)
    count = scored.sum(-1, keepdim=True)
    # finite also where a reward is NaN (minus the mean): callers mask those places
    centred = values - values.sum(-1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(scored, centred, 0.0).square().sum(-1, keepdim=True)
    return centred, (squares / (count - 1).clamp(min=1)).sqrt(), count


def _without_spread(groups: Tensor) -> Tensor:
    lowest, highest = _range(groups, ~groups.isnan())
    return highest <= lowest


def _range(groups: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest of each group's scored values; ∞ and -∞ where there are none."""
    lowest = torch.where(scored, groups, torch.inf).amin(-1)
    return lowest, torch.where(scored, groups, -torch.inf).amax(-1)
