"""The configuration of the plug-in for verl: an objective in verl's own classes, checked when they are built.

verl builds them in the driver before anything starts, and again in every worker. `verl` has the public names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verl.workers.config import (
    ActorConfig,
    FSDPActorConfig,
    McoreActorConfig,
    PolicyLossConfig,
    TorchTitanActorConfig,
    VeOmniActorConfig,
)

from dgpo.engines.common import make_objective
from dgpo.engines.verl_loss import LOSS_MODES, register
from dgpo.engines.verl_objective import OWN_SETTINGS, objective_of, refuse_changes
from dgpo.engines.verl_overrides import PREFIX

ACTORS: dict[str, type[ActorConfig]] = {
    "fsdp": FSDPActorConfig,
    "fsdp2": FSDPActorConfig,
    "megatron": McoreActorConfig,
    "veomni": VeOmniActorConfig,
    "torchtitan": TorchTitanActorConfig,
}
"""`actor.strategy` -> the class that verl's own configuration names for it."""


@dataclass
class DGPOPolicyLossConfig(PolicyLossConfig):
    """`actor.policy_loss` with an objective; `_target_` of the configuration names this class.

    Args:
        objective: a name of `dgpo.objectives.OBJECTIVES`, or the import path of an objective of your own, which every
            worker has to be able to import; `loss_mode` is `dgpo:` and this name or path.
        objective_kwargs: fields of the objective; those not given have the objective's defaults; None is the same as
            no fields.
        record: a folder that every worker can write to, for the tokens of every micro-batch (`verl_recording`).

    The fields of verl's class belong to verl's losses: except for `loss_mode` they must keep their defaults.

    Raises:
        TypeError: `objective_kwargs` is neither a mapping nor None.
        ValueError: an objective or a field that does not exist or is out of range, an objective that reads entropy
            (verl provides none), a `loss_mode` of another objective, a changed field of verl's class.
    """

    objective: str = ""
    objective_kwargs: dict[str, Any] | None = field(default_factory=dict)
    record: str | None = None

    def __post_init__(self) -> None:
        make_objective("verl", self.objective, self.objective_kwargs)
        # before the lookup: the driver and every worker register an import path only here
        register(self.objective)
        if LOSS_MODES.get(self.loss_mode) != self.objective:
            raise ValueError(
                f"actor.policy_loss.loss_mode = {self.loss_mode!r} is not the loss of objective = {self.objective!r}; "
                f"expected loss_mode = '{PREFIX}{self.objective}'"
            )
        refuse_changes(self, PolicyLossConfig, "actor.policy_loss", OWN_SETTINGS)


def actor_config(**settings: Any) -> ActorConfig:
    """`actor` in verl's class for its strategy, checked; `_target_` of the configuration.

    Without it a setting that an objective ignores is found by the first loss, after a whole generation.

    Raises:
        ValueError: an unknown strategy, a loss that is not ours, and what `objective_of` raises.
    """
    strategy = settings.get("strategy")
    if strategy not in ACTORS:
        raise ValueError(f"actor.strategy = {strategy!r}; expected one of {', '.join(ACTORS)}")
    config = ACTORS[strategy](**settings)
    mode = config.policy_loss.loss_mode
    if mode not in LOSS_MODES:
        raise ValueError(
            f"actor.policy_loss.loss_mode = {mode!r} is not a loss of dgpo, but actor._target_ is dgpo's; expected "
            f"'{PREFIX}NAME', or verl's own actor._target_"
        )
    objective_of(LOSS_MODES[mode], config)
    return config
