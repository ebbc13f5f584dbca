"""prime-rl: any objective as its custom loss. Read at PrimeIntellect-ai/prime-rl@559b4477 (v0.8.1.dev67, 2026-08-21).

::

    [trainer.loss]
    type = "custom"
    import_path = "dgpo.engines.prime_rl.loss"
    kwargs = { objective = "dgpo", objective_kwargs = { n = 2, m = 2 } }

The trainer calls the loss once per sequence, adds the sums and divides by the tokens of the whole step. It does not
recompute the log-probs of the policy before the step: π_old here is the inference engine's, so that the ratio is
staleness and the mismatch of the two engines in one number, and there is no ρ beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dgpo import policy_loss
from dgpo.aggregation import Fixed
from dgpo.engines.common import fixed_objective

if TYPE_CHECKING:
    from prime_rl.trainer.rl.loss import LossInputs, LossOutputs


def loss(inputs: LossInputs, *, objective: str, objective_kwargs: Mapping[str, Any] | None = None) -> LossOutputs:
    """Σ_t loss_weights · (the loss of token t) over one sequence.

    Args:
        inputs: [T] each: `trainer_logprobs` with gradient, `inference_logprobs`, `advantages`, `loss_mask` (bool), and
            `loss_weights` or None for 1. `ref_logprobs` is not read.
        objective: a name of `objectives.OBJECTIVES`.
        objective_kwargs: its fields.

    Returns:
        prime-rl's `LossOutputs`; its metrics are the statistics of `policy_loss`, which the trainer averages over
        sequences.

    Raises:
        TypeError: `objective_kwargs` is not a mapping.
        ValueError: an unknown name or field; an adaptive objective (it would calibrate itself on one sequence); one
            that reads entropy.
    """
    from prime_rl.trainer.rl.loss import LossOutputs

    weights = inputs.loss_weights
    result = policy_loss(
        # [T] -> [1, T]: a batch of one response
        inputs.trainer_logprobs.unsqueeze(0),
        inputs.inference_logprobs.unsqueeze(0),
        inputs.advantages.unsqueeze(0),
        inputs.loss_mask.unsqueeze(0),
        fixed_objective("prime-rl", objective, objective_kwargs),
        Fixed(values=(torch.ones_like(inputs.advantages) if weights is None else weights).unsqueeze(0)),
    )
    return LossOutputs(
        loss=result.value, metrics={f"objective/{key}": value for key, value in result.statistics.items()}
    )
