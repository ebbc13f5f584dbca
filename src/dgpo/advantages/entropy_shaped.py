"""GRPO's advantage with a bonus for uncertain tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.advantages.group_relative import Standardised
from dgpo.fields import number


def entropy_shaped(advantage: Tensor, entropy: Tensor, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """`A + min(alpha · H, |A| / kappa)` per token: uncertain tokens of good responses count more, of bad ones less.

    The bonus is never negative and, for kappa > 1, never changes the sign of A; A = 0 stays 0.

    Args:
        advantage: [B] or [B, T].
        entropy: [B, T] entropy of the current policy, in nats; detached here.
        alpha: >= 0; the paper uses 0.4 with GRPO and 0.1 with PPO.
        kappa: > 1; the paper uses 2.

    Returns:
        [B, T].

    Source: Cheng et al., arXiv 2506.14758, eq. 5-6. No code of it was found.
    """
    if advantage.dim() == 1:
        advantage = advantage.unsqueeze(1)
    return advantage + torch.minimum(alpha * entropy.detach(), advantage.abs() / kappa)


@dataclass(frozen=True, kw_only=True)
class EntropyShaped(Standardised):
    """GRPO's, with a bonus for uncertain tokens, computed in every update (`entropy_shaped`).

    Args:
        alpha: size of the bonus per nat of entropy; the paper uses 0.4 with GRPO.
        kappa: the bonus is at most |A| / kappa; the paper uses 2.
    """

    reads = frozenset({"entropy"})

    alpha: float = number(0.4, "[0, inf)")
    kappa: float = number(2.0, "(1, inf]")

    def shaped(self, advantage: Tensor, entropy: Tensor) -> Tensor:
        return entropy_shaped(advantage, entropy, self.alpha, self.kappa)
