"""The three matrix products of a chunk, and the sums of their results.

16-bit operands, float32 results: on a CUDA device the product itself writes float32. A CPU rounds every product to the
operands' dtype; there the gradient of `lm_head` is computed in slices of the vocabulary, which stay in the cache until
they have been added to the float32 sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)

SLICE = 4096
"""Rows of lm_head whose gradient is one product on a CPU; at 1024 and at 16384 it takes 6 % and 30 % longer."""


def wide_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `mm` can write float32 results of 16-bit operands: on CUDA, from torch 2.8 on."""
    return device.type == "cuda" and dtype in HALF and hasattr(torch.ops.aten.mm, "dtype")


def mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """a · b into `out`, which may be float32 where `wide_products`."""
    if out.dtype != a.dtype:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a, b, out=out)


class HeadGradient:
    """d loss/d lm_head [V, H], summed over chunks: Gᵀ · X in float32 (float64 for float64 operands).

    One chunk needs no sum; its product stays in the operands' dtype.

    Args:
        lm_head: [V, H], the operand of the products.
        chunks: their number.
    """

    def __init__(self, lm_head: Tensor, chunks: int) -> None:
        self._wide = wide_products(lm_head.device, lm_head.dtype)
        exact = lm_head.dtype not in HALF
        # a 16-bit sum over chunks would lose what is small against it; one chunk has no sum
        keep = exact or (chunks <= 1 and not self._wide)
        self._direct = exact or self._wide or keep
        dtype = lm_head.dtype if keep else torch.float32
        self.total = torch.empty(lm_head.shape, dtype=dtype, device=lm_head.device)
        self._slice = None if self._direct else torch.empty(min(SLICE, len(lm_head)), lm_head.shape[1]).to(lm_head)
        self._empty = True

    def add(self, G: Tensor, X: Tensor) -> None:
        """Add Gᵀ · X, of G [n, V] and X [n, H]."""
        if self._slice is not None:
            for start in range(0, len(self.total), SLICE):
                stop = min(start + SLICE, len(self.total))
                part = torch.mm(G[:, start:stop].t(), X, out=self._slice[: stop - start])
                if self._empty:
                    self.total[start:stop].copy_(part)
                else:
                    self.total[start:stop].add_(part)
        # the first chunk overwrites: no pass over [V, H] to set zeros
        elif self._empty:
            mm(G.t(), X, out=self.total)
        elif self._wide:
            torch.addmm(self.total, G.t(), X, out_dtype=self.total.dtype, out=self.total)
        else:
            self.total.addmm_(G.t(), X)
        self._empty = False

    def result(self) -> Tensor:
        """[V, H]; zeros where nothing was added."""
        return self.total.zero_() if self._empty else self.total
