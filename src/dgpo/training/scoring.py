"""From the rewards of a generation to its advantages, and which of its groups have something to teach."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from torch import Tensor

from dgpo.advantages import degenerate_groups, total_rewards

if TYPE_CHECKING:
    from dgpo.training.trainer import DGPOTrainer


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the rewards of one generation say of this rank's responses.

    Attributes:
        total: [B] what the advantage is made of (`total_rewards`); NaN where no reward was given.
        has_spread: [B] bool: its group has spread; elsewhere the advantage is 0.
    """

    total: Tensor
    has_spread: Tensor


class Scoring:
    """Replaces or completes TRL's advantages with those of the configuration, on the totals of `total_rewards`.

    Groups without spread (`degenerate_groups`) get advantage exactly 0, where TRL's formula divides by 1e-4 what
    rounding has left of a constant reward; TRL's metric `frac_reward_zero_std` and its table of completions are
    brought into line with that.

    Args:
        trainer: gives rewards, weights, options and the history of rewards by prompt.

    Raises:
        ValueError: a reward weight that is not finite.
    """

    def __init__(self, trainer: DGPOTrainer) -> None:
        self.trainer = trainer
        if not trainer.reward_weights.isfinite().all():
            raise ValueError(f"reward_weights = {trainer.reward_weights.tolist()}; expected finite numbers")

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
        return Scores(total=total[mine], has_spread=has_spread[mine])

    def _advantages(self, inputs: list[dict[str, Any]], total: Tensor, size: int) -> Tensor:
        """[B · ranks] by the advantage of the configuration."""
        trainer = self.trainer
        assert trainer._advantage is not None
        # evaluation reads the history of training and must not write to it
        history = trainer._reward_history if trainer.model.training else dict(trainer._reward_history)
        prompts = [json.dumps(row.get("prompt")) for row in inputs] if trainer._advantage.reads_history else []
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
