"""Which tokens are computed, and how they are split into chunks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dgpo.counts import counted
from dgpo.fused.layout import Layout


@dataclass(frozen=True)
class Span:
    """A chunk: a slice of the rows and, where it holds whole responses, which of the B they are."""

    rows: slice
    responses: slice | None = None


@dataclass(frozen=True)
class Rows:
    """The tokens that are computed.

    Attributes:
        indices: [K], rows of `hidden`; None for all of them.
        places: [K], where they are in the flattened [B, T].
    """

    indices: Tensor | None
    places: Tensor

    @classmethod
    def of(cls, keep: Tensor, layout: Layout, count: int | None) -> Rows:
        """Where `keep` [B, T] is True. Counting them costs one host synchronisation, unless `count` is given.

        Raises:
            ValueError: `count` is not the number of True, on the CPU; on an accelerator an assertion of the device.
        """
        wanted = layout.unpad(keep).flatten()
        if count is None:
            indices = wanted.nonzero().squeeze(1)
        else:
            right = wanted.sum() == count
            if wanted.device.type != "cpu":
                torch._assert_async(right)
            elif not right:
                raise ValueError(
                    f"kept = {count}; expected {counted(int(wanted.sum()), 'token')}, those that are computed"
                )
            # nonzero() in effect, with a size that is known without waiting for the device
            indices = torch.argsort(wanted.to(torch.uint8), descending=True, stable=True)[:count]
        places = indices if layout.places is None else layout.places[indices]
        # None for all rows: chunks are then views of hidden, not gathered copies
        return cls(None if len(indices) == len(wanted) else indices, places)

    def __len__(self) -> int:
        return len(self.places)

    def take(self, values: Tensor, span: slice) -> Tensor:
        """The rows of the span, out of values [N, ...]."""
        return values[span] if self.indices is None else values[self.indices[span]]


def spans_of_tokens(count: int, most: int) -> list[Span]:
    """As few chunks of at most `most` rows as possible, of nearly equal size: a product of few rows is a slow one."""
    chunks = -(-count // most)
    ends = [count * i // chunks for i in range(chunks + 1)] if chunks else [0]
    return [Span(slice(start, end)) for start, end in pairwise(ends)]


def spans_of_sequences(computed: Tensor, most: int) -> list[Span] | None:
    """Chunks of at most `most` rows that end where responses end; None if one response has more. Synchronises."""
    lengths = computed.sum(-1).tolist()
    if max(lengths, default=0) > most:
        return None
    spans: list[Span] = []
    row = first = held = 0
    # the last entry is not a response: longer than any chunk, it closes the chunk before it
    for response, length in enumerate([*lengths, most + 1]):
        if held + length > most:
            if held:
                spans.append(Span(slice(row, row + held), slice(first, response)))
            row, first, held = row + held, response, 0
        held += length
    return spans
