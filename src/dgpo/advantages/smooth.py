"""DCPO's advantage, which remembers the rewards of a prompt's earlier steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.groups import grouped, moments, without_spread
from dgpo.advantages.totals import ROUNDING
from dgpo.counts import counted


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
    groups = grouped(rewards, group_size)
    if len(prompts) != len(groups):
        raise ValueError(
            f"got {counted(len(prompts), 'prompt')} for {counted(len(groups), 'group')} of {group_size}; "
            "expected one prompt per group"
        )
    scored = ~groups.isnan()
    centred, std, _ = moments(groups)
    spread = ~without_spread(groups)
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


@dataclass(frozen=True, kw_only=True)
class Smooth(Advantage):
    """DCPO's: this step's statistics mixed with those of all steps of the prompt (`smooth_advantage`)."""

    reads = frozenset({"history"})
    needs_spread: ClassVar[bool] = False

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        return smooth_advantage(rewards, group_size, prompts, history)
