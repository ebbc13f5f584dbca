"""Result of `linear_policy_loss`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fused.layout import Layout
from dgpo.loss import PolicyLoss


@dataclass(frozen=True)
class LinearPolicyLoss(PolicyLoss):
    """A `PolicyLoss` with the log-probs that it was computed from. Shapes are those of `token_ids`: [B, T] or [N].

    Attributes:
        logprob: log π_θ of the tokens, in nats, detached; NaN where not computed.
        entropy: of π_θ, in nats, detached; NaN where not computed.
        computed: bool, where log-probs were computed. `statistics` are over these tokens; `weight` is 0 elsewhere.
    """

    logprob: Tensor
    entropy: Tensor
    computed: Tensor

    @classmethod
    def of(
        cls, loss: PolicyLoss, logprob: Tensor, entropy: Tensor, computed: Tensor, layout: Layout
    ) -> LinearPolicyLoss:
        """From tensors [B, T]."""
        return cls(
            value=loss.value,
            weight=layout.unpad(loss.weight),
            statistics=loss.statistics,
            logprob=layout.unpad(torch.where(computed, logprob.detach(), torch.nan)),
            entropy=layout.unpad(torch.where(computed, entropy.detach(), torch.nan)),
            computed=layout.unpad(computed),
        )
