"""The objective of a configuration of verl, after checking the settings beside it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from verl.workers.config import ActorConfig, PolicyLossConfig

from dgpo.engines.common import make_objective, refuse_ignored
from dgpo.engines.verl_overrides import ACTOR_SETTINGS
from dgpo.objectives import Objective

OWN_SETTINGS = tuple(f.name for f in fields(PolicyLossConfig) if f.name not in ("_target_", "loss_mode"))
"""Settings of `actor.policy_loss` that verl's own losses read and ours do not."""


def objective_of(name: str, config: ActorConfig) -> Objective:
    """The objective of a configuration, after checking the settings beside it.

    Raises:
        TypeError: `objective_kwargs` is neither a mapping nor None.
        ValueError: settings that the objective would ignore, or that contradict each other; an adaptive objective
            behind pipeline stages.
    """
    chosen = config.policy_loss
    if chosen.get("objective", name) != name:
        raise ValueError(
            f"actor.policy_loss.objective = {chosen.objective!r}, but loss_mode = {chosen.loss_mode!r} is the loss of "
            f"{name!r}; expected both to name the same objective"
        )
    refuse_changes(chosen, PolicyLossConfig, "actor.policy_loss", OWN_SETTINGS)
    refuse_changes(config, ActorConfig, "actor", ACTOR_SETTINGS)
    objective = make_objective("verl", name, chosen.get("objective_kwargs"))
    # 1 where there is no Megatron
    stages = getattr(config.get("megatron"), "pipeline_model_parallel_size", 1)
    if "batch" in objective.reads and stages > 1:
        raise ValueError(
            f"{name!r} sums over all ranks to adapt to the batch, but with {stages} pipeline stages only the ranks of "
            "the last stage compute a loss, so they would wait forever; use pipeline_model_parallel_size = 1"
        )
    return objective


def refuse_changes(config: Any, cls: type, where: str, names: tuple[str, ...]) -> None:
    """Raise ValueError if settings of verl that an objective does not read differ from the defaults of verl's class."""
    defaults = {
        f"{where}.{declared.name}": declared.default
        if declared.default_factory is MISSING
        else declared.default_factory()
        for declared in fields(cls)
        if declared.name in names
    }
    found = {key: config.get(key.rpartition(".")[2], default) for key, default in defaults.items()}
    refuse_ignored(
        "verl",
        found,
        defaults,
        "They are settings of verl's own losses; set fields of the objective instead, for example "
        "+actor_rollout_ref.actor.policy_loss.objective_kwargs.eps_low=0.2",
    )
