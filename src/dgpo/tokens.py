"""TokenBatch: the per-token inputs of the four factors of a policy gradient.

Validated, masked and converted once. After construction no other code has to handle padding, dtypes, strides or
broadcasting: every tensor is [B, T], contiguous, of one floating dtype, and holds 0 where `mask` is
False.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.checks import check_tensor

MAX_LOG_RATIO = 20.0
"""Log ratios enter a weight clamped to this many nats, as in verl; the gradient through `logprob` is kept."""

ANCHORS = ("old", "rollout")
"""Policies that the ratio can be taken against: π_old, or the sampler μ."""


class NotFiniteError(ValueError):
    """A NaN or an infinity where training needs a number: in a batch, in a weight or in a loss."""


class TokenBatch:
    """B responses of up to T tokens, as every objective sees them.

    Args:
        logprob: [B, T] log π_θ of the sampled tokens, in nats; the only tensor that may carry a gradient.
        old_logprob: [B, T] log π_old, the policy that the optimisation step started from. None means on-policy:
            `logprob.detach()`, so that every ratio is 1.
        advantage: [B] (one per response) or [B, T].
        mask: [B, T], bool or 0/1; True where a token is a valid response token. 0/1 values are verified on the CPU;
            pass a bool mask on an accelerator, where verifying would cost a synchronisation.
        rollout_logprob: [B, T] log μ of the sampler, where it differs from the trainer.
        entropy: [B, T] entropy of the current policy in nats, for objectives and advantages that read it; detached.

    Arithmetic is float64 if `logprob` is float64, float32 otherwise. Masked positions may hold anything, NaN and
    ±inf included: they are replaced by 0 here, before any arithmetic, so that neither value nor gradient sees them.

    Raises:
        TypeError: if an argument is not a tensor or has an unsupported dtype; log-probs and entropies have to be
            floating, advantages may be integers.
        ValueError: if a shape or device does not match, or the mask has values other than 0 and 1.
    """

    traced: ClassVar[bool] = False
    """True for a batch that stands for tensors which are not known yet, as `torch.fx` traces a loss."""

    def __init__(
        self,
        logprob: Tensor,
        old_logprob: Tensor | None,
        advantage: Tensor,
        mask: Tensor,
        *,
        rollout_logprob: Tensor | None = None,
        entropy: Tensor | None = None,
    ) -> None:
        check_tensor("logprob", logprob, "floating")
        if logprob.dim() != 2:
            raise ValueError(f"logprob has shape {tuple(logprob.shape)}; expected [B, T] (responses, tokens)")
        shape = logprob.shape
        self.dtype = torch.float64 if logprob.dtype == torch.float64 else torch.float32

        self.mask = _as_mask(mask, shape, logprob.device)
        self.logprob = self.masked("logprob", logprob)
        if old_logprob is None:
            self.old_logprob = self.logprob.detach()
        else:
            self.old_logprob = self.masked("old_logprob", old_logprob).detach()
        check_tensor("advantage", advantage, "real", ("logprob", logprob.device))
        if advantage.dim() == 1 and advantage.shape[0] == shape[0]:
            advantage = advantage.unsqueeze(1).expand(shape)
        elif advantage.shape != shape:
            raise ValueError(
                f"advantage has shape {tuple(advantage.shape)}; expected [B] = [{shape[0]}] (one per response) or "
                f"[B, T] = {list(shape)}, because logprob has shape {tuple(shape)}"
            )
        self.advantage = self.masked("advantage", advantage, "real").detach()
        self.rollout_logprob = (
            None if rollout_logprob is None else self.masked("rollout_logprob", rollout_logprob).detach()
        )
        self.entropy = None if entropy is None else self.masked("entropy", entropy).detach()

    def masked(self, name: str, values: Tensor, kind: str = "floating") -> Tensor:
        """[B, T] values in the form that all tensors of the batch have, with their gradient.

        Raises:
            TypeError, ValueError: as at construction.
        """
        check_tensor(name, values, kind, ("logprob", self.mask.device))
        if values.shape != self.mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; expected {tuple(self.mask.shape)}, the shape of logprob"
            )
        # where(), not a product: 0 * NaN is NaN, in the value and in the gradient
        # contiguous, since where() keeps strides and the fused loss takes flat views
        return torch.where(self.mask, values.to(self.dtype), 0.0).contiguous()

    def anchored(self, anchor: str) -> TokenBatch:
        """The batch as weights read it: `old_logprob` is the policy that the ratio is taken against.

        Args:
            anchor: "old" is this batch itself; with "rollout" log μ takes the place of log π_old.

        Raises:
            ValueError: "rollout" without `rollout_logprob`; another word.
        """
        if anchor == "old":
            return self
        if anchor != "rollout":
            raise ValueError(f"anchor = {anchor!r} is not known; expected one of {', '.join(ANCHORS)}")
        if self.rollout_logprob is None:
            raise ValueError(
                "anchor = 'rollout' takes the ratio against the sampler: pass rollout_logprob [B, T], got None"
            )
        seen = copy.copy(self)
        seen.old_logprob = self.rollout_logprob
        return seen

    @property
    def log_ratio(self) -> Tensor:
        """[B, T] log π_θ - log π_old, clamped to ±`MAX_LOG_RATIO`; 0 where masked."""
        # beyond the clamp its gradient is 0, at no cost: weights are detached, and the loss reaches logprob directly
        return (self.logprob - self.old_logprob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    @property
    def ratio(self) -> Tensor:
        """[B, T] importance ratio r = π_θ / π_old, within e^±20; 1 where masked."""
        return self.log_ratio.exp()

    @property
    def finite(self) -> Tensor:
        """[B, T] bool: valid tokens whose log-probs and advantage are finite.

        What calibrates itself on a batch reads these alone, so that `check` can name the others afterwards.
        """
        return self.mask & (self.logprob + self.old_logprob + self.advantage).detach().isfinite()


def check(tokens: TokenBatch, ref_logprob: Tensor | None = None) -> None:
    """Raise if a valid position has a NaN or an infinity, naming the first one.

    Costs one host synchronisation when all is well. Non-finite values at *masked* positions are fine and never reach
    a `TokenBatch`.

    Args:
        tokens: the batch.
        ref_logprob: [B, T] log-probs under the reference model, where a KL term reads them.

    Raises:
        NotFiniteError: names the tensor, row and column, the value, and how many others there are.
    """
    present, bad = not_finite(tokens, ref_logprob)
    if not bad.any():
        return
    for (name, values), where in zip(present.items(), bad, strict=True):
        if where.any():
            row, column = (int(i) for i in where.nonzero()[0])
            raise NotFiniteError(
                f"{name}[{row}, {column}] = {values[row, column].item()} at a valid position (row {row}, column "
                f"{column}); {int(where.sum())} of {int(tokens.mask.sum())} valid tokens are not finite in {name}. "
                "Log-probabilities, advantages and entropies must be finite wherever mask is True"
            )


def is_finite(tokens: TokenBatch, ref_logprob: Tensor | None = None) -> Tensor:
    """0-d bool on the device of the batch: whether `check` would pass. Reads nothing on the host."""
    return ~not_finite(tokens, ref_logprob)[1].any()


def not_finite(tokens: TokenBatch, ref_logprob: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Name -> [B, T] values that are there, 0 where masked, and [names, B, T] bool where they are not finite."""
    named = {
        "logprob": tokens.logprob,
        "old_logprob": tokens.old_logprob,
        "advantage": tokens.advantage,
        "rollout_logprob": tokens.rollout_logprob,
        "entropy": tokens.entropy,
        "ref_logprob": None if ref_logprob is None else tokens.masked("ref_logprob", ref_logprob),
    }
    present = {name: values.detach() for name, values in named.items() if values is not None}
    # one stacked tensor, so that the host reads one result
    return present, torch.stack([~torch.isfinite(values) for values in present.values()])


def _as_mask(mask: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    check_tensor("mask", mask, "mask", ("logprob", device))
    if mask.shape != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {tuple(shape)}, the shape of logprob")
    if mask.dtype != torch.bool and mask.device.type == "cpu" and not bool(((mask == 0) | (mask == 1)).all()):
        value = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"mask contains {value}; expected bool, or only 0 and 1")
    return mask.bool().contiguous()
