"""From the rewards of a generation to its advantages, and which of its groups have something to teach."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from dgpo.advantages import degenerate_groups, total_rewards
from dgpo.training.configured_rewards import deciding_columns

if TYPE_CHECKING:
    from dgpo.training.trainer import DGPOTrainer


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the rewards of one generation say of this rank's responses.

    Attributes:
        total: [B] what the advantage is made of (`total_rewards`); NaN where no reward was given.
        correct: [B] bool: the weighted sum of the rewards that are no shaping terms is above 0.
        informative: [B] bool: its group teaches something that dynamic sampling asks for. It has spread in the total,
            without which the advantage is 0, and in the weighted sum of the rewards that decide.
    """

    total: Tensor
    correct: Tensor
    informative: Tensor


class Scoring:
    """Replaces or completes TRL's advantages with those of the configuration, on the totals of `total_rewards`.

    Groups without spread (`degenerate_groups`) get advantage exactly 0, where TRL's formula divides by 1e-4 what
    rounding has left of a constant reward; TRL's metric `frac_reward_zero_std` and its table of completions are
    brought into line with that.

    The rewards that decide about a group in dynamic sampling are those of `dynamic_sampling_rewards`, or else all that
    are no shaping terms (`dgpo.rewards.is_shaping`): a group of wrong answers of different lengths has spread in the
    total, and nothing to teach about the task. Their sum is weighted as in the total.

    Args:
        trainer: gives rewards, weights, options and the history of rewards by prompt.

    Raises:
        ValueError: what `deciding_columns` refuses.
    """

    def __init__(self, trainer: DGPOTrainer) -> None:
        self.trainer = trainer
        names = list(zip(trainer.reward_func_names, trainer.reward_funcs, strict=True))
        self._outcomes, self._deciding = deciding_columns(trainer.args, names, trainer.reward_weights.tolist())

    def __call__(self, inputs: list[dict[str, Any]], rewards: Tensor, output: dict[str, Any]) -> Scores:
        """Score one generation batch: sets `output["advantages"]`.

        Args:
            inputs: [B] rows of this rank, of which groups may reach over ranks.
            rewards: [B · ranks, K] of all ranks, NaN where a reward function gave none.
            output: TRL's, of this rank.
        """
        trainer = self.trainer
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        rewards = rewards.cpu()
        self._refuse_infinite(rewards)
        total = total_rewards(rewards, trainer.reward_weights.cpu(), size, trainer.multi_objective_aggregation)
        degenerate = degenerate_groups(total, size)
        has_spread = ~degenerate.repeat_interleave(size)
        logged = trainer._metrics["train" if training else "eval"]["frac_reward_zero_std"]
        logged[-1] = degenerate.float().mean().item()
        given = output["advantages"]
        place = trainer.accelerator.process_index * len(given)
        mine = slice(place, place + len(given))
        if trainer._advantage is None:
            taught = has_spread[mine].to(given.device).view(-1, *[1] * (given.dim() - 1))
            output["advantages"] = given.masked_fill(~taught, 0.0)
            self._log(None, has_spread)
        else:
            advantages = self._advantages(inputs, total, size)
            output["advantages"] = advantages[mine].to(given)
            self._log(advantages, has_spread)
        return Scores(
            total=total[mine],
            correct=(self._sum(rewards, self._outcomes) > 0)[mine],
            informative=(has_spread & self._decides(rewards, size))[mine],
        )

    def _sum(self, rewards: Tensor, columns: list[int]) -> Tensor:
        """[B · ranks] the weighted sum of some rewards; 0 where all of them are None."""
        return (rewards[:, columns] * self.trainer.reward_weights.cpu()[columns]).nansum(1)

    def _decides(self, rewards: Tensor, size: int) -> Tensor:
        """[B · ranks] bool: the group has spread in the rewards that decide about it; False without any."""
        trainer, columns = self.trainer, self._deciding
        if not columns:
            return torch.zeros(len(rewards), dtype=torch.bool)
        weights = trainer.reward_weights.cpu()[columns]
        if trainer.args.dynamic_sampling_rewards is not None:
            weights = torch.where(weights == 0, 1.0, weights)
        total = total_rewards(rewards[:, columns], weights, size, trainer.multi_objective_aggregation)
        return ~degenerate_groups(total, size).repeat_interleave(size)

    def _advantages(self, inputs: list[dict[str, Any]], total: Tensor, size: int) -> Tensor:
        """[B · ranks] by the advantage of the configuration."""
        trainer = self.trainer
        assert trainer._advantage is not None
        # evaluation reads the history of training and must not write to it
        history = trainer._reward_history if trainer.model.training else dict(trainer._reward_history)
        # what JSON has no form for, such as an image in an evaluation, is a prompt that training has not seen
        prompts = [json.dumps(row.get("prompt"), default=repr) for row in inputs]
        prompts = prompts if "history" in trainer._advantage.reads else []
        # one per group, of all ranks
        return trainer._advantage.of_groups(total, size, gather_object(prompts)[::size], history)

    def _log(self, advantages: Tensor | None, has_spread: Tensor) -> None:
        """Correct the table of completions, to which TRL has just added its advantages of all ranks."""
        logged = self.trainer._logs["advantages"]
        count = min(len(logged), len(has_spread))
        before = [logged.pop() for _ in range(count)][::-1]
        if advantages is None:
            logged.extend(a if taught else 0.0 for a, taught in zip(before, has_spread[-count:].tolist(), strict=True))
        else:
            logged.extend(advantages[-count:].tolist())

    def _refuse_infinite(self, rewards: Tensor) -> None:
        names = [n for n, column in zip(self.trainer.reward_func_names, rewards.T, strict=True) if column.isinf().any()]
        if names:
            raise ValueError(
                f"reward {names[0]!r} returned an infinity; expected a finite number, or None for no reward"
            )
