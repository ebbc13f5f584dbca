"""NeMo-RL: any objective as a loss of its protocol. Read at NVIDIA-NeMo/RL@006907a9 (nemo_rl/algorithms/loss).

In a driver script of your own, a copy of `examples/run_grpo.py`, the loss that `setup` returns is replaced::

    from dgpo.engines.nemo_rl import Loss

    loss_fn = Loss("dgpo", {"n": 2, "m": 2})

NeMo-RL passes the counts of the whole step, over all its micro-batches and ranks, and adds up what they give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from dgpo.aggregation import SeqMeanTokenMean, StepTotals, TokenMean
from dgpo.correction import make as make_correction
from dgpo.engines.common import fixed_objective, to_floats
from dgpo.loss import loss_of
from dgpo.spec import LossSpec
from dgpo.tokens import TokenBatch


class Loss:
    """A `LossFunction` of NeMo-RL with w of any objective, in the place of `ClippedPGLossFn`.

    Args:
        objective: a name of `objectives.OBJECTIVES`.
        objective_kwargs: its fields.
        correction: ρ, as `DGPOConfig` takes it; in the place of `truncated_importance_sampling_*`.
        anchor: the policy that the ratio is taken against: "old" is `prev_logprobs`, "rollout" `generation_logprobs`.
        token_level_loss: as in NeMo-RL: a mean over the tokens of the step, or over the means of its responses.
        kl_coef: coefficient of the KL term against `reference_policy_logprobs`.

    Raises:
        TypeError: `objective_kwargs` is not a mapping.
        ValueError: an unknown name or field; an adaptive objective, or one that reads entropy; a correction beside the
            anchor "rollout"; a coefficient below 0.
    """

    def __init__(
        self,
        objective: str,
        objective_kwargs: Mapping[str, Any] | None = None,
        *,
        correction: str | Mapping[str, Any] | None = None,
        anchor: Literal["old", "rollout"] = "old",
        token_level_loss: bool = True,
        kl_coef: float = 0.0,
    ) -> None:
        from nemo_rl.algorithms.loss.interfaces import LossInputType, LossType

        self._spec = LossSpec(
            objective=fixed_objective("NeMo-RL", objective, objective_kwargs),
            aggregation=TokenMean() if token_level_loss else SeqMeanTokenMean(),
            correction=None if correction is None else make_correction(correction),
            anchor=anchor,
            kl_coef=kl_coef,
        )
        self.loss_type = LossType.TOKEN_LEVEL if token_level_loss else LossType.SEQUENCE_LEVEL
        self.input_type = LossInputType.LOGPROB

    def __call__(
        self,
        data: Mapping[str, Any],
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor,
        *,
        next_token_logprobs: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The share of the step's loss that one micro-batch has.

        Args:
            data: [B, S] `token_mask`, `advantages`, `prev_logprobs`, `generation_logprobs` and, for a KL term,
                `reference_policy_logprobs`; [B] `sample_mask`.
            global_valid_seqs, global_valid_toks: responses and tokens of the step.
            next_token_logprobs: [B, S - 1] log-probs of the tokens from the second on, with gradient.

        Returns:
            The loss, and metrics of which NeMo-RL adds up micro-batches: the statistics of `policy_loss` as
            `objective/...`, each times the micro-batch's share of the step's tokens; a maximum ends in `_max`.
        """
        mask = (data["token_mask"] * data["sample_mask"].unsqueeze(-1))[:, 1:].bool()
        if (keep := data.get("curr_logprobs_keep_mask")) is not None:
            mask = mask & keep.bool()  # log-probs that a top-k or top-p filter has replaced
        tokens = TokenBatch(
            next_token_logprobs,
            data["prev_logprobs"][:, 1:],
            data["advantages"][:, 1:],
            mask,
            rollout_logprob=data["generation_logprobs"][:, 1:],
        )
        reference = data["reference_policy_logprobs"][:, 1:] if self._spec.kl_coef else None
        totals = StepTotals(tokens=global_valid_toks.clamp(min=1), sequences=global_valid_seqs.clamp(min=1))
        out = loss_of(self._spec, tokens, totals=totals, ref_logprob=reference)
        share = mask.sum() / totals.tokens
        statistics = {
            f"objective/{name.replace('/max', '_max')}": value if name.endswith("/max") else value * share
            for name, value in out.statistics.items()
        }
        return out.value, {"loss": out.value.item(), "num_valid_samples": data["sample_mask"].sum().item()} | to_floats(
            statistics
        )
