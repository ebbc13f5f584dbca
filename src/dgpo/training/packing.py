"""The rows of a micro-batch as one sequence without padding, in which rows that share a prompt share its computation.

The linear layers of a transformer treat every token alike, so a micro-batch may reach them as one row of its real
tokens, [1, N]: prompt, response, prompt, response, ..., or [prompt, response, response, ...] where a prompt is shared.
Positions start again with every sequence. Only attention needs to know which tokens belong together. It learns it from
the attention mask: transformers hands a mask of four dimensions unchanged to `scaled_dot_product_attention`, and a
`PackedMask` there calls that function once per sequence, on the part that belongs to it. So no mask of N x N is ever
made, no model is patched, and gradient checkpointing keeps the mask as it keeps any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils.generic import is_flash_attention_requested

from dgpo.training.micro_batches import Padding

_QUERIES = 512
"""Queries that a mask covers at a time: bounds its memory, and skips keys that none of them sees."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Which parts of N tokens belong together.

    Attributes:
        groups: of each prompt, in order: its tokens, and those of each of its responses, which follow it.
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]

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


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where each token of a micro-batch is in the packed row, and back.

    Attributes:
        sequences: which tokens belong together.
        source: [N] of every packed token its index in [prompts, completions], flattened.
        positions: [1, N] of every packed token in its own sequence.
        predicts: [b, T] the packed token from which the token of this column is predicted; any where there is none.
    """

    sequences: Sequences
    source: Tensor
    positions: Tensor
    predicts: Tensor

    @classmethod
    def of(
        cls,
        inputs: Mapping[str, Any],
        *,
        prompts: Sequence[int] | None = None,
        lengths: Sequence[tuple[int, int]] | None = None,
    ) -> Self | None:
        """Of a micro-batch; None where a prompt has no token, from which the first one could be predicted.

        Args:
            inputs: with `prompt_mask` [b, P], padded on the left, and `completion_mask` [b, T], on the right.
            prompts: [b] a number per prompt: rows with the same number have the same prompt, which is then computed
                once. None computes every row's own.
            lengths: [b] tokens of prompt and response, if the host knows them: saves the one synchronisation.
        """
        before, after = inputs["prompt_mask"], inputs["completion_mask"]
        if lengths is None:
            lengths = list(map(tuple, torch.stack([before.sum(1), after.sum(1)], 1).tolist()))
        if min(prompt for prompt, _ in lengths) == 0:
            return None
        rows: dict[int, list[int]] = {}
        for row in range(len(lengths)):
            rows.setdefault(row if prompts is None else prompts[row], []).append(row)
        start, width = before.shape[1], before.shape[1] + after.shape[1]
        source, positions, predicts = [], [], torch.empty(len(lengths), after.shape[1], dtype=torch.long)
        columns, place = torch.arange(after.shape[1]), 0
        for members in rows.values():
            prompt = lengths[members[0]][0]
            source.append(torch.arange(start - prompt, start) + members[0] * width)
            positions.append(torch.arange(prompt))
            last, place = place + prompt - 1, place + prompt
            for row in members:
                response = lengths[row][1]
                source.append(torch.arange(start, start + response) + row * width)
                positions.append(torch.arange(prompt, prompt + response))
                predicts[row] = (columns + (place - 1)).clamp(max=place + max(response - 1, 0) - 1)
                predicts[row, :1] = last
                place += response
        device = before.device
        return cls(
            sequences=Sequences(
                groups=tuple((lengths[one[0]][0], tuple(lengths[row][1] for row in one)) for one in rows.values())
            ),
            source=torch.cat(source).to(device),
            positions=torch.cat(positions).unsqueeze(0).to(device),
            predicts=predicts.to(device),
        )

    def ids(self, inputs: Mapping[str, Any]) -> Tensor:
        """[1, N] token ids of a micro-batch."""
        whole = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        return whole.flatten()[self.source].unsqueeze(0)

    def arguments(self, config: Any) -> dict[str, Any]:
        """What tells a model with this `config` which tokens belong together."""
        return {"position_ids": self.positions, "attention_mask": self._mask(config.get_text_config())}

    def aligned(self, hidden: Tensor) -> Tensor:
        """[b, T, H] of [1, N, H]: in column i the state from which its token is predicted."""
        # the backward of an embedding adds whole rows, faster than that of an index
        return nn.functional.embedding(self.predicts, hidden[0])

    def _mask(self, config: Any) -> Any:
        if is_flash_attention_requested(config):
            # its kernels find the sequences by their positions, where there is no mask
            if self.sequences.shared:
                raise ValueError(f"attn_implementation = {config._attn_implementation!r} cannot share prompts")
            return None
        window = getattr(config, "sliding_window", None)
        if window is None or window >= self.sequences.longest:
            return PackedMask.of(self, None)
        # as transformers' create_masks_for_generate has it: by type of layer where a model has several, or for all
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return PackedMask.of(self, window)
        return {kind: PackedMask.of(self, window if kind == "sliding_attention" else None) for kind in set(kinds)}


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
    def of(cls, packing: Packing, window: int | None) -> PackedMask:
        """For a packing; `window` is that of the layers that get it."""
        count = packing.sequences.tokens
        one = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.source.device)
        mask = one.expand(1, 1, count, count).as_subclass(cls)
        mask.sequences, mask.window, mask.calls, mask._bands = packing.sequences, window, 0, {}
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
        return whole[None, None, :queries, left - before : left - before + keys]


_UNCHANGED = {Tensor.detach, Tensor.to, Tensor.__getitem__}


class ObservedPacking(Packing):
    """A packing that knows whether attention has asked for its sequences."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """As `Packing.arguments`."""
        found = super().arguments(config)
        mask = found["attention_mask"]
        self._given.extend(mask.values() if isinstance(mask, dict) else [mask])
        return found

    @cached_property
    def _given(self) -> list[PackedMask | None]:
        return []

    def unseen(self, layers: int) -> bool:
        """Whether fewer than `layers` have attended to a mask of this packing; False where it gave none."""
        masks = [mask for mask in self._given if mask is not None]
        return bool(masks) and sum(mask.calls for mask in masks) < layers


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: PackedMask, dropout_p: float = 0.0, **kwargs: Any
) -> Tensor:
    """`scaled_dot_product_attention` [1, heads, N, d], sequence by sequence."""
    attn_mask.calls += 1
    kwargs = {"dropout_p": dropout_p, **kwargs, "is_causal": False}
    sequences = attn_mask.sequences
    if sequences.tokens == 1:  # transformers puts the heads of a single query where its tokens would be
        return scaled_dot_product_attention(query, key, value, **kwargs)
    sizes = []
    for prompt, responses in sequences.groups:
        sizes += [prompt + responses[0]] if len(responses) == 1 else [prompt, *responses]
    parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    found: list[Tensor] = []
    for _, responses in sequences.groups:
        first = next(parts)
        found += _causal(attn_mask, *first, **kwargs)
        if len(responses) > 1:
            for response in responses:
                mine, *own = next(parts)
                if response:
                    keys, values = (torch.cat(pair, dim=2) for pair in zip(first[1:], own, strict=True))
                    found += _causal(attn_mask, mine, keys, values, **kwargs)
    # in the order in which transformers returns it, so that its copy finds nothing to do
    return torch.cat([one.transpose(1, 2) for one in found], dim=1).transpose(1, 2)


def _causal(mask: PackedMask, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> list[Tensor]:
    """Of queries that are the last of their sequence's keys, each of which sees those up to itself."""
    before, count = key.shape[2] - query.shape[2], query.shape[2]
    if before == 0 and (mask.window is None or count <= mask.window):
        return [scaled_dot_product_attention(query, key, value, **{**kwargs, "is_causal": True})]
    found = []
    for start in range(0, count, _QUERIES):
        end = min(start + _QUERIES, count)
        low = 0 if mask.window is None else max(before + start - mask.window + 1, 0)
        high = before + end
        seen = mask.band(query, end - start, before + start - low, high - low)
        part = (query[:, :, start:end], key[:, :, low:high], value[:, :, low:high])
        found.append(scaled_dot_product_attention(*part, attn_mask=seen, **kwargs))
    return found


def shared_prompts(inputs: Mapping[str, Any]) -> list[int]:
    """[b] a number per prompt of a micro-batch, the same for the same tokens; one synchronisation."""
    ids = inputs["prompt_ids"].masked_fill(inputs["prompt_mask"] == 0, -1)
    numbers: list[int] = torch.unique(ids, dim=0, return_inverse=True)[1].tolist()
    return numbers


def why_not_packed(model: Any) -> str | None:
    """What keeps the sequences of a causal language model from being packed exactly; None where nothing is known to.

    Whether it is exact is then measured (`head_comparison.py`).
    """
    padding = Padding.of(model.config, None)
    if not (padding.left and padding.right):
        return "its positions, recurrent layers or chunks depend on where a sequence is in the batch"
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" and not is_flash_attention_requested(config):
        return f"attn_implementation = {config._attn_implementation!r} cannot take packed sequences"
    return None


def why_not_shared(model: Any) -> str | None:
    """What keeps responses of a model that can be packed from sharing a prompt; None where nothing is known to."""
    implementation = model.config.get_text_config()._attn_implementation
    if implementation != "sdpa":
        return f"the kernels of attn_implementation = {implementation!r} have no sequences with a common beginning"
    return None
