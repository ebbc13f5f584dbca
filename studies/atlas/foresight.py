"""How well a statistic foresees an event: AUROC with intervals over runs, and thresholds held out by task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgpo.evaluation.intervals import interval

MEDIAN_OF = 5
"""Updates whose median is the value of a statistic."""
RESAMPLES = 1000
CAUGHT = 0.8
"""Share of the events that a threshold catches where it is chosen."""
FEWEST = 10
"""Events that an AUROC needs."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of events or runs behind it; NaN if that is 0."""

    value: float
    low: float
    high: float
    runs: int


NOTHING = Estimate(np.nan, np.nan, np.nan, 0)


def dangerous(values: NDArray[np.floating], sign: int) -> Floats:
    """[R, T] values of R runs -> their running medians, larger means more dangerous; NaN in the first four updates.

    A value that is not a number is the most dangerous one.
    """
    signed = sign * values.astype(np.float64)
    signed[np.isnan(signed)] = np.inf
    medians = np.full_like(signed, np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(signed, MEDIAN_OF, axis=1)
    medians[:, MEDIAN_OF - 1 :] = np.sort(windows, axis=-1)[..., MEDIAN_OF // 2]
    return medians


@dataclass(frozen=True)
class Pairs:
    """Events against updates of healthy runs.

    Attributes:
        below: [P, N] of the updates of each healthy run, those less dangerous than each event; ties count half.
        among: [P, N] the updates that were compared.
    """

    below: NDArray[np.float32]
    among: NDArray[np.float32]

    def of(self, events: NDArray[np.bool_], healthy: NDArray[np.bool_]) -> Pairs:
        """Some of the events and some of the healthy runs."""
        return Pairs(self.below[events][:, healthy], self.among[events][:, healthy])

    def shares(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """[P, B] per event the share of updates that are less dangerous, with [N, B] weights of the healthy runs.

        NaN for an event that has no update to be compared with.
        """
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float32] = (self.below @ weights) / (self.among @ weights)
        return found


def auroc(shares: NDArray[np.float32], resampled: NDArray[np.float32], rng: np.random.Generator) -> Estimate:
    """Mean over events of the share of updates of healthy runs that are less dangerous.

    Args:
        shares: [P] `Pairs.shares` with weights of 1; events without a value are left out.
        resampled: [P, `RESAMPLES`] the same for resamples of the healthy runs, each run with all of its updates.
        rng: draws the events again; the interval is that of a percentile bootstrap over runs.
    """
    used = np.isfinite(shares)
    if not used.any():
        return NOTHING
    shares, resampled = shares[used], resampled[used]
    # an event whose healthy runs were not drawn is left out of that resample
    weights = counts(rng, len(resampled)) * np.isfinite(resampled)
    means = (weights * np.nan_to_num(resampled)).sum(0) / weights.sum(0)
    low, high = np.nanpercentile(means, (2.5, 97.5))
    return Estimate(float(shares.mean(dtype=np.float64)), float(low), float(high), len(shares))


def pairs(
    values: Floats,
    events: Ints,
    at: Ints,
    healthy: Ints,
    label: Ints | None = None,
    period: Ints | None = None,
) -> Pairs:
    """Compare each event with the updates of healthy runs.

    Args:
        values: [R, T] as `dangerous` makes them.
        events: [P] runs.
        at: [P] the update whose value counts.
        healthy: [N] runs.
        label: [R] if given, only runs with the same label are compared.
        period: [R] if given, only updates at the same position in a period are compared, `at` modulo period; runs with
            one label have one period.
    """
    below = np.zeros((len(events), len(healthy)), dtype=np.float32)
    among = np.zeros_like(below)
    label = np.zeros(len(values), dtype=np.int64) if label is None else label
    position = np.zeros_like(at) if period is None else at % period[events]
    for one, place in np.unique(np.stack([label[events], position], 1), axis=0):
        mine = np.flatnonzero((label[events] == one) & (position == place))
        others = np.flatnonzero(label[healthy] == one)
        step = 1 if period is None else int(period[events[mine[0]]])
        # the first update in this position that has a value
        first = int(place) + step * -(-max(MEDIAN_OF - 1 - int(place), 0) // step)
        block = values[healthy[others], first::step]
        cells = np.ix_(mine, others)
        below[cells] = below_each(block, values[events[mine], at[mine]])
        among[cells] = block.shape[1]
    return Pairs(below, among)


def below_each(block: Floats, limits: Floats) -> NDArray[np.float32]:
    """[P, N] how many values of each row of [N, U] are below each of [P] limits; equal ones count half."""
    order = np.sort(limits)
    rows, width = np.arange(len(block))[:, None], len(order) + 1
    # a value is below the limits from its place in their order on
    halves = sum(
        np.bincount((np.searchsorted(order, block, side) + width * rows).ravel(), minlength=width * len(block))
        for side in ("left", "right")
    )
    cumulative = np.cumsum(np.reshape(halves, (len(block), width)), axis=1)[:, :-1] / 2
    # `left` counts a value at limits equal to it, `right` does not: a half
    unsorted = np.empty((len(limits), len(block)), dtype=np.float32)
    unsorted[np.argsort(limits, kind="stable")] = cumulative.T
    return unsorted


@dataclass(frozen=True)
class Alarm:
    """What a threshold does to runs that had no part in it.

    Attributes:
        threshold: alarm at this value or a more dangerous one, as `dangerous` makes them.
        caught: share of the events with an alarm at the horizon.
        alarms: false alarms per healthy run; updates in a row are one alarm.
        alarmed: share of healthy runs with any.
        updates: share of their updates with an alarm.
    """

    threshold: float
    caught: Estimate
    alarms: Estimate
    alarmed: Estimate
    updates: float


def threshold(values: Floats) -> float:
    """The most dangerous threshold that at least `CAUGHT` of the values reach."""
    if len(values) == 0:
        raise ValueError("no event to choose a threshold for")
    # less than half a value of rounding: 0.8 · 5 must be 4
    return float(np.sort(values)[::-1][int(np.ceil(CAUGHT * len(values) - 1e-9)) - 1])


def onsets(above: NDArray[np.bool_]) -> Ints:
    """[N, T] alarms -> [N] how often one begins."""
    result: Ints = above[:, 0] + (above[:, 1:] & ~above[:, :-1]).sum(1)
    return result


def alarms(limit: float, event_values: Floats, healthy_values: Floats, rng: np.random.Generator) -> Alarm:
    """A threshold on other runs: [P] values of events and [N, T] of healthy runs; intervals at this threshold."""
    above = healthy_values[:, MEDIAN_OF - 1 :] >= limit
    return Alarm(
        threshold=limit,
        caught=share(event_values >= limit),
        alarms=mean(onsets(above), rng),
        alarmed=share(above.any(1)),
        updates=float(above.mean()),
    )


def share(found: NDArray[np.bool_]) -> Estimate:
    """Share of runs; a bootstrap would give 0 and 1 an interval of width 0, this one (`dgpo.evaluation`) does not."""
    if len(found) == 0:
        return NOTHING
    estimate = interval(found.astype(np.float64))
    return Estimate(estimate.value, estimate.low, estimate.high, len(found))


def mean(values: NDArray[np.generic], rng: np.random.Generator) -> Estimate:
    """Mean over runs, with a percentile bootstrap."""
    if len(values) == 0:
        return NOTHING
    numbers = values.astype(np.float64)
    means = numbers @ counts(rng, len(numbers)) / len(numbers)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def counts(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """[size, `RESAMPLES`] how often each run is in a resample."""
    drawn = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    return np.ascontiguousarray(drawn.T, dtype=np.float32)
