"""Where a token is in the rows of `hidden`, and in the [B, T] of everything that works on sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dgpo.checks import check_tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The map between the shape that the caller uses, [B, T] or [N], and [B, T].

    Attributes:
        shape: the caller's.
        B: sequences; 1 for [N] without `cu_seqlens`.
        T: tokens of the longest.
        places: [N], the place of each row of `hidden` in the flattened [B, T]; None where they are the same.
        sequences: False for [N] without `cu_seqlens`: where one sequence ends is then not known.
    """

    shape: torch.Size
    B: int
    T: int
    places: Tensor | None = None
    sequences: bool = True

    @classmethod
    def of(cls, shape: torch.Size, cu_seqlens: Tensor | None, device: torch.device) -> Layout:
        """From the shape of `token_ids` and, for [N], the offsets at which sequences begin and end.

        Raises:
            TypeError: `cu_seqlens` is not a tensor of integers.
            ValueError: `cu_seqlens` is neither on the CPU nor on the device, is not 1-D, does not run from 0 to N,
                decreases, or comes with [B, T].
        """
        if cu_seqlens is None:
            if len(shape) == 1:
                return cls(shape=shape, B=1, T=shape[0], sequences=False)
            return cls(shape=shape, B=shape[0], T=shape[1])
        check_tensor("cu_seqlens", cu_seqlens, "integer")
        if cu_seqlens.device.type != "cpu":
            check_tensor("cu_seqlens", cu_seqlens, "integer", ("hidden", device))
        if len(shape) != 1:
            raise ValueError(f"cu_seqlens is for packed token_ids [N]; token_ids has shape {tuple(shape)}")
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
            raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected [B + 1] with B >= 1")
        # synchronises for offsets on the device, which is why the CPU is accepted too
        ends: Sequence[int] = cu_seqlens.tolist()
        lengths = [end - start for start, end in pairwise(ends)]
        if ends[0] != 0 or ends[-1] != shape[0] or min(lengths) < 0:
            raise ValueError(
                f"cu_seqlens runs from {ends[0]} to {ends[-1]}{' and decreases' if min(lengths) < 0 else ''}; expected "
                f"offsets from 0 to N = {shape[0]} that do not decrease, as token_ids has shape {tuple(shape)}"
            )
        B, T = len(lengths), max(lengths)
        # row i of sequence s is at s · T + (i - start of s); computed on the CPU and copied once
        sequence = torch.arange(B).repeat_interleave(torch.tensor(lengths), output_size=shape[0])
        places = torch.arange(shape[0]) + sequence * T - torch.tensor(ends)[sequence]
        return cls(shape=shape, B=B, T=T, places=places.to(device))

    def pad(self, values: Tensor) -> Tensor:
        """[B, T] from the caller's shape; 0 where there is no token."""
        if self.places is None:
            return values.reshape(self.B, self.T)
        # out of place: the reference differentiates through it
        return values.new_zeros(self.B * self.T).index_put((self.places,), values).view(self.B, self.T)

    def unpad(self, values: Tensor) -> Tensor:
        """The caller's shape from [B, T]."""
        if self.places is None:
            return values.reshape(self.shape)
        return values.flatten()[self.places]
