"""Shared by the adapters: making an objective, and refusing what an engine cannot support.

Every engine normalises in its own way. An adapter does not repeat that arithmetic: it takes the engine's coefficient c
of every token and passes it to `policy_loss` as `aggregation.Fixed`, which computes surrogate, gradient and statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgpo import objectives
from dgpo.objectives import Objective


def make_objective(engine: str, name: str, fields: Mapping[str, Any] | None, *, entropy: bool = False) -> Objective:
    """The objective `name` with these fields (None: no fields), for an engine whose losses get entropy or not.

    Raises:
        TypeError: fields that are not a mapping.
        ValueError: an unknown name or field; a weight that reads entropy, in an engine that does not provide it.
    """
    if fields is not None and not isinstance(fields, Mapping):
        raise TypeError(
            f"{engine}: objective_kwargs = {fields!r} is of type {type(fields).__name__}; expected a mapping of fields "
            f"of {name!r}, such as {{eps_low: 0.2}}, or nothing"
        )
    # None is what an empty YAML key gives
    objective = objectives.make(name, **(fields or {}))
    if not entropy and "entropy" in objective.reads:
        raise ValueError(
            f"{engine}: the weight of {objective!r} reads the entropy of the tokens, which {engine} does not provide. "
            "Use fields with which it does not read entropy, such as the defaults"
        )
    return objective


def fixed_objective(engine: str, name: str, fields: Mapping[str, Any] | None, *, entropy: bool = False) -> Objective:
    """`make_objective`, for an engine that calls the loss with parts of a step.

    Raises:
        TypeError: fields that are not a mapping.
        ValueError: as `make_objective`; an adaptive objective, whose `calibrate` needs the batch of the step and adds
            over all ranks: ranks that call the loss a different number of times would wait for each other forever.
    """
    objective = make_objective(engine, name, fields, entropy=entropy)
    if "batch" in objective.reads:
        raise ValueError(
            f"{engine}: objective {name!r} calibrates itself on the complete batch of a step, over all ranks, but "
            f"{engine} calls the loss with parts of it; use an objective that is not adaptive"
        )
    return objective


def refuse_ignored(engine: str, found: Mapping[str, Any], defaults: Mapping[str, Any], instead: str) -> None:
    """Raise where a setting of the engine differs from its default and would have no effect.

    Args:
        engine: its name, for the message.
        found: setting -> its value in this run.
        defaults: setting -> the engine's default.
        instead: what to set instead.

    Raises:
        ValueError: names every such setting, its value and the default.
    """
    changed = [f"{key} = {found[key]!r} (default {defaults[key]!r})" for key in defaults if found[key] != defaults[key]]
    if changed:
        raise ValueError(
            f"{engine}: these settings have no effect on an objective of dgpo: {', '.join(changed)}. {instead}"
        )


def to_floats(statistics: Mapping[str, Tensor]) -> dict[str, float]:
    """name -> float, with one read from the device."""
    return dict(zip(statistics, torch.stack(list(statistics.values())).tolist(), strict=True))
