"""The plug-in for verl: every objective as a policy loss, its configuration, and a reward function over our graders.

Importing this module registers the losses. verl does so in every process that imports it, through the entry point group
`verl.plugins`. Each method is registered as `dgpo:NAME`, and as NAME where verl has no loss of that name: verl's own
losses are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss
from verl.workers.config import ActorConfig, PolicyLossConfig

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.correction import Given
from dgpo.engines import verl_recording
from dgpo.engines.common import GivenCoefficients, refuse_ignored, to_floats
from dgpo.engines.verl_overrides import ACTOR_SETTINGS, PREFIX
from dgpo.engines.verl_reward import compute_score
from dgpo.objectives import OBJECTIVES, Objective

__all__ = ["LOSS_MODES", "DGPOPolicyLossConfig", "coefficients", "compute_score", "loss_of"]

LOSS_MODES: dict[str, str] = {}
"""Every `loss_mode` that is ours -> the name of its objective. Filled where the losses are registered, below."""


@dataclass
class DGPOPolicyLossConfig(PolicyLossConfig):
    """`actor.policy_loss` with an objective; `_target_` of the configuration names this class.

    Args:
        objective: a name of `dgpo.objectives.OBJECTIVES`; `loss_mode` is `dgpo:` and this name.
        objective_kwargs: fields of the objective; those that are not given have the objective's defaults.
        record: a folder that every worker can write to, for the tokens of every micro-batch (`verl_recording`).

    The fields of verl's class belong to verl's losses: other than `loss_mode` they stay as they are.

    Raises:
        ValueError: an objective or a field that does not exist or is out of range, a `loss_mode` of something else, a
            field of verl's that was changed.
    """

    objective: str = ""
    objective_kwargs: dict[str, Any] = field(default_factory=dict)
    record: str | None = None

    def __post_init__(self) -> None:
        objectives.make(self.objective, **self.objective_kwargs)
        if LOSS_MODES.get(self.loss_mode) != self.objective:
            raise ValueError(
                f"actor.policy_loss.loss_mode = {self.loss_mode!r} is not the loss of objective = {self.objective!r}; "
                f"expected loss_mode = '{PREFIX}{self.objective}'. (verl's older trainer, trainer.use_v1=false, sets "
                "it to 'bypass_mode' where algorithm.rollout_correction.bypass_mode is true)"
            )
        _refuse_changes(self, PolicyLossConfig, "actor.policy_loss", _own_settings())


def loss_of(name: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """The policy loss of one objective, with verl's signature."""

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: ActorConfig | None = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """`dgpo.policy_loss` of one micro-batch, normalised as `agg_loss` of verl is.

        Args:
            old_log_prob: [B, T] log π_old.
            log_prob: [B, T] log π_θ, with gradient.
            advantages: [B, T].
            response_mask: [B, T], bool.
            loss_agg_mode: any of verl's; see `coefficients`.
            config: of the actor; `policy_loss` and `global_batch_info` are read.
            rollout_is_weights: [B, T] ρ, from verl's rollout correction; None is 1.

        Returns:
            The value, of which verl averages gradients over ranks and adds micro-batches, and statistics of this
            micro-batch as `actor/objective/NAME`; verl averages them over micro-batches and ranks, also
            `weight/max`.

        Raises:
            TypeError: no config.
            ValueError: settings that the objective would ignore, or that contradict each other.
        """
        if config is None:
            raise TypeError(f"the loss {PREFIX + name!r} needs the configuration of the actor, got None")
        objective = _objective(name, config)
        mask = response_mask.bool()
        dtype = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
        result = policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            mask,
            objective=objective,
            aggregation=GivenCoefficients(values=coefficients(loss_agg_mode, mask, dtype, config.global_batch_info)),
            correction=None if rollout_is_weights is None else Given(values=rollout_is_weights),
        )
        if folder := config.policy_loss.get("record"):
            verl_recording.record(folder, TokenBatch(log_prob.detach(), old_log_prob, advantages, mask))
        return result.value, {f"actor/objective/{key}": v for key, v in to_floats(result.statistics).items()}

    return loss


def coefficients(loss_agg_mode: str, mask: Tensor, dtype: torch.dtype, global_batch_info: Mapping[str, Any]) -> Tensor:
    """c [B, T], by which verl weighs the tokens of this micro-batch in this mode, its totals and ranks included.

    verl's own `agg_loss` says it: it is linear in the losses of the tokens, so c is its derivative.

    Raises:
        ValueError: from verl: an unknown mode, or several ranks without the total that the mode divides by.
    """
    with torch.enable_grad():
        losses = torch.zeros(mask.shape, dtype=dtype, device=mask.device, requires_grad=True)
        total = agg_loss(loss_mat=losses, loss_mask=mask, loss_agg_mode=loss_agg_mode, **global_batch_info)
        return torch.autograd.grad(total, losses)[0]


def _objective(name: str, config: ActorConfig) -> Objective:
    """The objective of a configuration, after a look at the settings beside it."""
    chosen = config.policy_loss
    if chosen.get("objective", name) != name:
        raise ValueError(
            f"actor.policy_loss.objective = {chosen.objective!r}, but loss_mode = {chosen.loss_mode!r} is the loss of "
            f"{name!r}; expected both to name the same objective"
        )
    _refuse_changes(chosen, PolicyLossConfig, "actor.policy_loss", _own_settings())
    _refuse_changes(config, ActorConfig, "actor", ACTOR_SETTINGS)
    objective = objectives.make(name, **chosen.get("objective_kwargs", {}))
    stages = getattr(config.get("megatron"), "pipeline_model_parallel_size", 1)
    if objective.adaptive and stages > 1:
        raise ValueError(
            f"{name!r} sums over all ranks to adapt to the batch, but with {stages} pipeline stages only the ranks of "
            "the last stage compute a loss, and would wait for ever; use pipeline_model_parallel_size = 1"
        )
    return objective


def _own_settings() -> tuple[str, ...]:
    return tuple(f.name for f in fields(PolicyLossConfig) if f.name not in ("_target_", "loss_mode"))


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


for _name in OBJECTIVES:
    for _mode in (PREFIX + _name, _name):
        if _mode not in POLICY_LOSS_REGISTRY:
            register_policy_loss(_mode)(loss_of(_name))
            LOSS_MODES[_mode] = _name
