"""Whether reward functions can be called as TRL calls them, and whether what they return is one number each."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.nn import Module
from trl.trainer.utils import get_callable_name, is_async_callable

from dgpo.counts import counted
from dgpo.files import shortened
from dgpo.registry import did_you_mean

PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "truncated")
"""What every call has; `truncated` is ours, the others are TRL's."""
_RENAMED = ("prompt", "completion", "completion_ids")
"""Columns of the data that are not passed on."""


class RewardError(ValueError):
    """A reward that cannot be called as TRL calls it, or that returns something else than one number per completion."""


def check_signatures(
    rewards: Any, data: Mapping[str, Sequence[str] | None], *, environments: bool, more: bool = False
) -> None:
    """Check, before a model is loaded, that every call of every reward would be accepted.

    Reward models, their names, and callables without a signature are left alone.

    Args:
        rewards: as the trainer takes them: one, a list, or None.
        data: what the data is called in an error -> its columns; None where they are not known.
        environments: whether rewards are passed `environments`.
        more: whether others may add columns, as a `rollout_func` does.

    Raises:
        RewardError: a parameter that is neither passed nor a column, or an argument that the reward does not take.
    """
    for reward in rewards if isinstance(rewards, list) else [rewards]:
        if reward is None or isinstance(reward, str | Module):
            continue
        if not callable(reward):
            raise RewardError(f"reward {reward!r} is of type {type(reward).__name__}; expected a function")
        try:
            # not through functools.wraps: the wrapper is what is called
            signature = inspect.signature(reward, follow_wrapped=False)
        except (TypeError, ValueError):
            continue
        for where, columns in data.items():
            _check(reward, signature, where, columns, (*PASSED, *["environments"] * environments), more=more)


def _check(
    reward: Any, signature: inspect.Signature, where: str, columns: Sequence[str] | None, passed: tuple[str, ...],
    *, more: bool,
) -> None:  # fmt: skip
    known = [name for name in columns or () if name not in _RENAMED and name not in passed]
    names = [*passed, *known]
    name = f"reward {get_callable_name(reward)!r}"
    hint = f"; {reward.__name__} is a class: did you mean an instance of it?" if inspect.isclass(reward) else ""
    parameters = signature.parameters.values()
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and parameter.kind is parameter.POSITIONAL_ONLY:
            raise RewardError(
                f"{name} takes {parameter.name!r} by position alone, and TRL passes everything by name{hint}"
            )
        if required and parameter.name not in names and not (more or columns is None):
            told = (
                f"{where} has the columns {', '.join(known)}" if known else f"{where} has no column beside the prompt"
            )
            raise RewardError(
                f"{name} needs {parameter.name!r}, which is not passed{did_you_mean(parameter.name, names)}: {told}; "
                f"TRL passes these and {', '.join(passed)}{hint}"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(one not in taken for one in names):
        raise RewardError(f"{name} takes no **kwargs; TRL passes {', '.join(names)}: add **kwargs to {signature}{hint}")


def checked(name: str, reward: Any) -> Any:
    """The reward, with a check of what it returns; a reward model is returned as it is."""
    if isinstance(reward, Module):
        return reward
    if is_async_callable(reward):

        async def call_later(**given: Any) -> list[Any]:
            return _numbers(name, await reward(**given), len(given["prompts"]))

        return call_later

    def call(**given: Any) -> list[Any]:
        return _numbers(name, reward(**given), len(given["prompts"]))

    return call


def _numbers(name: str, returned: Any, count: int) -> list[Any]:
    """What a reward returned, as a list of `count` numbers or None. Values on a device are not read."""
    expected = f"expected a list of {counted(count, 'number')}, one for each completion (None: not scored)"
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable) or _is_scalar(returned):
        raise RewardError(f"reward {name!r} returned {shortened(returned)} ({type(returned).__name__}); {expected}")
    values = list(returned)
    if len(values) != count:
        raise RewardError(f"reward {name!r} returned {counted(len(values), 'value')}; {expected}")
    for i, value in enumerate(values):
        if value is not None and (isinstance(value, str | bytes) or not hasattr(value, "__float__")):
            raise RewardError(
                f"reward {name!r} returned {shortened(value)} ({type(value).__name__}) for completion {i}; {expected}"
            )
    return values


def _is_scalar(value: Any) -> bool:
    """A tensor or an array without a dimension, which is Iterable by its type."""
    return getattr(value, "ndim", 1) == 0
