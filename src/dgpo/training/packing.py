"""The rows of a micro-batch as one sequence without padding, in which rows that share a prompt share its computation.

The linear layers of a transformer treat every token alike, so a micro-batch may reach them as one row of its real
tokens, [1, N]: prompt, response, prompt, response, ..., or [prompt, response, response, ...] where a prompt is shared.
Positions start again with every sequence. Only attention needs to know which tokens belong together; it learns it from
the attention mask (`packed_attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested

from dgpo.training.micro_batches import Padding
from dgpo.training.packed_attention import PackedMask, Sequences, rows_by_prompt


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
        rows = rows_by_prompt(len(lengths), prompts)
        start, width = before.shape[1], before.shape[1] + after.shape[1]
        # of each row: the packed tokens from which its first token is predicted, and at which its response begins
        last, first = np.empty(len(lengths), dtype=np.int64), np.empty(len(lengths), dtype=np.int64)
        source, positions, place = [], [], 0
        for members in rows:
            prompt = lengths[members[0]][0]
            source.append(np.arange(start - prompt, start) + members[0] * width)
            positions.append(np.arange(prompt))
            place += prompt
            last[members] = place - 1
            for row in members:
                response = lengths[row][1]
                source.append(np.arange(start, start + response) + row * width)
                positions.append(np.arange(prompt, prompt + response))
                first[row] = place
                place += response
        end = first + np.array([max(response - 1, 0) for _, response in lengths]) - 1
        predicts = np.minimum(first[:, None] - 1 + np.arange(after.shape[1]), end[:, None])
        predicts[:, :1] = last[:, None]
        device = before.device
        return cls(
            sequences=Sequences.of(lengths, prompts),
            source=torch.from_numpy(np.concatenate(source)).to(device),
            positions=torch.from_numpy(np.concatenate(positions)).unsqueeze(0).to(device),
            predicts=torch.from_numpy(predicts).to(device),
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
            return self._attending(None)
        # as transformers' create_masks_for_generate has it: by type of layer where a model has several, or for all
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return self._attending(window)
        return {kind: self._attending(window if kind == "sliding_attention" else None) for kind in set(kinds)}

    def _attending(self, window: int | None) -> PackedMask:
        return PackedMask.of(self.sequences, window, self.source.device)


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
