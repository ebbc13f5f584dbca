"""Which rewards are shaping terms: they judge how a response is written, not whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

Reward = TypeVar("Reward", bound=Callable[..., Any])

TRL_MODULES = ("trl.rewards.format_rewards", "trl.rewards.other_rewards")
"""TRL 1.16's rewards of format, length and repetition. They cannot carry the attribute, as TRL does not know it."""


def shaping_term(reward: Reward) -> Reward:
    """Mark a reward as a shaping term, such as a penalty on length; it works as a decorator and as a call.

    It sets the attribute `shaping` of the function to True. A class of rewards sets it itself, `shaping = True`, and so
    does a reward model. Dynamic sampling, and the likelihood on correct responses (`positive_nll_coef`), look at the
    other rewards only.
    """
    cast(Any, reward).shaping = True
    return reward


def is_shaping(reward: Any) -> bool:
    """True where the attribute `shaping` of the reward is True; of what a `functools.partial` or `wraps` wraps.

    Anything that TRL takes as a reward may be passed: a function, an object, a model. Without the attribute a reward is
    no shaping term, unless it is one of TRL's own that are (`TRL_MODULES`).
    """
    while not hasattr(reward, "shaping") and (inner := _wrapped(reward)) is not None:
        reward = inner
    if not hasattr(reward, "shaping"):
        return getattr(reward, "__module__", None) in TRL_MODULES
    return reward.shaping is True


def _wrapped(reward: Any) -> Any:
    return reward.func if isinstance(reward, partial) else getattr(reward, "__wrapped__", None)
