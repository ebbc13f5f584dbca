"""Which rows share a forward pass: every row once, within the budget, with little padding."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.training.layout import Layout, Lengths, _Part, layout, unsorted, with_parts

KINDS = ("padded", "packed", "shared")

ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=24)


def lengths_of(rows, group=4):
    # rows of a group have one prompt
    prompts = [rows[i - i % group][0] for i in range(len(rows))]
    return Lengths(prompt=prompts, completion=[row[1] for row in rows], group=[i // group for i in range(len(rows))])


def log_normal(count, *, mean=64, cap=256, prompt=32, group=8, seed=0):
    numbers = random.Random(seed)
    drawn = [numbers.lognormvariate(0, 0.8) for _ in range(count)]
    scale = mean / (sum(drawn) / count)
    rows = [(prompt, max(1, min(round(scale * one), cap))) for one in drawn]
    return lengths_of(rows, group)


@given(
    rows=ROWS, steps=st.integers(1, 6), kind=st.sampled_from(KINDS), budget=st.integers(1, 200), seed=st.integers(0, 9)
)
def test_every_row_once_and_within_the_budget(rows, steps, kind, budget, seed):
    lengths = lengths_of(rows)
    kept = random.Random(seed).sample(range(len(rows)), k=len(rows) - seed % len(rows))
    made = layout(lengths, kept, steps=steps, limit=budget, kind=kind)
    assert sorted(row for part in made.parts for row in part) == sorted(kept)
    assert all(len(part) == 1 or lengths.computed(part, kind) <= budget for part in made.parts)
    of_steps = [index for step in range(steps) for index in made.of_step(step)]
    assert of_steps == list(range(len(made.parts)))
    assert list(made.of_step(steps - 1)), "the last micro-step reduces the gradients"


@given(rows=ROWS, kind=st.sampled_from(KINDS))
def test_parts_are_counted_row_by_row_as_they_are_at_once(rows, kind):
    lengths = lengths_of(rows)
    part = _Part(lengths, kind)
    for row in range(len(rows)):
        part.add(row)
        assert part.tokens == lengths.computed(range(row + 1), kind)


@given(rows=ROWS, kind=st.sampled_from(KINDS))
def test_computed_is_real_without_padding(rows, kind):
    lengths = lengths_of(rows)
    everything = range(len(rows))
    real, computed = lengths.real(everything, kind), lengths.computed(everything, kind)
    if kind == "padded":
        assert computed == len(rows) * (max(lengths.prompt) + max(lengths.completion))
        assert real == sum(lengths.prompt) + sum(lengths.completion)
    elif kind == "packed":
        assert computed == real == sum(lengths.prompt) + sum(lengths.completion)
    else:
        prompts = dict(zip(lengths.group, lengths.prompt, strict=True))
        assert computed == real == sum(prompts.values()) + sum(lengths.completion)


@pytest.mark.parametrize(("mean", "cap", "per_batch"), [(64, 256, 4), (2_000, 8_192, 4), (2_000, 8_192, 8)])
def test_little_is_padding(mean, cap, per_batch):
    """The recipes' 16 accumulations, over ten draws: at most a tenth, and smaller micro-batches than TRL's."""
    computed = real = 0
    for seed in range(10):
        lengths = log_normal(16 * per_batch, mean=mean, cap=cap, seed=seed)
        rows = range(16 * per_batch)
        limit = per_batch * (32 + max(lengths.completion))
        made = layout(lengths, rows, steps=16, limit=limit)
        assert len(made.parts) == 16
        computed += sum(lengths.computed(part, "padded") for part in made.parts)
        real += lengths.real(rows, "padded")
        assert max(lengths.computed(part, "padded") for part in made.parts) < 0.6 * limit
    assert 1 - real / computed < 0.1


def test_passes_are_fewer_where_each_costs_much():
    """Larger passes compute shared prompts less often, and gradients of a large embedding; none exceeds the limit."""
    lengths = log_normal(64, prompt=64)
    limit = 4 * (64 + max(lengths.completion))
    for kind, embedding, parts in (("packed", 0.0, 16), ("packed", 0.8, 7), ("shared", 0.0, 4), ("shared", 0.8, 4)):
        made = layout(lengths, range(64), steps=16, limit=limit, kind=kind, embedding=embedding)
        assert len(made.parts) == parts
        assert max(lengths.computed(part, kind) for part in made.parts) <= limit


def test_the_longest_come_first():
    """What does not fit into memory fails in the first forward pass of a run, not after an hour."""
    lengths = log_normal(64)
    for kind in KINDS:
        made = layout(lengths, range(64), steps=16, limit=10_000, kind=kind)
        assert max(lengths.completion) in [lengths.completion[row] for row in made.parts[0]]


def test_ranks_agree():
    """A rank with fewer rows has as many forward passes as the others; the first ones are no emptier than the last."""
    lengths = log_normal(8)
    made = with_parts(layout(lengths, range(8), steps=4, limit=10_000), lengths, 6, 10_000)
    assert len(made.parts) == 6
    few = with_parts(layout(lengths, [3], steps=4, limit=10_000), lengths, 3, 10_000)
    assert few.parts == ((3,), (), ())
    assert [list(few.of_step(step)) for step in range(4)] == [[], [0], [1], [2]]


def test_nothing_to_learn():
    made = layout(log_normal(8), [], steps=4, limit=10_000)
    assert made.parts == ((),)
    assert [list(made.of_step(step)) for step in range(4)] == [[], [], [], [0]]


def test_unsorted_rows_stay():
    assert unsorted([[0, 2], [], [5]]) == Layout(parts=((0, 2), (), (5,)), steps=3)
