"""Rewards by name or import path, for configuration files."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from dgpo.grading import MathGrader
from dgpo.imports import SYNTAX, imported, is_path
from dgpo.registry import did_you_mean
from dgpo.rewards.functions import FormatReward, MathReward, SoftOverlongReward, answer_reward

RewardFunction = Callable[..., list[float | None]]

REWARDS: dict[str, Callable[..., Any]] = {
    "math_reward": MathReward,
    "format_reward": FormatReward,
    "soft_overlong_reward": SoftOverlongReward,
    "answer_reward": answer_reward,
}
"""Name -> a class with options, or a function without."""


def make(name: str, **options: Any) -> RewardFunction:
    """The reward of that name.

    Raises:
        ValueError: an unknown name or option (the error names the nearest known one), an option out of range, or
            options for a reward that has none.
    """
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}{did_you_mean(name, REWARDS)}; known: {', '.join(REWARDS)}")
    reward = REWARDS[name]
    if not inspect.isclass(reward):
        if options:
            raise ValueError(f"reward {name!r} has no options; got {', '.join(options)}")
        return cast(RewardFunction, reward)
    known = option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"reward {name!r} has no option {option!r}{did_you_mean(option, known)}; known: {', '.join(known)}"
            )
    try:
        made = cast(RewardFunction, reward(**options))
    # a required option is missing, such as `buffer`
    except TypeError as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    return made


def option_names(name: str) -> list[str]:
    """The options of a reward, including those that `MathReward` passes on to `MathGrader`."""
    reward = REWARDS[name]
    if not inspect.isclass(reward):
        return []
    own = [p.name for p in inspect.signature(reward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return own + (list(inspect.signature(MathGrader).parameters) if reward is MathReward else [])


def build(
    entries: Sequence[str | dict[str, Any]], max_completion_length: int
) -> tuple[list[RewardFunction], list[float]]:
    """Reward functions and their weights.

    Args:
        entries: each a name of `dgpo.rewards.REWARDS` or an import path such as `my_package.rewards:mine` (the working
            directory is searched first), or a mapping with `name`, optionally `weight` (default 1.0), and the options
            of the reward: `{"name": "soft_overlong_reward", "buffer": 4096, "weight": 0.5}`.
        max_completion_length: of the run; the default for rewards that have an option of this name.

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
        # True is an int
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weight = {weight!r} of reward {name!r}; expected a finite number")
        if name in REWARDS:
            if "max_completion_length" in option_names(name):
                fields.setdefault("max_completion_length", max_completion_length)
            built.append(make(name, **fields))
        elif fields:
            raise ValueError(f"reward {name!r} is imported and takes no options; got {', '.join(fields)}")
        else:
            built.append(_imported(name))
        weights.append(float(weight))
    return built, weights


def _imported(name: str) -> RewardFunction:
    if not is_path(name):
        raise ValueError(
            f"unknown reward {name!r}{did_you_mean(name, REWARDS)}; known: {', '.join(REWARDS)}, or an import path "
            f"{SYNTAX}"
        )
    found = imported("reward", name)
    if not callable(found):
        raise ValueError(f"the reward {name!r} is of type {type(found).__name__}; expected a function")
    made: RewardFunction = found
    return made
