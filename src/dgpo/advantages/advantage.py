"""The contract of an advantage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dgpo.fields import Checked

History = dict[str, list[float]]
"""prompt -> [steps, mean, standard deviation], cumulative over the steps in which it was sampled."""

Read = Literal["entropy", "history", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Advantage(Checked, ABC):
    """How a trainer turns rewards into advantages."""

    reads: ClassVar[frozenset[Read]] = frozenset()
    """What it reads besides rewards: "entropy" if `shaped` reads the current entropies, so that the advantage changes
    in every update; "history" if `of_groups` keeps statistics by prompt, which a checkpoint must then save; "teacher"
    if `of_tokens` reads the log-probs of a teacher, so that it differs from token to token."""

    needs_spread: ClassVar[bool] = True
    """Whether a group in which all rewards are equal gets 0; False where its responses can have a gradient."""

    aggregation: ClassVar[str] = "sum_then_normalize"
    """How several rewards of a response become the one that `of_groups` takes (`total_rewards`)."""

    def check_group_size(self, group_size: int) -> None:
        """Raise ValueError if there is no such advantage in groups of this size."""
        return

    @abstractmethod
    def of_groups(self, rewards: Tensor, group_size: int, prompts: Sequence[str], history: History) -> Tensor:
        """[B] advantages from the rewards of complete groups, once per generation.

        Args:
            rewards: [B] in consecutive groups; NaN where a response has none, which gets advantage 0.
            group_size: G >= 1; must divide B.
            prompts: [B / G] one key per group; read by those that keep a history.
            history: statistics by prompt, updated in place by those that keep it.

        Raises:
            ValueError: a group size that does not divide B; rewards for which the advantage is not defined.
        """

    def of_tokens(self, advantage: Tensor, old_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
        """[B, T] once per generation, where a teacher is read.

        Args:
            advantage: [B] of `of_groups`.
            old_logprob: [B, T] log π_old of the sampled tokens.
            teacher_logprob: [B, T] the teacher's.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no teacher")

    def shaped(self, advantage: Tensor, entropy: Tensor) -> Tensor:
        """The advantage in the loss, [B] or [B, T], computed in every update; by default `advantage` unchanged."""
        return advantage
