"""Fused heads of other projects, for head.py. Each builder imports its project; ModuleNotFoundError: not installed.

A builder returns ("logprob", f) with f(hidden [B, T, H], lm_head [V, H], token_ids [B, T]) -> log-probs [B, T], on
which our `policy_loss` is then computed, or ("loss", f) with f(problem) -> scalar for those with a loss of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Peer = tuple[str, Callable[..., Tensor]]


def trl() -> Peer:
    """TRL's ChunkedLogProbFunction: log-probs, logits recomputed in the backward pass."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as chunk

    def logprob(hidden: Tensor, lm_head: Tensor, token_ids: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1), lm_head, None, token_ids.flatten()
        found = ChunkedLogProbFunction.apply(*flat, 1.0, chunk, None, 1.0, ())[0]
        return found.view(token_ids.shape)

    return "logprob", logprob


def verl() -> Peer:
    """verl's FusedLinearForPPO (torch): log-probs and entropy, logits recomputed in the backward pass."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    head = FusedLinearForPPO()

    def logprob(hidden: Tensor, lm_head: Tensor, token_ids: Tensor) -> Tensor:
        return head(hidden.flatten(0, 1), lm_head, token_ids.flatten())[0].view(token_ids.shape)

    return "logprob", logprob


def cut_cross_entropy() -> Peer:
    """Apple's cut-cross-entropy, per token; its gradient leaves out what is below its filter."""
    from cut_cross_entropy import linear_cross_entropy

    def logprob(hidden: Tensor, lm_head: Tensor, token_ids: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, lm_head, token_ids, reduction="none")

    return "logprob", logprob


def liger() -> Peer:
    """Liger's LigerFusedLinearGRPOLoss with GRPO's clipping, without a reference model."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    head = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="dapo")

    def loss(p: Any) -> Tensor:
        rows = p.token_ids, p.mask.to(p.hidden.dtype), p.advantage
        return head(p.hidden, p.lm_head, *rows, old_per_token_logps=p.old_logprob)[0]

    return "loss", loss


def quack() -> Peer:
    """QuACK's chunked cross-entropy: no policy loss, but what three products with fused kernels can reach."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def loss(p: Any) -> Tensor:
        return chunked_linear_cross_entropy(p.hidden.flatten(0, 1), p.lm_head, p.token_ids.flatten())

    return "loss", loss


PEERS: dict[str, Callable[[], Peer]] = {
    "TRL ChunkedLogProbFunction": trl,
    "verl FusedLinearForPPO": verl,
    "cut-cross-entropy": cut_cross_entropy,
    "Liger GRPO loss": liger,
    "QuACK cross-entropy": quack,
}
