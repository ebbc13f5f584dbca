"""d loss/d hidden, d loss/d lm_head and d loss/d bias, chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo.fused.inputs import Inputs
from dgpo.fused.products import HeadGradient, mm, wide_products
from dgpo.fused.rows import Rows

BIAS_ROWS = 64
"""Rows of G that are summed at a time: a sum in another dtype may hold a copy of all its terms."""


class Gradients:
    """Accumulator of the three gradients; one that is not wanted costs no product.

    Args:
        inputs: hidden [N, H], lm_head [V, H] and bias [V], whose gradients these are.
        operand: lm_head in the dtype of the products.
        rows: the rows that are computed; the others have gradient 0.
        wanted: which of the gradients of hidden, lm_head and bias.
        chunks: their number.
    """

    def __init__(self, inputs: Inputs, operand: Tensor, rows: Rows, wanted: tuple[bool, ...], chunks: int) -> None:
        self._operand, self._rows = operand, rows
        self._exact = inputs.tokens.dtype
        hidden, bias = inputs.hidden, inputs.bias
        # zeros for the rows that are not computed; contiguous, because products write into slices of it
        self._hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self._head = HeadGradient(operand, chunks) if wanted[1] else None
        self._bias = torch.zeros_like(bias, dtype=self._exact) if bias is not None and wanted[2] else None

    def add(self, G: Tensor, X: Tensor, span: slice) -> None:
        """Add a chunk: G = d loss/d product [n, V], of X [n, H]."""
        if self._hidden is not None:
            self._add_hidden(self._hidden, G, span)
        if self._head is not None:
            self._head.add(G, X)
        if self._bias is not None:
            for start in range(0, len(G), BIAS_ROWS):
                self._bias += G[start : start + BIAS_ROWS].sum(0, dtype=self._exact)

    def result(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, lm_head and bias; None where not wanted."""
        return self._hidden, None if self._head is None else self._head.result(), self._bias

    def _add_hidden(self, total: Tensor, G: Tensor, span: slice) -> None:
        W = self._operand
        indices = self._rows.indices
        # one product over the whole vocabulary: sums of rounded parts of it would drift
        possible = {W.dtype, torch.float32} if wide_products(W.device, W.dtype) else {W.dtype}
        if indices is None and total.dtype in possible:
            mm(G, W, out=total[span])
            return
        product = mm(G, W, out=torch.empty(len(G), W.shape[1], dtype=W.dtype, device=W.device)).to(total.dtype)
        if indices is None:
            total[span] = product
        else:
            total.index_copy_(0, indices[span], product)
