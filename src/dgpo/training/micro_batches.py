"""TRL's dictionaries of tensors: masks, totals of a step, and the rows and columns that can be cut from them."""

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


def rows_of(inputs: Mapping[str, Any], rows: Tensor | slice) -> dict[str, Any]:
    """These rows of everything that has a row per response; counts for the whole batch and other values stay."""
    count = len(inputs["completion_ids"])
    return {
        key: value[rows] if isinstance(value, Tensor) and value.dim() > 0 and len(value) == count else value
        for key, value in inputs.items()
    }


def joined(micro_batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of several micro-batches of one generation, which have the same columns."""
    first = micro_batches[0]
    count = len(first["completion_ids"])
    return {
        key: torch.cat([inputs[key] for inputs in micro_batches])
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
        else value
        for key, value in first.items()
    }


def trimmed(inputs: dict[str, Any], padding: Padding, *, prompt: int, completion: int) -> dict[str, Any]:
    """Without the columns of padding before the last `prompt` ones of prompts and after `completion` of completions."""
    before, width = inputs["prompt_mask"].shape[1], inputs["completion_mask"].shape[1]
    # at least one column each: the first completion token is predicted from the last prompt column
    start = before - min(_up(max(prompt, 1), padding.multiple), before) if padding.left else 0
    end = min(_up(max(completion, 1), padding.multiple), width) if padding.right else width
    if (start, end) == (0, width):
        return inputs
    return {key: _columns(key, value, start, end, width) for key, value in inputs.items()}


def last_token(mask: Tensor) -> Tensor:
    """[B] columns up to the last one that holds a token, of a mask [B, T]."""
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * place).amax(-1) if mask.shape[1] else place.new_zeros(len(mask))


def _columns(key: str, value: Any, start: int, end: int, width: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() != 2:
        return value
    if key.startswith("prompt_"):
        return value[:, start:]
    # a factor per response, [B, 1], has no columns to cut
    return value[:, :end] if value.shape[1] == width else value


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
