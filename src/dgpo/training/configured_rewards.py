"""Which rewards of a run measure correctness, and which select groups in dynamic sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl.trainer.utils import get_callable_name

from dgpo.registry import did_you_mean
from dgpo.rewards import RewardFunction, is_shaping
from dgpo.training.config import DGPOConfig


def check_choice(config: DGPOConfig, built: Sequence[RewardFunction]) -> None:
    """Check the rewards of a run before a model is loaded.

    Raises:
        ValueError: the number of weights is not that of the rewards, or `deciding_columns` raises.
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
    """Which rewards measure correctness, and which select groups in dynamic sampling.

    The first are all rewards that are not shaping terms. The second are those of `dynamic_sampling_rewards` if it is
    set, otherwise the same.

    Args:
        config: of the run.
        named: K pairs: the name under which TRL logs the reward, and the reward.
        weights: [K].

    Returns:
        Two lists of indices of rewards.

    Raises:
        ValueError: an unknown name in `dynamic_sampling_rewards`, or no reward of either kind although the
            configuration needs one.
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
                f"dynamic_sampling has no reward to select groups by: {instead}; name one in dynamic_sampling_rewards"
            )
        if config.positive_nll_coef > 0:
            raise ValueError(
                f"positive_nll_coef = {config.positive_nll_coef} needs a reward that measures correctness: {instead}"
            )
    return outcomes, outcomes if chosen is None else [c for c, name in enumerate(names) if name in chosen]
