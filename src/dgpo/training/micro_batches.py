"""What of a micro-batch the policy must see: rows that give a gradient, and columns that hold a token of theirs.

TRL pads every micro-batch to the longest response of the whole generation, and runs the policy on responses whose
advantage is 0 as well. Neither changes the gradient of the policy term, both cost a forward and a backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import StepTotals

MULTIMODAL_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""What TRL's forward takes beside token ids and their mask; rows and columns of these are not ours to cut."""

_LAYER_KINDS = ("layer_types", "block_types", "layers_block_type")
_ATTENTION = {"full_attention", "sliding_attention", "attention"}
_LENGTH_DEPENDENT_ROTATION = ("dynamic", "longrope")


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """[B, T] completion tokens of the policy: tool results, which it did not write, are left out."""
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def correct_mask(inputs: Mapping[str, Any]) -> Tensor:
    """[B, T] bool: the tokens of `loss_mask` in responses with a positive reward."""
    return loss_mask(inputs).bool() & inputs["correct"].unsqueeze(1)


def totals_of(masks: Sequence[Tensor], accelerator: Any) -> StepTotals:
    """Tokens and sequences of masks [B, T] on all ranks, per rank on average: ranks average their gradients."""
    of_each = torch.stack([torch.stack([mask.sum(), mask.any(-1).sum()]) for mask in masks])
    # at least 1: a step in which everything is masked has loss 0, not 0 / 0
    counts = accelerator.reduce(of_each.sum(0), reduction="sum").clamp(min=1) / accelerator.num_processes
    return StepTotals(tokens=counts[0], sequences=counts[1])


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Which padding may go without changing a log-prob beyond rounding.

    Attributes:
        left: that of prompts. Positions are counted from the first column, padding included, so only rotary
            embeddings, which see differences of positions, do not notice.
        right: that of completions. A causal model does not see what follows, unless its rotation depends on the
            length of the batch (`dynamic`, `longrope`).
        multiple: columns of either part stay a multiple of this, as TRL's `pad_to_multiple_of` asks for.
    """

    left: bool
    right: bool
    multiple: int = 1

    @classmethod
    def of(cls, config: Any, multiple: int | None) -> Padding:
        """For a model with this `config` of transformers."""
        text = config.get_text_config()
        rotation = getattr(text, "rope_parameters", None) or {}
        # models that rotate by layer type (Gemma 3) nest one dictionary per type
        by_layer = rotation.values() if all(isinstance(value, dict) for value in rotation.values()) else [rotation]
        fixed = all(one.get("rope_type", "default") not in _LENGTH_DEPENDENT_ROTATION for one in by_layer)
        chunked = getattr(text, "attention_chunk_size", None) is not None  # chunks are counted from the first column
        kinds = {str(kind) for name in _LAYER_KINDS for kind in getattr(text, name, None) or ()}
        chunked = chunked or not kinds <= _ATTENTION  # recurrent layers may run over padding
        return cls(left=bool(rotation) and fixed and not chunked, right=fixed, multiple=multiple or 1)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The part of a micro-batch that goes through the policy.

    Attributes:
        inputs: TRL's dictionary, with fewer rows and columns.
        rows: [b] indices of the rows that are left; None if that is all of them.
        shape: (B, T) of the completions before.
    """

    inputs: dict[str, Any]
    rows: Tensor | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, inputs: dict[str, Any], padding: Padding, *, drop: bool) -> MicroBatch:
        """The rows and columns of `inputs` that matter; costs one or two host synchronisations.

        Rows without a valid token, and with `drop` those whose advantages are all 0, are left out. One is kept where
        none would remain, because ranks must run the same collectives; its tokens are masked.
        """
        shape = tuple(inputs["completion_ids"].shape)
        # rows and columns of image tensors do not correspond to responses
        if any(key in inputs for key in MULTIMODAL_KEYS):
            return cls(inputs=inputs, rows=None, shape=shape)
        rows = _informative(inputs) if drop else None
        if rows is not None:
            idle = len(rows) == 0
            rows = rows.new_zeros(1) if idle else rows
            inputs = {key: _rows(value, rows, shape[0]) for key, value in inputs.items()}
            if idle:  # or the metrics would count a response more on every rank that has nothing to learn
                inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
        return cls(inputs=_trimmed(inputs, padding), rows=rows, shape=shape)

    @property
    def dropped(self) -> float:
        """Share of the rows that were left out."""
        return 0.0 if self.rows is None else 1 - len(self.rows) / self.shape[0]

    def restore(self, values: Tensor) -> Tensor:
        """[B, T] from [b, t]; 0 in rows and columns that were left out."""
        if tuple(values.shape) == self.shape:
            return values
        whole = values.new_zeros(self.shape)
        rows = slice(None) if self.rows is None else self.rows
        whole[rows, : values.shape[1]] = values
        return whole


def _informative(inputs: Mapping[str, Any]) -> Tensor | None:
    advantage = inputs["advantages"]
    # [B]; with an advantage per token one that is not 0 suffices
    has_gradient = (advantage if advantage.dim() == 1 else advantage.abs().amax(-1)) != 0
    rows = (has_gradient & loss_mask(inputs).bool().any(-1)).nonzero().squeeze(1)
    return None if len(rows) == len(advantage) else rows


def _rows(value: Any, rows: Tensor, count: int) -> Any:
    # counts for the whole batch (0-d) and other values have no rows
    return value[rows] if isinstance(value, Tensor) and value.dim() > 0 and len(value) == count else value


def _trimmed(inputs: dict[str, Any], padding: Padding) -> dict[str, Any]:
    prompts, completions = inputs["prompt_mask"], inputs["completion_mask"]
    before, width = prompts.shape[1], completions.shape[1]
    # prompts are padded on the left: reversed, their padding comes last too
    longest = [_longest(prompts.flip(1)), _longest(completions)]
    # one transfer for both numbers
    prompt, completion = torch.stack(longest).tolist()
    # at least one column each: the first completion token is predicted from the last prompt column
    start = before - min(_up(max(prompt, 1), padding.multiple), before) if padding.left else 0
    end = min(_up(max(completion, 1), padding.multiple), width) if padding.right else width
    if (start, end) == (0, width):
        return inputs
    return {key: _columns(key, value, start, end, width) for key, value in inputs.items()}


def _longest(mask: Tensor) -> Tensor:
    """Columns up to the last one that holds a token."""
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool().any(0) * place).amax() if mask.numel() else place.new_zeros(())


def _columns(key: str, value: Any, start: int, end: int, width: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() != 2:
        return value
    if key.startswith("prompt_"):
        return value[:, start:]
    # a factor per response, [B, 1], has no columns to cut
    return value[:, :end] if value.shape[1] == width else value


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
