"""Sampling of recorded tokens, so that the report reads a run of any size in bounded time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from dgpo.aggregation import StepTotals
from dgpo.runs.run import Run
from dgpo.runs.tokens import Recorded, complete
from dgpo.tokens import TokenBatch

MAX_UPDATES = 100
MAX_TOKENS = 4_000_000
"""Limits on the data that is read of a run."""

FEWEST_GENERATIONS = 3
"""The first, the middle and the last generation, regardless of their size."""

FEWEST_UPDATES = 2
"""Per generation: the first update, which is on-policy, and the last."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample(Run):
    """A run of which a sample of the tokens is read.

    Attributes:
        chosen: updates to read, in order.
        every: one in `every` responses of an update is read.
        incomplete: updates for which a rank recorded no file.
        places: update -> its generation, and its index within it.
    """

    chosen: tuple[int, ...]
    every: int
    incomplete: tuple[int, ...]
    places: dict[int, tuple[int, int]]

    def recorded(self, updates: Iterable[int] | None = None) -> Iterator[Recorded]:
        """As `Run.recorded`, by default for the chosen updates, with one in `every` responses of each."""
        for part in super().recorded(self.chosen if updates is None else updates):
            yield part if self.every == 1 else thinned(part, self.every)


def sample(run: Run, also: Iterable[int] = ()) -> Sample:
    """Choose what to read: everything, if it is within the limits.

    Otherwise evenly spaced generations, including the first and the last, and in each of them evenly spaced updates,
    about as many as there are generations. If even two updates of three generations exceed `MAX_TOKENS`, only some
    responses of each. The updates in `also` are always included.
    """
    rows, places, incomplete = _contents(run)
    chosen = list(rows)
    whole = [list(updates) for _, updates in groupby(chosen, key=lambda update: places[update][0])]
    if len(rows) > MAX_UPDATES or sum(rows.values()) > MAX_TOKENS:
        most = min(MAX_UPDATES, MAX_TOKENS * len(rows) // sum(rows.values()))
        longest = max(len(one) for one in whole)
        within = min(longest, max(FEWEST_UPDATES, math.isqrt(most)))
        count = min(len(whole), max(FEWEST_GENERATIONS, most // within))
        # a short run has fewer generations than that: use the rest of the limit for more updates of each
        within = min(longest, max(within, most // count))
        chosen = [update for one in spread(whole, count) for update in spread(one, within)]
        chosen = sorted({*chosen, *(update for update in also if update in rows)})
    # updates can be larger than the mean that determined their number
    every = max(1, math.ceil(sum(rows[update] for update in chosen) / MAX_TOKENS))
    return Sample(
        folder=run.folder,
        info=run.info,
        metrics=run.metrics,
        damaged=run.damaged,
        chosen=tuple(chosen),
        every=every,
        incomplete=incomplete,
        places=places,
    )


def spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` evenly spaced values, including the first and (from two on) the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]


def thinned(part: Recorded, every: int) -> Recorded:
    """One in `every` responses, with the totals scaled by their share of the tokens."""
    tokens = part.tokens

    def kept(name: str) -> object:
        values = getattr(tokens, name)
        return None if values is None else values[::every]

    fields = ("logprob", "old_logprob", "advantage", "mask", "rollout_logprob", "entropy")
    fewer = TokenBatch(**{name: kept(name) for name in fields})  # type: ignore[arg-type]
    left = float(fewer.mask.sum()) / max(float(tokens.mask.sum()), 1.0)
    return replace(
        part,
        tokens=fewer,
        token_ids=None if part.token_ids is None else part.token_ids[::every],
        group=part.group[::every],
        sum_pi_squared=None if part.sum_pi_squared is None else part.sum_pi_squared[::every],
        totals=None
        if part.totals is None
        else StepTotals(tokens=left * part.totals.tokens, sequences=left * part.totals.sequences),
    )


def _contents(run: Run) -> tuple[dict[int, int], dict[int, tuple[int, int]], tuple[int, ...]]:
    """From the footers: update -> tokens and update -> place, for complete updates; and the incomplete updates."""
    rows: dict[int, int] = {}
    places: dict[int, tuple[int, int]] = {}
    incomplete = []
    per = max(float(run.info.get("updates_per_generation") or 1), 1.0)
    for update, found in run.footers().items():
        if complete(found):
            rows[update] = sum(one.rows for one in found)
            index = found[-1].index
            places[update] = (found[-1].generation, math.floor((update - 1) % per) if index is None else index)
        elif found:
            incomplete.append(update)
    return rows, places, tuple(incomplete)
