"""The elementwise middle of each backend, and the number of tokens per chunk."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dgpo.fused import triton as kernels
from dgpo.fused.chunked import Operands
from dgpo.fused.head import Head
from dgpo.fused.inputs import Inputs
from dgpo.fused.middle import Middle, TorchMiddle
from dgpo.fused.products import wide_products

CHUNK_BYTES = {"cpu": 512 << 20, "cuda": 5 << 29}
"""Maximum bytes of a chunk's logits, unless `LEAST_TOKENS` need more. CUDA, 2.5 GiB: 4096 float32 rows of 152k. Each
chunk reads and writes the float32 gradient of lm_head once, about 25 % of the products' time per 1000 tokens of a chunk
on Hopper."""

CHUNK_TOKENS = {"cpu": 512, "cuda": 8192}
"""Maximum tokens of a chunk: beyond these, the pages of a larger buffer cost more than fewer chunks save."""


LEAST_TOKENS = {"cpu": 1, "cuda": 4096}
"""Minimum tokens of a chunk, whatever their size: with fewer, summing the gradient of lm_head in float32 costs more
than 6 % on Hopper."""


def tokens_per_chunk(lm_head: Tensor) -> int:
    """How many tokens' logits fit the budget, for the operand lm_head [V, H]."""
    kind = "cpu" if lm_head.device.type == "cpu" else "cuda"
    # bytes of a logit, which is float32 where the product can write it
    size = 4 if wide_products(lm_head.device, lm_head.dtype) else lm_head.element_size()
    return tokens_in_budget(kind, len(lm_head), size)


def tokens_in_budget(kind: str, vocabulary: int, size: int) -> int:
    """How many tokens' logits fit the budget of a "cpu" or "cuda" device, at `size` bytes for each logit."""
    return max(LEAST_TOKENS[kind], min(CHUNK_TOKENS[kind], CHUNK_BYTES[kind] // (vocabulary * size)))


def make_middle(backend: str, inputs: Inputs, operands: Operands) -> Middle:
    """The middle of "chunked" or "triton"; for "auto" the faster one that runs here.

    Raises:
        ValueError: for "triton" if its kernels cannot run here, with the reason.
    """
    head = replace(inputs.head, bias=operands.bias)
    dtype, device = operands.lm_head.dtype, operands.lm_head.device
    if backend == "chunked":
        return TorchMiddle(head, dtype, device)
    reason = kernels.unavailable(device)
    if reason is None and dtype == torch.float64:
        reason = "the kernels compute in float32, the operands are float64"
    if backend == "auto":
        # TRITON_INTERPRET=1 also runs the kernels on a CPU, too slowly to be chosen automatically
        return TritonMiddle(head) if reason is None and device.type == "cuda" else TorchMiddle(head, dtype, device)
    if reason is not None:
        raise ValueError(f"backend 'triton' cannot run here: {reason}; 'chunked' runs anywhere")
    return TritonMiddle(head)


class TritonMiddle:
    """The middle as two Triton kernels, each over a whole chunk."""

    def __init__(self, head: Head) -> None:
        self._head = head

    @property
    def holds(self) -> bool:
        return False

    def block_rows(self, vocabulary: int) -> int | None:
        return None

    def forget(self) -> None:
        """Nothing is held between the two kernels."""

    def stats(self, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.stats(logits, token_ids, self._head)

    def gradient_(
        self,
        logits: Tensor,
        token_ids: Tensor,
        logprob: Tensor,
        entropy: Tensor,
        lse: Tensor,
        g: Tensor,
        h: Tensor | None,
        *,
        out: Tensor,
    ) -> None:
        kernels.gradient_(
            logits,
            token_ids,
            logprob,
            entropy,
            lse,
            # the kernels get pointers, without strides
            g.contiguous(),
            None if h is None else h.contiguous(),
            head=self._head,
            out=out,
        )
