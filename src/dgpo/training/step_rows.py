"""The rows of an optimiser step: which of them the policy sees, in which order, and in which forward passes.

TRL cuts a generation into micro-batches at random, pads each to the longest response of the whole generation, and runs
the policy on responses whose advantage is 0 as well. Neither padding nor such rows change the gradient of the policy
term; both cost a forward and a backward pass. So the rows of a step that give a gradient are sorted by length and cut
anew (`layout.py`), and columns without a token of theirs are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo.training.layout import Kind, Layout, Lengths, layout, unsorted, with_parts
from dgpo.training.micro_batches import (
    MULTIMODAL_KEYS,
    Padding,
    joined,
    last_token,
    loss_mask,
    rows_of,
    trimmed,
)
from dgpo.training.packing import Packing


@dataclass(frozen=True, kw_only=True)
class How:
    """What may be done with the rows of a step.

    Attributes:
        padding: which padding may go.
        drop: leave out rows without a valid token, and those whose advantages are all 0.
        rearrange: sort the rows of a step and cut them anew; otherwise rows stay in the micro-batch that they are in.
        budget: positions, padding included, that one forward pass may compute. None: as many as the longest prompt
            and the longest completion of the step take for a micro-batch of TRL's, which is what the run had to have
            memory for anyway.
        agree: from this rank's number of forward passes to that of all ranks.
        kinds: in which ways rows may go through the model, of which the cheapest is taken (`Layout.cost`); for more
            than "padded", rows must be rearranged.
        embedding: share of the model's parameters that its embedding has.
    """

    padding: Padding
    drop: bool
    rearrange: bool
    budget: int | None = None
    agree: Callable[[int], int] = lambda count: count
    kinds: Sequence[Kind] = ("padded",)
    embedding: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that go through the policy in one forward pass.

    Attributes:
        inputs: TRL's dictionary with these rows, and with the columns that they need.
        index: of the part in its step.
        rows: [b] their indices in the step; of an idle part one row, whose tokens are masked, because ranks must call
            the model equally often.
        idle: whether this rank has no rows left for it.
        computed: positions of the forward pass.
        real: those of them that hold a token.
        packing: of `inputs`, where they go through the model without padding.
        valid: tokens of the policy in `inputs`; None where their masks may have been changed.
    """

    inputs: dict[str, Any]
    index: int
    rows: Tensor
    idle: bool
    computed: int
    real: int
    packing: Packing | None = None
    valid: int | None = None


class StepRows:
    """All rows of one optimiser step on this rank.

    One transfer to the host, of the lengths of all rows, decides about all micro-steps.

    Args:
        micro_batches: TRL's dictionaries of the step, in the order in which TRL would compute them.
        how: what may be done with their rows.

    Attributes:
        layout: which rows are computed together.
        dropped: share of the rows that are left out.
    """

    def __init__(self, micro_batches: Sequence[dict[str, Any]], how: How) -> None:
        self._micro_batches, self._padding = micro_batches, how.padding
        # rows and columns of image tensors do not correspond to responses
        self._whole_rows = any(key in inputs for inputs in micro_batches for key in MULTIMODAL_KEYS)
        self._sizes = [len(inputs["completion_ids"]) for inputs in micro_batches]
        self._shape = (sum(self._sizes), micro_batches[0]["completion_ids"].shape[1])
        self.lengths, self._valid, has_gradient = _measured(micro_batches, how.padding, groups="shared" in how.kinds)
        everything = list(range(self._shape[0]))
        kept = [row for row in everything if has_gradient[row]] if how.drop and not self._whole_rows else everything
        self.dropped = 1 - len(kept) / len(everything)
        rearrange = how.rearrange and not self._whole_rows
        if rearrange:
            longest = max(self.lengths.prompt) + max(self.lengths.completion)
            limit = max(self._sizes) * longest if how.budget is None else how.budget
            self.layout = self._arranged(kept, limit, how)
        else:
            self.layout = unsorted(self._split(kept))
        self._unchanged = not rearrange and len(kept) == len(everything)
        self._joined: dict[str, Any] | None = None
        # the cheapest row, for passes in which this rank has nothing to compute
        idle = min(everything, key=lambda row: self.lengths.prompt[row] + self.lengths.completion[row])
        self._rows = [list(part) or [idle] for part in self.layout.parts]
        # one transfer to the device for the whole step; parts are views of it
        device = micro_batches[0]["completion_ids"].device
        order = torch.tensor([row for rows in self._rows for row in rows], device=device)
        self._order = order.split([len(rows) for rows in self._rows])
        left = sorted(set(everything) - set(kept))
        self._left = torch.tensor(left, device=device, dtype=torch.long) if left else None
        self._kept_values: dict[int, Tensor] = {}
        self._given: dict[str, Any] | None = None

    def _arranged(self, kept: Sequence[int], limit: int, how: How) -> Layout:
        steps = len(self._micro_batches)
        kinds = how.kinds
        if len({self.lengths.group[row] for row in kept}) == len(kept):
            kinds = [kind for kind in kinds if kind != "shared"] or ["packed"]
        share = how.embedding
        made = [layout(self.lengths, kept, steps=steps, limit=limit, kind=kind, embedding=share) for kind in kinds]
        found = min(made, key=lambda one: one.cost(self.lengths, share))
        return with_parts(found, self.lengths, how.agree(len(found.parts)), limit)

    def inputs(self, step: int) -> dict[str, Any]:
        """TRL's dictionary of a micro-step, counted from 0 within the update: the rows of its parts, one after another.

        Of a micro-step without parts one row, whose tokens are masked.
        """
        self._given = self._micro_batches[step] if self._unchanged else self._selected(step)
        return self._given

    def _selected(self, step: int) -> dict[str, Any]:
        indices = self.layout.of_step(step)
        rows = [self._order[index] for index in indices] or [self._order[0][:1]]
        found = rows_of(self._all(), torch.cat(rows) if len(rows) > 1 else rows[0])
        if not indices or not all(self.layout.parts[index] for index in indices):
            # or the metrics would count a response more on every rank that has nothing to learn
            real = [bool(self.layout.parts[index]) for index in indices for _ in self._rows[index]] or [False]
            keep = torch.tensor(real, device=found["completion_mask"].device).unsqueeze(1)
            found["completion_mask"] = found["completion_mask"] * keep
        return found

    def parts(self, step: int, inputs: dict[str, Any]) -> list[Part]:
        """The forward passes of a micro-step.

        Args:
            step: counted from 0 within the update.
            inputs: what `inputs(step)` gave, or another dictionary with the same rows.
        """
        indices = self.layout.of_step(step)
        found, first = [], 0
        for index in indices:
            rows = self._rows[index]
            idle = not self.layout.parts[index]
            one = inputs if len(indices) == 1 else rows_of(inputs, slice(first, first + len(rows)))
            first += len(rows)
            if not self._whole_rows:
                prompt = max(self.lengths.prompt[row] for row in rows)
                # every token of an idle row is masked
                completion = 1 if idle else max(self.lengths.completion[row] for row in rows)
                one = trimmed(one, self._padding, prompt=prompt, completion=completion)
            real = 0 if idle else self.lengths.real(rows, self.layout.kind)
            packing = self._packing(one, rows, idle=idle)
            if packing is None:
                computed = len(rows) * (one["prompt_ids"].shape[1] + one["completion_ids"].shape[1])
            else:
                computed = packing.sequences.tokens
            part = Part(
                inputs=one,
                index=index,
                rows=self._order[index],
                idle=idle,
                computed=computed,
                real=real,
                packing=packing,
                valid=sum(self._valid[row] for row in rows) * (not idle) if inputs is self._given else None,
            )
            found.append(part)
        return found

    def _packing(self, inputs: Mapping[str, Any], rows: Sequence[int], *, idle: bool) -> Packing | None:
        if self.layout.kind == "padded":
            return None
        lengths = [(self.lengths.prompt[row], 0 if idle else self.lengths.completion[row]) for row in rows]
        prompts = [self.lengths.group[row] for row in rows] if self.layout.kind == "shared" else None
        return Packing.of(inputs, prompts=prompts, lengths=lengths)

    def fits(self, step: int, inputs: Mapping[str, Any]) -> bool:
        """Whether `inputs` has as many rows as the micro-step."""
        count = sum(len(self._rows[index]) for index in self.layout.of_step(step)) or 1
        return len(inputs["completion_ids"]) == count

    def left_out(self, part: Part) -> tuple[Tensor | int, Tensor | int]:
        """Valid tokens, and responses with one, of the rows that were left out: with the first part, 0 with others."""
        if self._left is None or part.index != 0:
            return 0, 0
        mask = loss_mask(rows_of(self._all(), self._left)).bool()
        return mask.sum(), mask.any(-1).sum()

    def keep(self, key: str, part: Part, values: Tensor) -> None:
        """Write values [b, t] of a part to TRL's dictionaries, as soon as all parts of the step have theirs."""
        self._kept_values[part.index] = values
        if len(self._kept_values) == len(self.layout.parts):
            self.write(key, [self._kept_values.pop(index) for index in range(len(self.layout.parts))])

    def write(self, key: str, values: Sequence[Tensor]) -> None:
        """Write values [b, t] of all parts to TRL's dictionaries as [B, T]; 0 in rows and columns left out."""
        whole = values[0].new_zeros(self._shape)
        for rows, part, value in zip(self._order, self.layout.parts, values, strict=True):
            if part:
                whole[rows, : value.shape[1]] = value
        for inputs, value in zip(self._micro_batches, whole.split(self._sizes), strict=True):
            inputs[key] = value

    def _split(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows by the micro-batch that they are in."""
        found, first = [], 0
        for size in self._sizes:
            found.append([row for row in rows if first <= row < first + size])
            first += size
        return found

    def _all(self) -> dict[str, Any]:
        if self._joined is None:
            self._joined = joined(self._micro_batches) if len(self._micro_batches) > 1 else self._micro_batches[0]
        return self._joined


def _measured(
    micro_batches: Sequence[Mapping[str, Any]], padding: Padding, *, groups: bool
) -> tuple[Lengths, list[int], list[bool]]:
    """Lengths of all rows, their valid tokens, and whether they give a gradient, in one transfer to the host."""
    found = []
    for inputs in micro_batches:
        prompt, completion = inputs["prompt_mask"], inputs["completion_mask"]
        advantage = inputs["advantages"]
        # [B]; with an advantage per token one that is not 0 suffices
        has_gradient = (advantage if advantage.dim() == 1 else advantage.abs().amax(-1)) != 0
        # prompts are padded on the left: reversed, their padding comes last too
        before = last_token(prompt.flip(1)) if padding.left else prompt.new_full((len(prompt),), prompt.shape[1])
        after = last_token(completion) if padding.right else prompt.new_full((len(prompt),), completion.shape[1])
        valid = loss_mask(inputs).bool().sum(-1)
        numbers = torch.stack([before, after, valid, has_gradient & (valid > 0)], 1)
        if groups:
            numbers = torch.cat([numbers, inputs["prompt_ids"].masked_fill(prompt == 0, -1)], 1)
        found.append(numbers)
    on_host = torch.cat(found).cpu()
    prompts, completions, valid_tokens, informative = on_host[:, :4].t().tolist()
    group: Sequence[int] = range(len(prompts))
    if groups:
        known: dict[bytes, int] = {}
        group = [known.setdefault(row.numpy().tobytes(), len(known)) for row in on_host[:, 4:].contiguous()]
    lengths = Lengths(prompt=prompts, completion=completions, group=group)
    return lengths, valid_tokens, [bool(one) for one in informative]
