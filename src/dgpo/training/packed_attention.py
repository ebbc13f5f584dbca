"""Attention over several sequences in one row of N tokens, without a mask of N x N.

transformers hands an attention mask of four dimensions unchanged to `scaled_dot_product_attention`, and a `PackedMask`
in its place calls that function once for every sequence, or run of sequences of the same length, on the part of query,
key and value that belongs to it. No model is patched for it, and gradient checkpointing keeps it like any other mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_QUERIES = 512
"""Queries that a mask covers at a time: bounds its memory, and skips keys that none of them sees."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Sequences that attention computes together.

    Attributes:
        rows: sequences of the same length, one after another: prompts with their only response, or one shared prompt.
        length: tokens of each.
        responses: those that share the prompt, likewise in runs: how many, and the tokens of each.
    """

    rows: int
    length: int
    responses: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Which parts of N tokens belong together.

    Attributes:
        groups: of each prompt, in order: its tokens, and those of each of its responses, which follow it.
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, int]], prompts: Sequence[int] | None) -> Sequences:
        """Of rows with these tokens of prompt and response; rows with the same number in `prompts` share theirs."""
        rows = rows_by_prompt(len(lengths), prompts)
        return cls(groups=tuple((lengths[one[0]][0], tuple(lengths[row][1] for row in one)) for one in rows))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The sequences in order; neighbours of the same length, which are computed in one call, as one run."""
        found: list[Run] = []
        for prompt, responses in self.groups:
            if len(responses) > 1:
                equal = [(len(list(same)), length) for length, same in groupby(responses) if length]
                found.append(Run(rows=1, length=prompt, responses=tuple(equal)))
                continue
            length = prompt + responses[0]
            if found and found[-1].length == length and not found[-1].responses:
                found[-1] = Run(rows=found[-1].rows + 1, length=length)
            else:
                found.append(Run(rows=1, length=length))
        return tuple(found)

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of the parts that attention computes together."""
        found = []
        for run in self.runs:
            found += [run.rows * run.length, *(count * length for count, length in run.responses)]
        return found

    @property
    def tokens(self) -> int:
        """N."""
        return sum(prompt + sum(responses) for prompt, responses in self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with a response."""
        return max(prompt + max(responses) for prompt, responses in self.groups)

    @property
    def shared(self) -> bool:
        """Whether some prompt has several responses."""
        return any(len(responses) > 1 for _, responses in self.groups)


def rows_by_prompt(count: int, prompts: Sequence[int] | None) -> list[list[int]]:
    """The rows 0 ... count - 1 in the order of their sequences: each by itself, or with those of its number."""
    found: dict[int, list[int]] = {}
    for row in range(count):
        found.setdefault(row if prompts is None else prompts[row], []).append(row)
    return list(found.values())


class PackedMask(Tensor):
    """In the place of an attention mask [1, 1, N, N]: the sequences that N tokens consist of, without its memory.

    Attributes:
        sequences: which tokens belong together.
        window: keys that a query sees, itself included; None for all before it.
        calls: of `scaled_dot_product_attention`, so far.

    Raises:
        RuntimeError: when a model does anything else with it than to pass it on.
    """

    sequences: Sequences
    window: int | None
    calls: int
    _bands: dict[torch.dtype, tuple[Tensor, int]]

    @classmethod
    def of(cls, sequences: Sequences, window: int | None, device: torch.device) -> PackedMask:
        """For these sequences; `window` is that of the layers that get it."""
        count = sequences.tokens
        one = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        mask = one.expand(1, 1, count, count).as_subclass(cls)
        mask.sequences, mask.window, mask.calls, mask._bands = sequences, window, 0, {}
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        found = super().__torch_function__(func, types, args, kwargs or {})
        if not isinstance(found, Tensor):
            return found
        if func in _UNCHANGED and found.shape == args[0].shape:
            return args[0]
        # not a TypeError, which Python would take for an operator of the other operand
        raise RuntimeError(f"packed sequences have no attention mask to {getattr(func, '__name__', func)}")

    def band(self, like: Tensor, queries: int, before: int, keys: int) -> Tensor:
        """[1, 1, queries, keys] 0 and -inf: what `queries` see of the `keys` that end with them.

        Args:
            like: whose dtype and device it has.
            queries: at most `_QUERIES`.
            before: keys before the first query.
            keys: `before` + `queries`.
        """
        # what a query sees depends on the distance alone, so one matrix has all of these as its parts
        if like.dtype not in self._bands:
            height = min(_QUERIES, self.sequences.longest)
            left = self.sequences.longest
            distance = (
                torch.arange(-left, height, device=like.device) - torch.arange(height, device=like.device)[:, None]
            )
            hidden = distance > 0
            if self.window is not None:
                hidden |= distance <= -self.window
            whole = like.new_zeros(height, left + height).masked_fill_(hidden, float("-inf"))
            self._bands[like.dtype] = whole, left
        whole, left = self._bands[like.dtype]
        part = whole[None, None, :queries, left - before : left - before + keys]
        # a view takes no memory; kernels of GPUs want rows that are aligned, and pad only what is contiguous
        return part if part.device.type == "cpu" else part.contiguous()


_UNCHANGED = {Tensor.detach, Tensor.to, Tensor.__getitem__}


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: PackedMask, dropout_p: float = 0.0, **kwargs: Any
) -> Tensor:
    """`scaled_dot_product_attention` [1, heads, N, d], sequence by sequence."""
    attn_mask.calls += 1
    kwargs = {"dropout_p": dropout_p, **kwargs, "is_causal": False}
    sequences = attn_mask.sequences
    if sequences.tokens == 1:  # transformers puts the heads of a single query where its tokens would be
        return scaled_dot_product_attention(query, key, value, **kwargs)
    parts = zip(*(x.split(sequences.sizes, dim=2) for x in (query, key, value)), strict=True)
    found: list[Tensor] = []
    for run in sequences.runs:
        first = [_apart(one, run.rows) for one in next(parts)]
        found += _causal(attn_mask, *first, **kwargs)
        for count, _ in run.responses:
            mine, *own = (_apart(one, count) for one in next(parts))
            pairs = zip(first[1:], own, strict=True)
            keys, values = (torch.cat([one.expand(count, -1, -1, -1), other], dim=2) for one, other in pairs)
            found += _causal(attn_mask, mine, keys, values, **kwargs)
    # in the order in which transformers returns it, so that its copy finds nothing to do
    return torch.cat(found, dim=1).transpose(1, 2)


def _apart(packed: Tensor, count: int) -> Tensor:
    """[count, heads, L, d] of [1, heads, count · L, d]: sequences of the same length."""
    return packed if count == 1 else packed[0].unflatten(1, (count, -1)).transpose(0, 1)


def _causal(mask: PackedMask, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> list[Tensor]:
    """Of queries [count, heads, L, d] that are the last of their keys, each of which sees those up to itself.

    Returns [1, count · L, heads, d], in parts if there is one sequence.
    """
    before, length = key.shape[2] - query.shape[2], query.shape[2]
    if before == 0 and (mask.window is None or length <= mask.window):
        parts = [scaled_dot_product_attention(query, key, value, **{**kwargs, "is_causal": True})]
    else:
        parts = []
        for start in range(0, length, _QUERIES):
            end = min(start + _QUERIES, length)
            low = 0 if mask.window is None else max(before + start - mask.window + 1, 0)
            high = before + end
            seen = mask.band(query, end - start, before + start - low, high - low)
            part = (query[:, :, start:end], key[:, :, low:high], value[:, :, low:high])
            parts.append(scaled_dot_product_attention(*part, attn_mask=seen, **kwargs))
    if len(query) > 1 and len(parts) > 1:
        parts = [torch.cat(parts, dim=2)]
    return [part.transpose(1, 2).flatten(0, 1).unsqueeze(0) for part in parts]
