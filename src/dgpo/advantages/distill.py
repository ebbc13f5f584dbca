"""On-policy distillation: the log-probs of a teacher as advantages of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.advantages.advantage import Advantage, History, Read
from dgpo.advantages.of_rewards import OF_REWARDS
from dgpo.fields import choice, number

_BESIDE = tuple(name for name, cls in OF_REWARDS.items() if not cls.reads and cls.aggregation == Advantage.aggregation)
"""Advantages of rewards that can be added: one number per response, of the sum of its rewards."""


@dataclass(frozen=True, kw_only=True)
class Distill(Advantage):
    """How much more likely the teacher finds each token that the policy sampled::

        A_t = coef · (log π_teacher - log π_old) + A_reward

    On-policy and alone, the expected gradient over the tokens of a position is minus that of KL(π ‖ π_teacher)
    there, times `coef`; what a token does to later positions is left out, as in every code below. log π_old is the
    policy that the tokens were sampled from, and A is the same in all updates of a generation.

    Args:
        coef: of the teacher's term.
        reward: name of the advantage, with its defaults, that is added; None leaves the rewards out, which are then
            only logged.

    Source: Lu et al., "On-Policy Distillation", Thinking Machines Lab, 2025; tinker-cookbook@9dfcc3a2
    tinker_cookbook/distillation/train_on_policy.py:50 (`kl_penalty_coef`, added to centred rewards);
    Trinity-RFT@bc882839 trinity/algorithm/advantage_fn/on_policy_distill_advantage.py; trl 1.16 `IWOPDTrainer` with
    `iw_opd_gamma=0`. All of these take the log-probs of the sampling policy.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"teacher"})
    needs_spread: ClassVar[bool] = False

    coef: float = number(1.0, "(0, inf)")
    reward: str | None = choice(None, *_BESIDE)

    def check_group_size(self, group_size: int) -> None:
        if self.reward is not None:
            OF_REWARDS[self.reward]().check_group_size(group_size)

    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        if self.reward is None:
            return torch.zeros_like(rewards.detach())
        return OF_REWARDS[self.reward]().of_groups(rewards, group_size, prompts, history)

    def of_tokens(self, advantage: Tensor, old_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
        return self.coef * (teacher_logprob - old_logprob).detach() + advantage.unsqueeze(1)
