"""The policy losses of the plug-in for verl, and their registration. `verl` has the public names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss
from verl.workers.config import ActorConfig

from dgpo import TokenBatch, policy_loss
from dgpo.aggregation import Fixed
from dgpo.correction import Given
from dgpo.engines import verl_recording
from dgpo.engines.common import to_floats
from dgpo.engines.verl_objective import objective_of
from dgpo.engines.verl_overrides import PREFIX
from dgpo.objectives import OBJECTIVES

LOSS_MODES: dict[str, str] = {}
"""Every `loss_mode` that is ours in this process -> the name or import path of its objective."""


def register(name: str) -> None:
    """Add the loss of an objective to verl's registry, as `dgpo:NAME`; as NAME too, if it is ours and free there.

    Args:
        name: of `dgpo.objectives.OBJECTIVES`, of an entry point, or an import path. It is looked up by the loss.
    """
    for mode in (PREFIX + name, *([name] if name in OBJECTIVES else [])):
        # taken by verl's own loss, or by ours when a configuration is built again
        if mode not in POLICY_LOSS_REGISTRY:
            register_policy_loss(mode)(loss_of(name))
            LOSS_MODES[mode] = name


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
            ValueError: what `objective_of` raises.
        """
        if config is None:
            raise TypeError(f"the loss {PREFIX + name!r} needs the configuration of the actor, got None")
        objective = objective_of(name, config)
        mask = response_mask.bool()
        dtype = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
        result = policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            mask,
            objective=objective,
            aggregation=Fixed(values=coefficients(loss_agg_mode, mask, dtype, config.global_batch_info)),
            correction=None if rollout_is_weights is None else Given(values=rollout_is_weights),
        )
        if folder := config.policy_loss.get("record"):
            verl_recording.record(folder, TokenBatch(log_prob.detach(), old_log_prob, advantages, mask))
        return result.value, {f"actor/objective/{key}": v for key, v in to_floats(result.statistics).items()}

    return loss


def coefficients(loss_agg_mode: str, mask: Tensor, dtype: torch.dtype, global_batch_info: Mapping[str, Any]) -> Tensor:
    """c [B, T], the coefficients of this micro-batch's tokens in verl's mode, including totals and ranks.

    verl's own `agg_loss` is linear in the losses of the tokens, so c is its derivative.

    Raises:
        ValueError: from verl: an unknown mode, or several ranks without the total that the mode divides by.
    """
    # the derivative is needed also where the caller computes no gradient
    with torch.enable_grad():
        losses = torch.zeros(mask.shape, dtype=dtype, device=mask.device, requires_grad=True)
        total = agg_loss(loss_mat=losses, loss_mask=mask, loss_agg_mode=loss_agg_mode, **global_batch_info)
        return torch.autograd.grad(total, losses)[0]


for _name in OBJECTIVES:
    register(_name)
