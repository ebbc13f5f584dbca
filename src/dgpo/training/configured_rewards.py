"""The rewards of a run, from a list of names, import paths and options."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from trl.trainer.utils import get_callable_name

from dgpo import rewards
from dgpo.registry import did_you_mean
from dgpo.rewards.registry import RewardFunction, option_names
from dgpo.training.config import DGPOConfig


def build(
    entries: Sequence[str | dict[str, Any]], max_completion_length: int
) -> tuple[list[RewardFunction], list[float]]:
    """Reward functions and their weights.

    Args:
        entries: each a name of `dgpo.rewards.REWARDS` or an import path such as `my_package.rewards.mine` (the working
            directory is searched first), or a mapping with `name`, optionally `weight` (default 1.0), and the options
            of the reward: `{"name": "soft_overlong_reward", "buffer": 4096, "weight": 0.5}`.
        max_completion_length: of the run; for rewards that have an option of this name, unless it is given.

    Raises:
        ValueError: an unknown name or option, a path that cannot be imported, a weight that is not a number, no entry.
    """
    if not entries:
        raise ValueError("rewards is empty; expected at least one name or import path")
    built, weights = [], []
    for entry in entries:
        fields: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
        name, weight = fields.pop("name", None), fields.pop("weight", 1.0)
        if not isinstance(name, str):
            raise ValueError(f"rewards has the entry {entry!r}; expected a name, or a mapping with 'name'")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weight = {weight!r} of reward {name!r}; expected a number, and a finite one")
        if name in rewards.REWARDS:
            if "max_completion_length" in option_names(name):
                fields.setdefault("max_completion_length", max_completion_length)
            built.append(rewards.make(name, **fields))
        elif fields:
            raise ValueError(f"reward {name!r} is imported as it is and has no options; got {', '.join(fields)}")
        else:
            built.append(_imported(name))
        weights.append(float(weight))
    return built, weights


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
    outcomes = [column for column, (_, reward) in enumerate(named) if not rewards.is_shaping(reward)]
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


def _imported(name: str) -> RewardFunction:
    module, _, function = name.rpartition(".")
    if not module:
        raise ValueError(
            f"unknown reward {name!r}{did_you_mean(name, rewards.REWARDS)}; known: {', '.join(rewards.REWARDS)}, or an "
            "import path"
        )
    here = os.getcwd()
    sys.path.insert(0, here)  # a reward beside the script, as TRL allows
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the reward {name!r}: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"the reward {name!r} is of type {type(found).__name__}; expected a function")
    made: RewardFunction = found
    return made
