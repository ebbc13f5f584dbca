"""Advantages for pass@k: what a response adds to the best of k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.group_relative import STD_EPSILON
from dgpo.advantages.groups import grouped, moments
from dgpo.counts import counted
from dgpo.fields import choice, integer


@dataclass(frozen=True, kw_only=True)
class PassAtK(Advantage):
    """Pass@k training: the mean standardised advantage of all subsets of k responses that a response is in.

    With n responses of which c are correct, and C the binomial coefficient::

        p       = 1 - C(n - c, k) / C(n, k)        the share of subsets with a correct response
        σ       = sqrt(p (1 - p))
        correct   A = (1 - p) / (σ + 1e-6)
        wrong     A = (1 - p - C(n - c - 1, k - 1) / C(n - 1, k - 1)) / (σ + 1e-6)

    All subsets have a correct response where n - c < k, and A is 0 then, as it is where c = 0. k = 1 is GRPO with the
    biased standard deviation.

    Args:
        k: >= 1; a group with fewer scored responses gives 0.

    Raises:
        ValueError: from `of_groups`, a reward other than 0 and 1; from `check_group_size`, k > G.

    Source: arXiv 2508.10751; RUCAIBox/Passk_Training@c3ba575e code/passk_adv.py.
    """

    k: int = integer(4, "[1, inf)")

    def check_group_size(self, group_size: int) -> None:
        if self.k > group_size:
            raise ValueError(
                f"advantage 'pass_at_k' has k = {self.k}, more than the {counted(group_size, 'response')} of a group; "
                f"set num_generations >= {self.k}, or a smaller k"
            )

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        scored = ~groups.isnan()
        other = scored & (groups != 0) & (groups != 1)
        if other.any():
            raise ValueError(
                f"advantage 'pass_at_k' needs rewards that are 0 or 1, got {groups[other][0].item():.6g}; with several "
                "rewards, their weighted sum"
            )
        counts = torch.stack([scored.sum(-1), (groups == 1).sum(-1)], -1).tolist()
        of_two = groups.new_tensor([self._of_group(n, correct) for n, correct in counts])
        found = torch.where(groups == 1, of_two[:, :1], of_two[:, 1:])
        return torch.where(scored, found, 0.0).flatten()

    def _of_group(self, n: int, correct: int) -> tuple[float, float]:
        """Of a correct and of a wrong response. Integers until the end: no rounding decides what is 0."""
        k, wrong = self.k, n - correct
        subsets = math.comb(n, k)
        failing = math.comb(wrong, k)
        if failing in (0, subsets):
            return 0.0, 0.0
        fails = failing / subsets
        sigma = math.sqrt(fails * (1 - fails)) + STD_EPSILON
        # of the subsets with this wrong response, the share in which the others are wrong too
        return fails / sigma, (fails - math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)) / sigma


@dataclass(frozen=True, kw_only=True)
class BestOfGroup(Advantage):
    """verl's `grpo_passk`: only the best response counts, by its lead over the second best.

    With R the rewards of one group::

        A = (max(R) - second largest R) / (std(R) + 1e-6)       of the best response, 0 of all others

    That is the best of G with the best of the others as baseline. Two best responses have no lead: with rewards 0 and
    1, a group has a gradient where exactly one response is correct.

    Args:
        scale: "std" as above; "none" leaves the denominator out, as verl does with `norm_adv_by_std_in_grpo=False`.

    Source: arXiv 2503.19595; verl@1dda039b verl/trainer/ppo/core_algos.py, `compute_grpo_passk_outcome_advantage`.
    """

    scale: Literal["std", "none"] = choice("std", "std", "none")

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        scored = ~groups.isnan()
        _, std, count = moments(groups)
        if group_size < 2:
            return torch.zeros_like(groups).flatten()
        best = torch.where(scored, groups, -torch.inf).topk(2, -1)
        lead = (best.values[:, :1] - best.values[:, 1:]) / ((std + STD_EPSILON) if self.scale == "std" else 1.0)
        found = torch.zeros_like(groups).scatter(-1, best.indices[:, :1], lead)
        # with fewer than two scored responses the second best is -inf
        return torch.where(count > 1, found, 0.0).flatten()
