"""Batches for the fused loss, as random tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dgpo

VOCABULARY = 151_936
"""Of the Qwen2.5 family."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One batch: hidden [B, T, H] and lm_head [V, H] are leaves; everything else [B, T], advantage [B]."""

    hidden: Tensor
    lm_head: Tensor
    token_ids: Tensor
    old_logprob: Tensor
    advantage: Tensor
    mask: Tensor

    def double(self) -> Problem:
        """The same numbers in float64."""
        wide = {name: getattr(self, name).detach().double().requires_grad_() for name in ("hidden", "lm_head")}
        return Problem(**vars(self) | wide)


def make(B: int, T: int, H: int, V: int, dtype: torch.dtype, device: torch.device, zero: float = 0.0) -> Problem:
    """Logits of standard deviation 2; a `zero` share of the responses has advantage 0; ratios of 0.5 .. 2."""
    random = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(B, T, H, generator=random, device=device)
    lm_head = torch.randn(V, H, generator=random, device=device) * (2 / H**0.5)
    token_ids = torch.randint(V, (B, T), generator=random, device=device)
    advantage = torch.where(torch.arange(B, device=device) % 2 == 0, 1.0, -0.5)
    advantage[: round(zero * B)] = 0.0
    hidden, lm_head = hidden.to(dtype), lm_head.to(dtype)
    old = torch.empty(B, T, device=device)
    for row in range(B):  # the whole of the logits may not fit
        log_p = (hidden[row] @ lm_head.T).float().log_softmax(-1)
        old[row] = log_p.gather(1, token_ids[row, :, None])[:, 0]
    # inside, outside and at 1, at a distance from the usual clip ranges that rounding cannot bridge
    shifts = torch.tensor([-0.7, -0.1, 0.0, 0.1, 0.7], device=device)
    old -= shifts[torch.randint(5, (B, T), generator=random, device=device)]
    mask = torch.ones(B, T, dtype=torch.bool, device=device)
    return Problem(
        hidden=hidden.requires_grad_(),
        lm_head=lm_head.requires_grad_(),
        token_ids=token_ids,
        old_logprob=old,
        advantage=advantage,
        mask=mask,
    )


def fused(p: Problem, **options: Any) -> Any:
    """Our operator on a problem."""
    return dgpo.linear_policy_loss(p.hidden, p.lm_head, p.token_ids, p.old_logprob, p.advantage, p.mask, **options)


def gradients(p: Problem, **options: Any) -> tuple[Tensor, ...]:
    """Of the operator's value, by hidden and lm_head."""
    return torch.autograd.grad(fused(p, **options).value, (p.hidden, p.lm_head))
