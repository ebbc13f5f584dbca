"""rLLM: any objective as one of its custom losses. Read at rllm-org/rllm@030b08ce and @05158080 (trainer/algorithms).

::

    algorithm:
      loss_fn: "dgpo:dgpo"
      loss_plugins: [dgpo.engines.rllm]
      loss_params: {objective_kwargs: {n: 2, m: 2}}

rLLM imports the module, whose import registers `dgpo:NAME` for every objective, and calls the loss in verl's workers or
on the responses that a Tinker or Fireworks server has scored. A loss reduces by the function that it is given, whose
derivative is the coefficient c. On verl with rLLM the plug-in for verl (`dgpo.engines.verl`) works as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dgpo import objectives, policy_loss
from dgpo.aggregation import Fixed
from dgpo.engines.common import fixed_objective, refuse_ignored, to_floats
from dgpo.objectives import Objective

PREFIX = "dgpo:"
"""Before the name of an objective: rLLM has a `cispo`, `gspo` and `dppo_tv` of its own."""

IGNORED = {"eps_clip": 0.2, "eps_clip_high": None, "kl_beta": 0.0, "env_loss_coef": 0.0}
"""Parameters of rLLM's own losses that nothing here reads, with their defaults."""


def loss(name: str, context: Any) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch [B, T], or of one response [T], reduced by `context.aggregate`.

    Args:
        name: of `objectives.OBJECTIVES`; its fields are `context.params["objective_kwargs"]`.
        context: rLLM's `LossContext`: the log-probs `logp_curr` with gradient and `logp_old` (`pi` and `mu` in its
            first version), `advantages`, `action_mask`, `aggregate`, `params`. `logp_rollout`, where it is there, is μ.

    Returns:
        The value, and the statistics of `policy_loss` as `objective/...`.

    Raises:
        TypeError: `objective_kwargs` is not a mapping.
        ValueError: an unknown name or field; an adaptive objective, or one that reads entropy; a clip range or a
            coefficient of rLLM's own losses, which would have no effect.
    """
    objective = _objective(name, context.params)
    new, old = (getattr(context, name if hasattr(context, name) else first) for name, first in NAMES)
    sampler, mask = getattr(context, "logp_rollout", None), context.action_mask
    with torch.enable_grad():
        zeros = torch.zeros_like(new, requires_grad=True)
        # linear in the losses of the tokens; GSPO's paper forces a mean, here the configuration decides
        (c,) = torch.autograd.grad(context.aggregate(zeros, mask), zeros)

    def rows(values: Tensor) -> Tensor:
        """[B, T], of a batch or of one response."""
        return values if values.dim() == 2 else values.unsqueeze(0)

    result = policy_loss(
        rows(new),
        rows(old),
        rows(context.advantages),
        rows(mask) != 0,
        objective,
        Fixed(values=rows(c)),
        rollout_logprob=None if sampler is None else rows(sampler),
    )
    return result.value, to_floats({f"objective/{key}": value for key, value in result.statistics.items()})


NAMES = (("logp_curr", "pi"), ("logp_old", "mu"))
"""Attributes of rLLM's context, newer and older."""


def register(register_loss: Callable[[str], Callable[[Any], Any]]) -> None:
    """Add `dgpo:NAME` for every registered objective by rLLM's `register_loss`."""
    for name in objectives.OBJECTIVES:
        register_loss(PREFIX + name)(partial(loss, name))


def _objective(name: str, params: dict[str, Any]) -> Objective:
    refuse_ignored(
        "rLLM",
        {key: params.get(key, default) for key, default in IGNORED.items()},
        IGNORED,
        "Set algorithm.loss_params.objective_kwargs",
    )
    return fixed_objective("rLLM", name, params.get("objective_kwargs"))


if importlib.util.find_spec("rllm") is not None:  # pragma: no cover - rLLM is not installed where this is tested
    from rllm.trainer.algorithms.loss import register_loss

    register(register_loss)
