"""Rewards by name, for configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from dgpo.grading.exact import answer_reward
from dgpo.registry import did_you_mean
from dgpo.rewards.functions import FormatReward, MathReward, SoftOverlongReward

RewardFunction = Callable[..., list[float | None]]

REWARDS: dict[str, Callable[..., Any]] = {
    "math_reward": MathReward,
    "format_reward": FormatReward,
    "soft_overlong_reward": SoftOverlongReward,
    "answer_reward": answer_reward,
}
"""name -> a class with options, or a function without any"""


def make(name: str, **options: Any) -> RewardFunction:
    """The reward of that name.

    Raises:
        ValueError: an unknown name or option (with the nearest known one), an option out of range, or options for a
            reward that has none.
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
    except TypeError as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    return made


def option_names(name: str) -> list[str]:
    """The options of a reward, with those that `MathReward` hands on to `MathGrader`."""
    from dgpo.grading.grader import MathGrader

    reward = REWARDS[name]
    if not inspect.isclass(reward):
        return []
    own = [p.name for p in inspect.signature(reward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return own + (list(inspect.signature(MathGrader).parameters) if reward is MathReward else [])
