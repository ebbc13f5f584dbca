"""GDPO: several rewards, each normalised by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History
from dgpo.advantages.groups import grouped, moments, without_spread
from dgpo.advantages.totals import COLUMN_EPSILON


@dataclass(frozen=True, kw_only=True)
class DecoupledRewards(Advantage):
    """Every reward normalised in its group, their weighted sum normalised over the whole generation.

    With R the `normalize_then_sum` of `total_rewards`, which the trainer forms for this advantage, and mean and
    (unbiased) std over all scored responses of the generation, on all ranks::

        A = (R - mean(R)) / (std(R) + 1e-4)

    It is TRL's `multi_objective_aggregation="normalize_then_sum"`, except that a group without spread in R gives
    exactly 0. verl's `gdpo` has 1e-6 in the first normalisation and weighs responses by their tokens in the second.

    Source: arXiv 2601.05242; trl 1.16 `GRPOTrainer._generate_and_score_completions`.
    """

    aggregation: ClassVar[str] = "normalize_then_sum"

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        groups = grouped(rewards, group_size)
        # all as one group
        centred, std, _ = moments(groups.view(1, -1))
        found = (centred / (std + COLUMN_EPSILON)).view_as(groups)
        return torch.where(~groups.isnan() & ~without_spread(groups).unsqueeze(-1), found, 0.0).flatten()
