"""SkyRL: every objective as a policy loss of its registry. Read and tested: skyrl 0.3.0 from PyPI, in 2026-11.

`register()` before `initialize_ray`, in an entry script of your own; the registry then travels to the workers, which
need `dgpo` installed::

    trainer.algorithm.policy_loss_type=dgpo:dgpo trainer.algorithm.objective_kwargs.n=2

SkyRL normalises beforehand: the advantages that a loss receives are c·A, with the c of `loss_reduction`, and a loss is
a sum (`reduce_loss`), which makes it independent of micro-batches and ranks. Two things follow. An objective
whose weight depends on the size of A, not only on its sign, is refused, and so is one with a penalty, whose coefficient
is c. And the statistics `mass/...` weigh tokens by c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dgpo.installation import WrongVersionError, unsupported

TESTED = "skyrl>=0.3,<0.4"
if _text := unsupported(TESTED, "skyrl"):  # before its modules are imported, whose names differ in other versions
    raise WrongVersionError(f"the plug-in for SkyRL was read and tested with {_text}")

from skyrl.backends.skyrl_train.utils.off_policy_correction_utils import (
    compute_off_policy_correction,
    off_policy_correction_enabled,
)
from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry
from skyrl.train.config import AlgorithmConfig
from torch import Tensor

from dgpo import objectives, policy_loss
from dgpo.aggregation import Fixed
from dgpo.correction import Given
from dgpo.engines.common import fixed_objective, refuse_ignored, to_floats
from dgpo.objectives import Objective
from dgpo.spec import check_anchor

PREFIX = "dgpo:"
"""Before the name of an objective: SkyRL has a `gspo`, `cispo` and `sapo` of its own."""

IGNORED = ("eps_clip_low", "eps_clip_high", "clip_ratio_c", "cispo", "sapo", "dppo", "clip_cov", "kl_cov")


@dataclass
class DGPOAlgorithmConfig(AlgorithmConfig):
    """SkyRL's `AlgorithmConfig` with the fields of the objective; for `make_config(algorithm_cls=...)`.

    Args:
        objective_kwargs: fields of the objective.
        anchor: the policy that the ratio is taken against: "old" is SkyRL's, "rollout" the inference engine's. Under
            fully asynchronous training SkyRL's old log-probs are those of the policy that is about to be updated.

    Raises:
        TypeError, ValueError: if `policy_loss_type` is one of ours, as the loss would raise.
    """

    objective_kwargs: dict[str, Any] | None = field(default_factory=dict)
    anchor: str = "old"

    def __post_init__(self) -> None:
        if self.policy_loss_type.startswith(PREFIX):
            _objective(self.policy_loss_type.removeprefix(PREFIX), self)


def register(*paths: str) -> None:
    """Add `dgpo:NAME` for every NAME of `objectives.OBJECTIVES` to SkyRL's registry. Once per process.

    Args:
        paths: import paths of objectives of your own, `package.module:Class`, which the workers must be able to
            import; each is registered as `dgpo:` and the path.

    Raises:
        ValueError: a path that cannot be imported; SkyRL's, if a name is registered already.
    """
    for path in paths:
        objectives.find(path)
    for name in (*objectives.OBJECTIVES, *paths):
        PolicyLossRegistry.register(PREFIX + name, partial(policy_loss_function, name))


def policy_loss_function(
    name: str,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    config: AlgorithmConfig,
    loss_mask: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Σ mask · ρ · (the loss of a token), in SkyRL's signature behind the name of the objective.

    ρ and the masks of `config.off_policy_correction` are SkyRL's own. KL and entropy terms are added by the worker.

    Args:
        name: of `objectives.OBJECTIVES`; its fields are `config.objective_kwargs`.
        log_probs: [B, T] log π_θ, with gradient.
        old_log_probs: [B, T] log π_old.
        advantages: [B, T] c·A.
        config: a `DGPOAlgorithmConfig`, or SkyRL's own for an objective with its defaults.
        loss_mask: [B, T]; a value other than 0 and 1 scales the loss of its token. None is 1.
        rollout_logprobs: [B, T] log μ.

    Raises:
        TypeError: `objective_kwargs` is not a mapping.
        ValueError: a clip setting of SkyRL that would have no effect, an objective that is adaptive, subtracts a
            penalty or reads the size of A or entropy, an off-policy correction or the anchor "rollout" without
            `rollout_logprobs`, both at once.
    """
    objective = _objective(name, config)
    mask = torch.ones_like(log_probs) if loss_mask is None else loss_mask
    rho, kept, metrics = None, mask, {}
    anchor: Any = getattr(config, "anchor", "old")
    if off_policy_correction_enabled(config.off_policy_correction):
        if rollout_logprobs is None:
            raise ValueError("SkyRL: off_policy_correction is on and rollout_logprobs is None; expected [B, T]")
        rho, metrics, kept = compute_off_policy_correction(
            old_log_probs, rollout_logprobs, mask, config.off_policy_correction
        )
    result = policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        # not `kept`: a token that SkyRL's correction drops still counts in the statistics, with c = 0
        mask != 0,
        objective,
        Fixed(values=kept.to(log_probs.dtype)),
        rollout_logprob=rollout_logprobs,
        correction=None if rho is None else Given(values=rho),
        anchor=anchor,
    )
    # SkyRL reduces names ending in _max by the maximum over micro-batches and ranks, all others by the mean
    named = {f"objective/{key.replace('/max', '_max')}": value for key, value in result.statistics.items()}
    return result.value, to_floats(named) | metrics


def _objective(name: str, config: AlgorithmConfig) -> Objective:
    """The objective of a configuration, after checking the settings beside it."""
    defaults = AlgorithmConfig()
    refuse_ignored(
        "SkyRL",
        {key: getattr(config, key) for key in IGNORED},
        {key: getattr(defaults, key) for key in IGNORED},
        "Set trainer.algorithm.objective_kwargs",
    )
    objective = fixed_objective("SkyRL", name, getattr(config, "objective_kwargs", None))
    if "advantage_size" in objective.reads:
        raise ValueError(
            f"SkyRL: the weight of {objective!r} depends on the size of A; SkyRL provides c·A, with c unknown here. "
            "Set the fields that multiply A to 0, so that only its sign counts"
        )
    if objective.penalises:
        raise ValueError(
            f"SkyRL: {objective!r} subtracts a penalty, whose coefficient is c; SkyRL provides c·A, with c unknown "
            "here. Use an objective without a penalty"
        )
    check_anchor(getattr(config, "anchor", "old"), None)
    if getattr(config, "anchor", "old") == "rollout" and off_policy_correction_enabled(config.off_policy_correction):
        raise ValueError(
            "SkyRL: anchor = 'rollout' takes the ratio against the inference engine, so that off_policy_correction "
            "would count the same difference twice; set one of them"
        )
    return objective
