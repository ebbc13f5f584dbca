"""From the rewards of a generation to its advantages, and which of its groups give a gradient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from dgpo.advantages import Advantage, History, degenerate_groups, total_rewards
from dgpo.training.config import DGPOConfig
from dgpo.training.configured_rewards import deciding_columns


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the rewards of one generation say of N responses: of all ranks, or of one.

    Attributes:
        total: [N] what the advantage is made of (`total_rewards`); NaN where no reward was given.
        spread: [N] bool: its group has spread in the total, without which most advantages are 0.
        advantages: [N] those of the configuration; None where TRL's stand.
        correct: [N] bool: the weighted sum of the rewards that are not shaping terms is above 0.
        informative: [N] bool: its group has what dynamic sampling asks for, spread in the total and in the weighted sum
            of the rewards that decide.
    """

    total: Tensor
    spread: Tensor
    advantages: Tensor | None
    correct: Tensor
    informative: Tensor

    def of(self, rows: slice) -> Scores:
        """Of some of the responses."""
        values: dict[str, Any] = {name: None if value is None else value[rows] for name, value in vars(self).items()}
        return Scores(**values)

    def in_place_of(self, given: Tensor) -> Tensor:
        """The advantages, on the device and in the dtype of TRL's; or TRL's, set to 0 in groups without spread.

        Args:
            given: [N, ...] TRL's advantages of these responses.
        """
        if self.advantages is not None:
            return self.advantages.to(given)
        return given.masked_fill(~self.spread.to(given.device).view(-1, *[1] * (given.dim() - 1)), 0.0)


class Scoring:
    """Replaces or completes TRL's advantages with those of the configuration, on the totals of `total_rewards`.

    Groups without spread (`degenerate_groups`) get advantage exactly 0, where TRL's formula divides by 1e-4 what
    rounding has left of a constant reward.

    The rewards that decide about a group in dynamic sampling are those of `dynamic_sampling_rewards`, or else all that
    are not shaping terms (`dgpo.rewards.is_shaping`): a group of wrong answers of different lengths has spread in the
    total, and no gradient from it is about the task. Their sum is weighted as in the total.

    Args:
        config: of the run.
        rewards: K pairs of the name under which TRL logs a reward, and the reward.
        weights: [K].
        advantage: of the configuration; None where TRL's own stands.

    Attributes:
        history: statistics of the rewards by prompt, which some advantages keep.

    Raises:
        ValueError: what `deciding_columns` refuses.
    """

    def __init__(
        self,
        config: DGPOConfig,
        rewards: Sequence[tuple[str, Any]],
        weights: Sequence[float],
        advantage: Advantage | None,
    ) -> None:
        self._names = [name for name, _ in rewards]
        self._chosen = config.dynamic_sampling_rewards is not None
        self._outcomes, self._deciding = deciding_columns(config, rewards, weights)
        self._advantage = advantage
        self.history: History = {}

    def __call__(
        self, inputs: list[dict[str, Any]], rewards: Tensor, weights: Tensor, size: int, how: str, *, training: bool
    ) -> Scores:
        """Score one generation batch, of all ranks; every rank must call it.

        Args:
            inputs: rows of this rank, of which groups may reach over ranks.
            rewards: [N, K] of all ranks on the CPU, NaN where a reward function gave none.
            weights: [K] of the rewards.
            size: G, responses of a prompt.
            how: a name of `REWARD_AGGREGATIONS`; an advantage of the configuration has its own.
            training: whether to update the history; an evaluation only reads it.

        Raises:
            ValueError: a reward is infinite.
        """
        self._refuse_infinite(rewards)
        if self._advantage is not None:
            # the configuration has checked that TRL's option says nothing else
            how = self._advantage.aggregation
        total = total_rewards(rewards, weights, size, how)
        spread, informative = _has_spread(total, size), torch.zeros(len(total), dtype=torch.bool)
        if self._deciding:
            of_them = weights[self._deciding]
            # a reward of weight 0 that the user names would otherwise decide nothing
            if self._chosen:
                of_them = torch.where(of_them == 0, 1.0, of_them)
            decisive = total_rewards(rewards[:, self._deciding], of_them, size, how)
            informative = spread & _has_spread(decisive, size)
        return Scores(
            total=total,
            spread=spread,
            advantages=None if self._advantage is None else self._advantages(inputs, total, size, training),
            # [N] bool; nansum: a reward function that returned None says nothing
            correct=(rewards[:, self._outcomes] * weights[self._outcomes]).nansum(1) > 0,
            informative=informative,
        )

    def _advantages(self, inputs: list[dict[str, Any]], total: Tensor, size: int, training: bool) -> Tensor:
        """[N] by the advantage of the configuration."""
        assert self._advantage is not None
        # evaluation reads the history of training and must not write to it
        history = self.history if training else dict(self.history)
        # what JSON has no form for, such as an image in an evaluation, is a prompt that training has not seen
        prompts = [json.dumps(row.get("prompt"), default=repr) for row in inputs]
        # every rank calls it, also with nothing to send: it is a collective
        prompts = prompts if "history" in self._advantage.reads else []
        # one per group, of all ranks
        return self._advantage.of_groups(total, size, gather_object(prompts)[::size], history)

    def _refuse_infinite(self, rewards: Tensor) -> None:
        names = [name for name, column in zip(self._names, rewards.T, strict=True) if column.isinf().any()]
        if names:
            raise ValueError(
                f"reward {names[0]!r} returned an infinity; expected a finite number, or None for no reward"
            )


def _has_spread(total: Tensor, size: int) -> Tensor:
    """[N] bool: the group of a response has spread in the total."""
    return ~degenerate_groups(total, size).repeat_interleave(size)
