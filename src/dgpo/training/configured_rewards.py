"""Which rewards of a run say that a response is correct, and which decide about its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl.trainer.utils import get_callable_name

from dgpo.registry import did_you_mean
from dgpo.rewards import RewardFunction, is_shaping
from dgpo.training.config import DGPOConfig


def check_choice(config: DGPOConfig, built: Sequence[RewardFunction]) -> None:
    """What the trainer refuses, before a model is loaded.

    Raises:
        ValueError: not one weight per reward; what `deciding_columns` refuses.
    """
    named = [(get_callable_name(reward), reward) for reward in built]
    weights = [1.0] * len(built) if config.reward_weights is None else config.reward_weights
    if len(weights) != len(built):
        raise ValueError(
            f"reward_weights = {weights}; expected one for each reward: {', '.join(name for name, _ in named)}"
        )
    deciding_columns(config, named, weights)


def deciding_columns(
    config: DGPOConfig, named: Sequence[tuple[str, Any]], weights: Sequence[float]
) -> tuple[list[int], list[int]]:
    """Which rewards say whether a response is correct, and which decide in dynamic sampling.

    The first are all that are no shaping terms. The second are those of `dynamic_sampling_rewards`, or else the same.

    Args:
        config: of the run.
        named: K pairs of the name under which TRL logs a reward, and the reward.
        weights: [K].

    Returns:
        Two lists of indices of rewards.

    Raises:
        ValueError: an unknown name in `dynamic_sampling_rewards`, no reward that decides, or none that says which
            responses are correct, where the configuration needs one.
    """
    names, chosen = [name for name, _ in named], config.dynamic_sampling_rewards
    outcomes = [column for column, (_, reward) in enumerate(named) if not is_shaping(reward)]
    for name in chosen or ():
        if name not in names:
            raise ValueError(
                f"dynamic_sampling_rewards: unknown reward {name!r}{did_you_mean(name, names)}; the rewards of this "
                f"run: {', '.join(names)}"
            )
    if not any(weights[column] for column in outcomes):
        instead = f"all of {', '.join(names)} are shaping terms (dgpo.rewards.is_shaping) or have weight 0"
        if config.dynamic_sampling and chosen is None:
            raise ValueError(
                f"dynamic_sampling has no reward that decides which groups stay: {instead}; name one in "
                "dynamic_sampling_rewards"
            )
        if config.positive_nll_coef > 0:
            raise ValueError(
                f"positive_nll_coef = {config.positive_nll_coef} has no reward that says which responses are correct: "
                f"{instead}"
            )
    return outcomes, outcomes if chosen is None else [c for c, name in enumerate(names) if name in chosen]
