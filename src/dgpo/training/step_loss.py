"""The loss of one micro-batch, in one of two ways: straight from hidden states, or from log-probs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import Aggregation, Fixed, StepTotals, TokenMean
from dgpo.correction import Correction, Given
from dgpo.fused.operator import linear_loss_of
from dgpo.loss import loss_of
from dgpo.spec import LossSpec
from dgpo.tokens import TokenBatch
from dgpo.training.factors import Factors, Terms
from dgpo.training.forwards import apply_to_hidden
from dgpo.training.head import Heads
from dgpo.training.micro_batches import loss_mask
from dgpo.training.packing import Packing

Forward = Callable[[Any, dict[str, Any]], tuple[Tensor, Tensor, Tensor | None]]
"""Log-probs and entropies [B, T], and the auxiliary loss, of a model and a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchLoss:
    """The loss of a micro-batch, and what its metrics are computed from.

    Attributes:
        out: value, weight and statistics; of a `PolicyLoss`, or of the model's output with the same names.
        tokens: what the loss was computed from, detached, with entropies.
        bonus: the entropy bonus Σ c_H·H, detached, without its coefficient.
        kept: [B, T] bool, the tokens that `top_entropy_quantile` keeps; all valid ones where it is 1.
        logprob: [B, T] with gradient, where log-probs come first; None where the loss is fused.
        aux_loss: of a mixture of experts, where its weight is not 0.
        anchor: the policy that the ratio was taken against.
    """

    out: Any
    tokens: TokenBatch
    bonus: Tensor
    kept: Tensor
    logprob: Tensor | None = None
    aux_loss: Tensor | None = None
    anchor: str = "old"

    @property
    def seen(self) -> TokenBatch:
        """The tokens as the weights read them."""
        return self.tokens.anchored(self.anchor)


class StepLoss:
    """Puts TRL's tensors and terms, and the config's factors, into `linear_loss_of` or `loss_of`.

    Args:
        factors: of the run.
        heads: whether the loss can be fused, and by which head.
        forward: TRL's pass for log-probs.
        accelerator: for autocast, and for sums over the ranks.
    """

    def __init__(self, factors: Factors, heads: Heads, forward: Forward, accelerator: Any) -> None:
        self.heads = heads
        self._factors = factors
        self._forward = forward
        self._accelerator = accelerator

    def __call__(
        self,
        model: Any,
        inputs: dict[str, Any],
        totals: StepTotals,
        terms: Terms,
        packing: Packing | None = None,
        valid: int | None = None,
    ) -> MicroBatchLoss:
        """Of what is left of a micro-batch, with the totals of its optimiser step.

        Args:
            model: the trainer's, as it is called.
            inputs: TRL's tensors of the rows and columns that are left.
            totals: of the optimiser step.
            terms: as they are now.
            packing: of `inputs`, where the model is to read them without padding; not used where log-probs come first.
            valid: tokens of the policy in `inputs`, if the host knows: saves a synchronisation.
        """
        # a collective on the first call; does nothing after that
        self.heads.compare(model)
        if self._can_fuse(inputs):
            out = self._of_hidden(model, inputs, totals, terms, packing, valid)
            tokens = self._tokens(inputs, out.logprob, out.entropy, inputs["advantages"])
            bonus = self._bonus(tokens, TokenMean(), totals)
            anchor = self._factors.spec.anchor
            return MicroBatchLoss(out=out, tokens=tokens, bonus=bonus, kept=tokens.mask, anchor=anchor)
        return self._of_logprob(model, inputs, totals, terms)

    def logprob(
        self,
        model: Any,
        inputs: dict[str, Any],
        terms: Terms,
        packing: Packing | None = None,
        valid: int | None = None,
    ) -> Tensor:
        """[B, T] log π_θ, detached, by the arithmetic of the loss; 0 where masked. Call it under `no_grad`."""
        self.heads.compare(model)
        if not self._can_fuse(inputs):
            return self._forward(model, inputs)[0]
        mask = loss_mask(inputs).bool()
        # the totals do not matter here: only log-probs are taken from the result
        found: Tensor = self._of_hidden(model, inputs, StepTotals.of(mask), terms, packing, valid).logprob
        return torch.where(mask, found, 0.0)

    def _can_fuse(self, inputs: dict[str, Any]) -> bool:
        """False too where a token that the sampler could not score takes its log π_old from this very pass.

        On any rank: the two ways gather the weights of a sharded head in other collectives.
        """
        sampler = inputs.get("sampling_per_token_logps")
        if not self.heads.fused or sampler is None or "old_per_token_logps" in inputs:
            return self.heads.fused
        unknown = sampler.isnan().any().float()
        return not bool(self._accelerator.reduce(unknown, reduction="sum"))

    def _of_hidden(
        self,
        model: Any,
        inputs: dict[str, Any],
        totals: StepTotals,
        terms: Terms,
        packing: Packing | None,
        valid: int | None,
    ) -> Any:
        mask = loss_mask(inputs).bool()
        # without a correction of the configuration TRL's own stands
        rho = self._factors.spec.correction or self._trl_factor(self._trl_correction(inputs, terms), mask)
        loss = partial(
            linear_loss_of,
            self._spec(rho, TokenMean(), terms),
            token_ids=inputs["completion_ids"],
            old_logprob=inputs.get("old_per_token_logps"),
            advantage=inputs["advantages"],
            mask=mask,
            head=self.heads.head,
            totals=totals,
            rollout_logprob=_sampler_logprob(inputs, None),
            ref_logprob=inputs.get("ref_per_token_logps"),
            # every token: rows without an advantage have been left out before the model
            statistics="full",
            kept=valid,
        )
        with self._accelerator.autocast():
            return apply_to_hidden(model, inputs, loss, packing)

    def _of_logprob(self, model: Any, inputs: dict[str, Any], totals: StepTotals, terms: Terms) -> MicroBatchLoss:
        logprob, entropies, aux_loss = self._forward(model, inputs)
        advantages = inputs["advantages"]
        if self._factors.advantage is not None:
            advantages = self._factors.advantage.shaped(advantages, entropies)
        # detached: ρ, masks and metrics read these values, and no gradient may pass through them
        tokens = self._tokens(inputs, logprob.detach(), entropies, advantages)
        kept = self._kept(tokens, terms)
        how = self._bonus_aggregation(tokens, kept, totals, terms)
        out = loss_of(
            self._spec(self._factor(inputs, tokens, kept, terms), how, terms),
            self._tokens(inputs, logprob, entropies, advantages),
            totals=totals,
            entropy=entropies,
            ref_logprob=inputs.get("ref_per_token_logps"),
        )
        return MicroBatchLoss(
            out=out,
            tokens=tokens,
            bonus=self._bonus(tokens, how, totals),
            kept=kept,
            logprob=logprob,
            aux_loss=aux_loss,
            anchor=self._factors.spec.anchor,
        )

    def _kept(self, tokens: TokenBatch, terms: Terms) -> Tensor:
        """[B, T] bool: of the tokens of all ranks the share `top_entropy_quantile` with the highest entropies."""
        if terms.high_entropy_mask is None:
            return tokens.mask
        assert tokens.entropy is not None
        return terms.high_entropy_mask(tokens.entropy, tokens.mask.to(tokens.dtype))

    def _bonus_aggregation(self, tokens: TokenBatch, kept: Tensor, totals: StepTotals, terms: Terms) -> Aggregation:
        """c_H of the entropy bonus: a mean over the kept tokens, as in TRL whatever the aggregation of the policy term.

        With a quantile, a micro-batch has the share of the step that its valid tokens have, spread over its kept ones.
        """
        if terms.high_entropy_mask is None or not terms.entropy_bonus:
            return TokenMean()
        # over all ranks, since TRL's mask takes its quantile over all ranks too; every rank has the same `terms`
        counts = torch.stack([tokens.mask.sum(), kept.sum()]).to(tokens.dtype)
        valid, chosen = self._accelerator.reduce(counts, reduction="sum")
        return Fixed(values=kept * (valid / chosen.clamp(min=1)) / totals.tokens)

    def _bonus(self, tokens: TokenBatch, how: Aggregation, totals: StepTotals) -> Tensor:
        assert tokens.entropy is not None
        return (how.coefficient(tokens.mask, totals, tokens.dtype) * tokens.entropy).sum()

    def _spec(self, rho: Correction | None, bonus: Aggregation, terms: Terms) -> LossSpec:
        """The loss of a micro-batch: that of the run, with this ρ and this entropy bonus."""
        return replace(self._factors.spec, correction=rho, entropy_coef=terms.entropy_coef, entropy_aggregation=bonus)

    def _tokens(self, inputs: dict[str, Any], logprob: Tensor, entropy: Tensor, advantages: Tensor) -> TokenBatch:
        return TokenBatch(
            logprob,
            inputs.get("old_per_token_logps"),
            advantages,
            loss_mask(inputs).bool(),
            rollout_logprob=_sampler_logprob(inputs, logprob),
            entropy=entropy,
        )

    def _trl_correction(self, inputs: dict[str, Any], terms: Terms) -> list[Tensor]:
        """[B, T] or [B, 1]: TRL's factor against the sampler, where vLLM generates and nothing else was chosen."""
        spec = self._factors.spec
        theirs = terms.sampler_ratio and spec.correction is None and spec.anchor == "old"
        return [inputs["importance_sampling_ratio"]] if theirs else []

    def _trl_factor(self, factors: list[Tensor], mask: Tensor) -> Given | None:
        """The product of TRL's factors, as TRL applies them.

        Where TRL's setting for the objective has one ratio per response, each of its tokens gets the gradient of all,
        so that a factor per token acts as its mean.
        """
        if not factors:
            return None
        product = reduce(torch.mul, factors)
        if self._factors.by_response:
            # [B, 1]
            product = torch.where(mask, product, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return Given(values=product)

    def _factor(self, inputs: dict[str, Any], tokens: TokenBatch, kept: Tensor, terms: Terms) -> Correction | None:
        """ρ: the sampler correction, times TRL's off-policy and high-entropy masks where they are on."""
        factors = self._trl_correction(inputs, terms)
        if terms.off_policy_mask is not None:
            advantages = inputs["advantages"]
            # TRL's mask takes [B, 1]
            advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
            # with its NaN: a token that the sampler could not score is not evidence of drift
            sampler = inputs.get("sampling_per_token_logps", tokens.old_logprob)
            factors.append(terms.off_policy_mask(advantages, tokens.logprob, sampler, tokens.mask.to(tokens.dtype)))
        if terms.high_entropy_mask is not None:
            factors.append(kept.to(tokens.dtype))
        theirs, ours = self._trl_factor(factors, tokens.mask), self._factors.spec.correction
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
