"""Shaping terms: rewards for how a response is written, not for whether it is correct."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

Reward = TypeVar("Reward", bound=Callable[..., Any])

TRL_MODULES = ("trl.rewards.format_rewards", "trl.rewards.other_rewards")
"""TRL 1.16's rewards of format, length and repetition. TRL does not know the attribute `shaping`."""


def shaping_term(reward: Reward) -> Reward:
    """Mark a reward as a shaping term, such as a length penalty. Use it as a decorator or as a function.

    It sets the attribute `shaping` of the function to True. Reward classes and reward models set `shaping = True`
    themselves. Dynamic sampling and the likelihood of correct responses (`positive_nll_coef`) use the other rewards
    only.
    """
    cast(Any, reward).shaping = True
    return reward


def is_shaping(reward: Any) -> bool:
    """Whether the attribute `shaping` of a reward, or of the function that it wraps, is True.

    Accepts anything that TRL accepts as a reward: a function, an object, a model. A reward without the attribute is not
    a shaping term, unless it is one of TRL's own (`TRL_MODULES`).
    """
    while not hasattr(reward, "shaping") and (inner := _wrapped(reward)) is not None:
        reward = inner
    if not hasattr(reward, "shaping"):
        return getattr(reward, "__module__", None) in TRL_MODULES
    return reward.shaping is True


def _wrapped(reward: Any) -> Any:
    return reward.func if isinstance(reward, partial) else getattr(reward, "__wrapped__", None)
