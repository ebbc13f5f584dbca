"""The configuration of the plug-in for verl: an objective in verl's own classes, checked when they are made.

verl makes them in the driver before anything starts, and again in every worker. `verl` has the public names.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from verl.workers.config import (
    ActorConfig,
    FSDPActorConfig,
    McoreActorConfig,
    PolicyLossConfig,
    TorchTitanActorConfig,
    VeOmniActorConfig,
)

from dgpo.engines.common import make_objective, refuse_ignored
from dgpo.engines.verl_overrides import ACTOR_SETTINGS, PREFIX
from dgpo.objectives import Objective

LOSS_MODES: dict[str, str] = {}
"""Every `loss_mode` that is ours -> the name of its objective. Filled where the losses are registered, in `verl`."""

ACTORS: dict[str, type[ActorConfig]] = {
    "fsdp": FSDPActorConfig,
    "fsdp2": FSDPActorConfig,
    "megatron": McoreActorConfig,
    "veomni": VeOmniActorConfig,
    "torchtitan": TorchTitanActorConfig,
}
"""`actor.strategy` -> the class that verl's own configuration names for it."""

OWN_SETTINGS = tuple(f.name for f in fields(PolicyLossConfig) if f.name not in ("_target_", "loss_mode"))
"""Settings of `actor.policy_loss` that verl's own losses read and ours do not."""


@dataclass
class DGPOPolicyLossConfig(PolicyLossConfig):
    """`actor.policy_loss` with an objective; `_target_` of the configuration names this class.

    Args:
        objective: a name of `dgpo.objectives.OBJECTIVES`; `loss_mode` is `dgpo:` and this name.
        objective_kwargs: fields of the objective; those that are not given have the objective's defaults, as all have
            with None.
        record: a folder that every worker can write to, for the tokens of every micro-batch (`verl_recording`).

    The fields of verl's class belong to verl's losses: other than `loss_mode` they stay as they are.

    Raises:
        TypeError: `objective_kwargs` is neither a mapping nor None.
        ValueError: an objective or a field that does not exist or is out of range, an objective that reads entropy
            (verl hands over none), a `loss_mode` of something else, a field of verl's that was changed.
    """

    objective: str = ""
    objective_kwargs: dict[str, Any] | None = field(default_factory=dict)
    record: str | None = None

    def __post_init__(self) -> None:
        make_objective("verl", self.objective, self.objective_kwargs)
        if LOSS_MODES.get(self.loss_mode) != self.objective:
            raise ValueError(
                f"actor.policy_loss.loss_mode = {self.loss_mode!r} is not the loss of objective = {self.objective!r}; "
                f"expected loss_mode = '{PREFIX}{self.objective}'"
            )
        _refuse_changes(self, PolicyLossConfig, "actor.policy_loss", OWN_SETTINGS)


def actor_config(**settings: Any) -> ActorConfig:
    """`actor` in the class that verl has for its strategy, after a look at it; `_target_` of the configuration.

    Without it a setting that an objective ignores is found by the first loss, after a whole generation.

    Raises:
        ValueError: no such strategy, a loss that is not ours, and what `objective_of` raises.
    """
    strategy = settings.get("strategy")
    if strategy not in ACTORS:
        raise ValueError(f"actor.strategy = {strategy!r}; expected one of {', '.join(ACTORS)}")
    config = ACTORS[strategy](**settings)
    mode = config.policy_loss.loss_mode
    if mode not in LOSS_MODES:
        raise ValueError(
            f"actor.policy_loss.loss_mode = {mode!r} is no loss of dgpo, but actor._target_ is dgpo's; expected "
            f"'{PREFIX}NAME', or actor._target_ as verl has it"
        )
    objective_of(LOSS_MODES[mode], config)
    return config


def objective_of(name: str, config: ActorConfig) -> Objective:
    """The objective of a configuration, after a look at the settings beside it.

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
    _refuse_changes(chosen, PolicyLossConfig, "actor.policy_loss", OWN_SETTINGS)
    _refuse_changes(config, ActorConfig, "actor", ACTOR_SETTINGS)
    objective = make_objective("verl", name, chosen.get("objective_kwargs"))
    stages = getattr(config.get("megatron"), "pipeline_model_parallel_size", 1)
    if "batch" in objective.reads and stages > 1:
        raise ValueError(
            f"{name!r} sums over all ranks to adapt to the batch, but with {stages} pipeline stages only the ranks of "
            "the last stage compute a loss, and would wait for ever; use pipeline_model_parallel_size = 1"
        )
    return objective


def _refuse_changes(config: Any, cls: type, where: str, names: tuple[str, ...]) -> None:
    """Raise ValueError if settings of verl, which an objective does not read, are not as verl's class has them."""
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
