"""The loss of one micro-batch, on either of two ways: straight from hidden states, or from log-probs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo.aggregation import Aggregation, Fixed, StepTotals, TokenMean
from dgpo.correction import Correction, Given
from dgpo.fused import linear_policy_loss
from dgpo.loss import PolicyLoss, policy_loss
from dgpo.tokens import TokenBatch
from dgpo.training.head import Heads
from dgpo.training.micro_batches import loss_mask

if TYPE_CHECKING:
    from dgpo.training.trainer import DGPOTrainer


@dataclass(frozen=True, kw_only=True)
class MicroBatchLoss:
    """What the trainer goes on with.

    Attributes:
        out: value, weight and statistics; of a `PolicyLoss`, or of the model's output with the same names.
        tokens: what the loss was computed from, detached, with entropies.
        bonus: the entropy bonus Σ c_H·H, detached, without its coefficient.
        kept: [B, T] bool, the tokens that `top_entropy_quantile` keeps; all valid ones where it is 1.
        logprob: [B, T] with gradient, on the way through log-probs; None where the loss is fused.
        aux_loss: of a mixture of experts, where its weight is not 0.
    """

    out: Any
    tokens: TokenBatch
    bonus: Tensor
    kept: Tensor
    logprob: Tensor | None = None
    aux_loss: Tensor | None = None


class StepLoss:
    """Puts TRL's tensors and options, and the config's factors, into `linear_policy_loss` or `policy_loss`.

    Args:
        trainer: gives the model's forward, the options and the factors.
    """

    def __init__(self, trainer: DGPOTrainer) -> None:
        self.trainer = trainer
        self.heads = Heads(trainer)

    @property
    def fused(self) -> bool:
        """Whether the loss comes straight from hidden states."""
        return self.heads.fused

    def __call__(self, model: Any, inputs: dict[str, Any], totals: StepTotals) -> MicroBatchLoss:
        """Of what is left of a micro-batch, with the totals of its optimiser step."""
        self.heads.compare(model)
        if self._can_fuse(inputs):
            out = self._of_hidden(model, inputs, totals)
            tokens = self._tokens(inputs, out.logprob, out.entropy, inputs["advantages"])
            bonus = self._bonus(tokens, TokenMean(), totals)
            return MicroBatchLoss(out=out, tokens=tokens, bonus=bonus, kept=tokens.mask)
        return self._of_logprob(model, inputs, totals)

    def logprob(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """[B, T] log π_θ, detached, by the arithmetic of the loss; 0 where masked. Call it under `no_grad`."""
        self.heads.compare(model)
        if not self._can_fuse(inputs):
            return self.trainer._forward(model, inputs)[0]
        mask = loss_mask(inputs).bool()
        found: Tensor = self._of_hidden(model, inputs, StepTotals.of(mask)).logprob
        return torch.where(mask, found, 0.0)

    def _can_fuse(self, inputs: dict[str, Any]) -> bool:
        """False too where a token that the sampler could not score takes its log π_old from this very pass.

        On any rank: the two ways gather the weights of a sharded head in other collectives.
        """
        sampler = inputs.get("sampling_per_token_logps")
        if not self.fused or sampler is None or "old_per_token_logps" in inputs:
            return self.fused
        unknown = sampler.isnan().any().float()
        return not bool(self.trainer.accelerator.reduce(unknown, reduction="sum"))

    def _of_hidden(self, model: Any, inputs: dict[str, Any], totals: StepTotals) -> Any:
        trainer = self.trainer
        loss = partial(
            linear_policy_loss,
            token_ids=inputs["completion_ids"],
            advantage=inputs["advantages"],
            **self.heads.head.arguments(trainer.temperature),
            rollout_logprob=_sampler_logprob(inputs, None),
            correction=(
                self._sampler_correction(inputs)
                or self._trl_factor([self._trl_correction(inputs)], loss_mask(inputs).bool())
            ),
            # every token: rows without an advantage have been left out before the model
            statistics="full",
            entropy_aggregation=TokenMean(),
            **self._arguments(inputs, totals),
        )
        with trainer.accelerator.autocast():
            return model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                policy_loss=loss,
                completions=inputs["completion_ids"].size(1),
            )

    def _of_logprob(self, model: Any, inputs: dict[str, Any], totals: StepTotals) -> MicroBatchLoss:
        trainer = self.trainer
        logprob, entropies, aux_loss = trainer._forward(model, inputs)
        advantages = inputs["advantages"]
        if trainer._advantage is not None:
            advantages = trainer._advantage.shaped(advantages, entropies)
        tokens = self._tokens(inputs, logprob.detach(), entropies, advantages)
        kept = self._kept(tokens)
        how = self._bonus_aggregation(tokens, kept, totals)
        out: PolicyLoss = policy_loss(
            logprob,
            advantage=advantages,
            entropy=entropies,
            rollout_logprob=tokens.rollout_logprob,
            correction=self._factor(inputs, tokens, kept),
            entropy_aggregation=how,
            **self._arguments(inputs, totals),
        )
        return MicroBatchLoss(
            out=out,
            tokens=tokens,
            bonus=self._bonus(tokens, how, totals),
            kept=kept,
            logprob=logprob,
            aux_loss=aux_loss,
        )

    def _kept(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool: the tokens with the highest entropies on all ranks, as many as `top_entropy_quantile` says."""
        trainer = self.trainer
        if trainer.top_entropy_quantile == 1.0:
            return tokens.mask
        mask = tokens.mask.to(tokens.dtype)
        kept: Tensor = trainer.get_high_entropy_mask(tokens.entropy, mask, 1 - trainer.top_entropy_quantile)
        return kept

    def _bonus_aggregation(self, tokens: TokenBatch, kept: Tensor, totals: StepTotals) -> Aggregation:
        """c_H of the entropy bonus: a mean over the kept tokens, as in TRL whatever the aggregation of the policy term.

        With a quantile, a micro-batch has the share of the step that its valid tokens have, spread over its kept ones.
        """
        trainer = self.trainer
        if trainer.top_entropy_quantile == 1.0 or not trainer._entropy_bonus_enabled:
            return TokenMean()
        counts = torch.stack([tokens.mask.sum(), kept.sum()]).to(tokens.dtype)
        valid, chosen = trainer.accelerator.reduce(counts, reduction="sum")
        return Fixed(values=kept * (valid / chosen.clamp(min=1)) / totals.tokens)

    def _bonus(self, tokens: TokenBatch, how: Aggregation, totals: StepTotals) -> Tensor:
        assert tokens.entropy is not None
        return (how.coefficient(tokens.mask, totals, tokens.dtype) * tokens.entropy).sum()

    def _arguments(self, inputs: dict[str, Any], totals: StepTotals) -> dict[str, Any]:
        """What both ways take."""
        trainer = self.trainer
        return {
            "old_logprob": inputs.get("old_per_token_logps"),
            "mask": loss_mask(inputs).bool(),
            "objective": trainer._objective,
            "aggregation": trainer._aggregation,
            "totals": totals,
            "ref_logprob": inputs.get("ref_per_token_logps"),
            "kl_coef": trainer.beta,
            "kl": trainer._kl,
            "entropy_coef": trainer._entropy_coefficient(),
        }

    def _tokens(self, inputs: dict[str, Any], logprob: Tensor, entropy: Tensor, advantages: Tensor) -> TokenBatch:
        return TokenBatch(
            logprob,
            inputs.get("old_per_token_logps"),
            advantages,
            loss_mask(inputs).bool(),
            rollout_logprob=_sampler_logprob(inputs, logprob),
            entropy=entropy,
        )

    def _sampler_correction(self, inputs: dict[str, Any]) -> Correction | None:
        """ρ of this config against the sampler; None where TRL's stands."""
        trainer = self.trainer
        if trainer._correction is not None and inputs.get("sampling_per_token_logps") is None:
            raise ValueError(
                f"correction = {trainer.args.correction!r} needs the sampler's log-probs: use vLLM, or a "
                "rollout_func that returns 'logprobs'"
            )
        return trainer._correction

    def _trl_correction(self, inputs: dict[str, Any]) -> Tensor | None:
        """[B, T] or [B, 1]: TRL's factor against the sampler, where vLLM generates and no other was chosen."""
        trainer = self.trainer
        if trainer._correction is not None or not (trainer.use_vllm and trainer.vllm_importance_sampling_correction):
            return None
        ratio: Tensor = inputs["importance_sampling_ratio"]
        return ratio

    def _trl_factor(self, factors: list[Tensor | None], mask: Tensor) -> Given | None:
        """The product of TRL's factors, as TRL applies them.

        Where TRL's setting for the objective has one ratio per response, each of its tokens gets the gradient of all,
        so that a factor per token acts as its mean.
        """
        product = None
        for factor in factors:
            if factor is not None:
                product = factor if product is None else product * factor
        if product is None:
            return None
        if self.trainer._trl_options.get("importance_sampling_level") == "sequence":
            product = torch.where(mask, product, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return Given(values=product)

    def _factor(self, inputs: dict[str, Any], tokens: TokenBatch, kept: Tensor) -> Correction | None:
        """ρ: the sampler correction, times TRL's off-policy and high-entropy masks where they are on."""
        trainer = self.trainer
        factors = [self._trl_correction(inputs)]
        if trainer.off_policy_mask_threshold is not None:
            advantages = inputs["advantages"]
            factors.append(
                trainer.get_off_policy_mask(
                    advantages=advantages.unsqueeze(1) if advantages.dim() == 1 else advantages,
                    per_token_logps=tokens.logprob,
                    # with its NaN: a token that the sampler could not score is no evidence of drift
                    sampling_per_token_logps=inputs.get("sampling_per_token_logps", tokens.old_logprob),
                    mask=tokens.mask.to(tokens.dtype),
                    off_policy_threshold=trainer.off_policy_mask_threshold,
                )
            )
        if trainer.top_entropy_quantile < 1.0:
            factors.append(kept.to(tokens.dtype))
        theirs, ours = self._trl_factor(factors, tokens.mask), self._sampler_correction(inputs)
        if theirs is None or ours is None:
            return theirs or ours
        return Given(values=theirs.values * ours.factor(tokens))


def _sampler_logprob(inputs: dict[str, Any], logprob: Tensor | None) -> Tensor | None:
    """log μ. Tokens that the sampler could not score (NaN) get log π_old, a mismatch of 1, as in TRL.

    `logprob` is log π_old on-policy; a NaN stays where neither is known.
    """
    sampler: Tensor | None = inputs.get("sampling_per_token_logps")
    old = inputs.get("old_per_token_logps", logprob)
    return sampler if sampler is None or old is None else torch.where(sampler.isnan(), old, sampler)
