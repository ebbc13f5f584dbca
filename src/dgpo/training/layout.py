"""Which rows of an optimiser step the policy computes together: pure arithmetic on lengths.

The normaliser is the step's, so which rows share a forward pass does not matter to the gradient. It matters to the
cost: rows of one pass are padded to the longest of them. So the rows of a step are sorted by length and cut into parts
of about equal cost, which makes the largest part, and with it the peak of memory, as small as possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["padded", "packed", "shared"]
"""How the rows of a part go through the model: padded to the longest, one after the other without padding, or that
with each distinct prompt once."""

PER_SEQUENCE = 2
"""Positions that take as long as what packing costs per sequence: cutting queries, keys and values, and one more call
of attention. `benchmarks/packing.py` measures it."""

PER_PASS = 100
"""Likewise, per forward and backward pass, times the share of the model's parameters that its embedding has: gradients
of embedding and head are made and added up in every pass. With 2 layers and 49,152 tokens (0.8) it is about 140."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rows of a step.

    Attributes:
        prompt: of each row, padding that cannot be cut included.
        completion: likewise, up to the last token.
        group: a number for each distinct prompt.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    group: Sequence[int]

    def real(self, rows: Sequence[int], kind: Kind) -> int:
        """Tokens of these rows that have to be computed: no padding, and for "shared" each prompt once."""
        return self.computed(rows, "shared" if kind == "shared" else "packed")

    def computed(self, rows: Sequence[int], kind: Kind) -> int:
        """Positions that one forward pass over these rows computes."""
        if not rows:
            return 0
        prompts, completions = [self.prompt[row] for row in rows], [self.completion[row] for row in rows]
        if kind == "padded":
            return len(rows) * (max(prompts) + max(completions))
        if kind == "shared":
            prompts = list({self.group[row]: self.prompt[row] for row in rows}.values())
        return sum(prompts) + sum(completions)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts of a step, and the micro-step that computes each.

    Attributes:
        parts: row indices of each forward pass, in the order of computation. A part may be empty: other ranks have
            more rows, and all must call the model equally often.
        steps: micro-steps of the update. With fewer parts than micro-steps the first ones compute nothing, so that the
            last, in which gradients are reduced, always computes something.
        kind: how the rows of every part go through the model.
    """

    parts: tuple[tuple[int, ...], ...]
    steps: int
    kind: Kind = "padded"

    def cost(self, lengths: Lengths, embedding: float) -> float:
        """Positions that all parts compute, and what passes and packed sequences cost besides, as positions.

        Args:
            lengths: of all rows of the step.
            embedding: share of the model's parameters that its embedding has.
        """
        positions = PER_PASS * embedding * len(self.parts) + sum(
            lengths.computed(part, self.kind) for part in self.parts
        )
        if self.kind == "padded":
            return positions
        sequences = sum(len(part) for part in self.parts)
        if self.kind == "shared":
            sequences += sum(len({lengths.group[row] for row in part}) for part in self.parts)
        return positions + PER_SEQUENCE * sequences

    def of_step(self, step: int) -> range:
        """Indices of the parts of micro-step `step`, counted from 0 within the update."""
        count = len(self.parts)
        if count < self.steps:
            first = step - (self.steps - count)
            return range(max(first, 0), first + 1)
        return range(step * count // self.steps, (step + 1) * count // self.steps)


def layout(
    lengths: Lengths,
    rows: Sequence[int],
    *,
    steps: int,
    limit: int,
    kind: Kind = "padded",
    embedding: float = 0.0,
) -> Layout:
    """Sort `rows` by length and cut them into parts of about equal cost, the longest first.

    There are at most as many parts as micro-steps, or more if one would exceed the limit: as many as cost least. More
    parts have less padding, fewer compute shared prompts less often. Rows of one prompt stand together if prompts are
    shared.

    Args:
        lengths: of all rows of the step.
        rows: those that the policy has to see.
        steps: micro-steps of the update.
        limit: positions that a part may compute; a single row may exceed it.
        kind: how rows go through the model.
        embedding: share of the model's parameters that its embedding has.
    """
    found = [
        Layout(parts=tuple(map(tuple, parts)), steps=steps, kind=kind)
        for order in _orders(lengths, rows, kind)
        for parts in _cuts(lengths, order, steps, limit, kind)
    ]
    return min(found, key=lambda one: one.cost(lengths, embedding))


def with_parts(made: Layout, lengths: Lengths, count: int, limit: int) -> Layout:
    """`made` with `count` parts, because another rank has so many; the last ones may be empty."""
    if count == len(made.parts):
        return made
    order = [row for part in made.parts for row in part]
    found = _balanced(lengths, order, count, limit, made.kind)
    parts = [tuple(part) for part in found]
    return Layout(parts=(*parts, *[()] * (count - len(parts))), steps=made.steps, kind=made.kind)


def unsorted(micro_batches: Sequence[Sequence[int]]) -> Layout:
    """The rows of each micro-batch in a part of its own, as they are."""
    return Layout(parts=tuple(tuple(rows) for rows in micro_batches), steps=len(micro_batches))


def _orders(lengths: Lengths, rows: Sequence[int], kind: Kind) -> list[list[int]]:
    def total(row: int) -> int:
        return lengths.prompt[row] + lengths.completion[row]

    if kind == "shared":
        longest: dict[int, int] = {}
        for row in rows:
            longest[lengths.group[row]] = max(longest.get(lengths.group[row], 0), total(row))
        key = lambda row: (-longest[lengths.group[row]], lengths.group[row], -lengths.completion[row])  # noqa: E731
        return [sorted(rows, key=key)]
    by_total = sorted(rows, key=lambda row: (-total(row), -lengths.completion[row]))
    if kind == "packed":
        return [by_total]
    if len({lengths.prompt[row] for row in rows}) < 2:
        return [by_total]
    # prompts and completions are padded apart: which order is the better one depends on which of them varies more
    return [by_total, sorted(rows, key=lambda row: (-lengths.completion[row], -lengths.prompt[row]))]


def _cuts(lengths: Lengths, order: Sequence[int], steps: int, limit: int, kind: Kind) -> Iterator[list[list[int]]]:
    """Into as many parts as micro-steps, half as many, and so on, as long as they keep the limit."""
    if not order:
        yield [[]]
        return
    fewest = _greedy(lengths, order, limit, kind)
    count = max(len(fewest), steps)
    while count > len(fewest):
        yield _balanced(lengths, order, count, limit, kind)
        count = max(count // 2, len(fewest))
    # one part cannot be balanced
    yield _balanced(lengths, order, count, limit, kind) if len(fewest) > 1 else fewest


def _balanced(lengths: Lengths, order: Sequence[int], count: int, limit: int, kind: Kind) -> list[list[int]]:
    """At most `count` consecutive parts whose largest is as small as possible, to a hundredth."""
    low = max((lengths.computed([row], kind) for row in order), default=0)
    if low > limit:  # one row exceeds the limit anyway; the others are not to follow it
        return _greedy(lengths, order, limit, kind)
    high = max(lengths.computed(order, kind), low)
    while high - low > high // 100:
        middle = (low + high) // 2
        if len(_greedy(lengths, order, middle, kind)) <= count:
            high = middle
        else:
            low = middle + 1
    return _greedy(lengths, order, high, kind)


def _greedy(lengths: Lengths, order: Sequence[int], limit: int, kind: Kind) -> list[list[int]]:
    """Consecutive parts, each as large as the limit allows."""
    parts: list[list[int]] = []
    part = _Part(lengths, kind)
    for row in order:
        if not parts or part.with_row(row) > limit:
            parts.append([])
            part = _Part(lengths, kind)
        parts[-1].append(row)
        part.add(row)
    return parts


class _Part:
    """Counts the positions of a part while rows are added to it."""

    def __init__(self, lengths: Lengths, kind: Kind) -> None:
        self._lengths, self._kind = lengths, kind
        self._rows = self._prompt = self._completion = 0
        self._groups: set[int] = set()
        self.tokens = 0

    def with_row(self, row: int) -> int:
        """`tokens`, if this row were added."""
        prompt, completion = self._lengths.prompt[row], self._lengths.completion[row]
        if self._kind == "padded":
            return (self._rows + 1) * (max(self._prompt, prompt) + max(self._completion, completion))
        if self._kind == "shared" and self._lengths.group[row] in self._groups:
            return self.tokens + completion
        return self.tokens + prompt + completion

    def add(self, row: int) -> None:
        self.tokens = self.with_row(row)
        self._rows += 1
        self._prompt = max(self._prompt, self._lengths.prompt[row])
        self._completion = max(self._completion, self._lengths.completion[row])
        self._groups.add(self._lengths.group[row])
