"""Curves of a run's log, thinned so that the page stays small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from dgpo.runs.log import KEYS, Log, Series

MAX_POINTS = 1000
"""Maximum number of points of a curve; longer ones keep the minimum and maximum of each stretch."""

EVALUATION = ("eval/", "eval_")
"""Prefixes of metrics from evaluation during training."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart in the section of curves.

    Attributes:
        title, unit: title of the chart, unit of its vertical axis.
        lines: (description, names): quantities of `KEYS`, or metrics; the first logged one is drawn.
        main: whether figures for papers have it, too (`dgpo plot curves`).
    """

    title: str
    unit: str
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    main: bool = True


FUNCTIONS, SPEED = "functions", "speed"
"""Charts whose lines depend on the log, or may be computed from it."""

CHARTS: dict[str, Chart] = {
    "reward": Chart(title="Reward", unit="mean over completions", lines=(("reward", ("reward",)),)),
    "zero_std": Chart(
        title="Groups without spread",
        unit="share of prompts",
        lines=(("all completions of the prompt have the same reward", ("zero_std",)),),
    ),
    "entropy": Chart(title="Entropy", unit="nats per token", lines=(("entropy", ("entropy",)),)),
    "kl": Chart(
        title="KL divergence",
        unit="nats per token",
        lines=(
            ("from π_old", ("kl_old",)),
            ("sampler to trainer (k3)", ("kl_sampler",)),
            ("sampler to trainer (k1)", ("kl_sampler_k1",)),
        ),
    ),
    "grad_norm": Chart(
        title="Gradient norm", unit="L2 norm before clipping", lines=(("gradient norm", ("grad_norm",)),)
    ),
    "length": Chart(
        title="Response length",
        unit="tokens, mean",
        lines=(("response length", ("length",)),),
    ),
    FUNCTIONS: Chart(title="Reward by function", unit="mean over completions", lines=(), main=False),
    "truncated": Chart(
        title="Cut off at the limit", unit="share of responses", lines=(("cut off", ("truncated",)),), main=False
    ),
    "kl_reference": Chart(
        title="KL from the reference model",
        unit="nats per token",
        lines=(("from the reference model", ("kl_reference",)),),
        main=False,
    ),
    "learning_rate": Chart(title="Learning rate", unit="", lines=(("learning rate", ("learning_rate",)),), main=False),
    "step_time": Chart(title="Time", unit="seconds per update", lines=(("step", ("step_time",)),), main=False),
    SPEED: Chart(
        title="Speed", unit="tokens per second", lines=(("tokens per second", ("tokens_per_second",)),), main=False
    ),
}


def charts(log: Log) -> dict[str, list[dict[str, Any]]]:
    """Chart -> its lines that this run has: `name`, `key`, `x` (updates), `y` (null where it was not finite)."""
    found = {
        name: [line(logged, words) for words, names in chart.lines if len(logged := first(log, names))]
        for name, chart in CHARTS.items()
    }
    functions = {name: series for name, series in log.reward_functions.items() if len(series)}
    # a single function is the reward itself
    if len(functions) > 1:
        found[FUNCTIONS] = [line(series, name) for name, series in functions.items()]
    if not found[SPEED] and len(series := speed(log)):
        found[SPEED] = [line(series, "tokens per second")]
    return found


def speed(log: Log) -> Series:
    """Tokens per second, from the number of tokens so far and the seconds per step; empty where one is missing."""
    seen, times = log["tokens_seen"], log["step_time"]
    points: list[tuple[int, float]] = []
    for (before, start), (step, end) in pairwise(seen.at.items()):
        # a logged time is the mean over the steps since the log line before
        spent = sum(
            time * (at - last)
            for last, (at, time) in zip((0, *times.steps), times.at.items(), strict=False)
            if before < at <= step
        )
        if spent > 0 and end > start:
            points.append((step, (end - start) / spent))
    return Series(
        key=f"{seen.key} and {times.key}" if points else "",
        steps=tuple(step for step, _ in points),
        values=tuple(value for _, value in points),
    )


def evaluations(log: Log) -> list[dict[str, Any]]:
    """The curves of evaluations during training: accuracies and rewards, with standard errors `se` if known."""
    found = []
    for key in log.keys:
        words = key.rpartition("/")[2]
        if key.startswith(EVALUATION) and ("@" in words or words in ("greedy", "eval_reward")) and key[-3:] != "_se":
            series, errors = log.series(key), log.series(f"{key}_se")
            if len(series):
                at = errors.at
                drawn = line(series, key.removeprefix("eval/"))
                found.append({**drawn, "se": [rounded(at.get(x)) for x in drawn["x"]]})
    return found


def first(log: Log, names: Iterable[str]) -> Series:
    """The first of several quantities or metrics that was logged; empty if there is none."""
    for name in names:
        series = log[name] if name in KEYS else log.series(name)
        if len(series):
            return series
    return Series()


def line(series: Series, name: str) -> dict[str, Any]:
    """A curve as JSON, with gaps where a value was not finite."""
    points = sorted([*series.at.items(), *((step, None) for step in series.broken)])
    kept = thinned(points)
    return {"name": name, "key": series.key, "x": [x for x, _ in kept], "y": [rounded(y) for _, y in kept]}


def thinned(points: Sequence[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """At most `MAX_POINTS` points: the minimum and maximum of each stretch, so that spikes remain."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept: list[tuple[int, float | None]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if point[1] is not None]
        extremes = [min(finite, key=_value), max(finite, key=_value)] if finite else [stretch[0]]
        # minimum and maximum may be one point
        kept += sorted(dict.fromkeys(extremes))
    return kept


def _value(point: tuple[int, float | None]) -> float:
    return math.nan if point[1] is None else point[1]


def tenth(series: Series) -> int:
    """A tenth of the points of a series: three at least, no more than half; 1 for a single point."""
    return max(1, min(max(3, len(series) // 10), len(series) // 2))


def ends(series: Series) -> tuple[float, float] | None:
    """Mean of the first and of the last `tenth` of the points."""
    if not len(series):
        return None
    size = tenth(series)
    return fmean(series.values[:size]), fmean(series.values[-size:])


def rounded(value: float | None, digits: int = 5) -> float | None:
    """`digits` significant digits; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
