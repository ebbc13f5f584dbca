"""Regions over a run: means per generation, and by the number of the update within its generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dgpo.diagnostics.replay import Replay
from dgpo.regions import REGIONS
from dgpo.report.sample import Sample
from dgpo.report.series import line, rounded
from dgpo.runs.log import Log

KINDS = ("fraction", "mass")
"""Share of the tokens, share of Σ|A·w|."""


def drawn_regions(part: Sample, log: Log, replayed: Replay | None) -> dict[str, Any]:
    """JSON: `over` the run and `within` a generation, each {kind: {"x": [...], region: [...]}}; and `from`.

    From the recorded tokens if there are any, otherwise from the log, which has no generations. Masses are left out if
    the run's objective is not known.
    """
    per = float(part.info.get("updates_per_generation") or 0)
    if replayed is None:
        return {"from": "log", "over": _logged(log), "within": {}}
    found: dict[str, Mapping[str, Sequence[float]]] = {"fraction": replayed.series}
    own = next((row for row in replayed.rows if row.own), None)
    if own is not None:
        found["mass"] = own.series
    generation = [part.places[update][0] for update in replayed.updates]
    index = [part.places[update][1] for update in replayed.updates]
    return {
        "from": "tokens",
        "over": {kind: _means(series, kind, generation, replayed.updates) for kind, series in found.items()},
        "within": {kind: _means(series, kind, index, index) for kind, series in found.items()} if per > 1 else {},
    }


def _means(
    series: Mapping[str, Sequence[float]], kind: str, key: Sequence[int], place: Sequence[int]
) -> dict[str, list[float | None]]:
    """Means of values with equal keys, at the mean of their places."""
    keys = sorted(set(key))

    def mean(values: Sequence[float], of: int) -> float | None:
        return rounded(fmean(value for value, k in zip(values, key, strict=True) if k == of))

    return {
        "x": [mean(place, of) for of in keys],
        **{region: [mean(series[f"{kind}/{region}"], of) for of in keys] for region in REGIONS},
    }


def _logged(log: Log) -> dict[str, dict[str, list[Any]]]:
    found: dict[str, dict[str, list[Any]]] = {}
    for kind in KINDS:
        lines = {region: log.series(f"objective/{kind}/{region}") for region in REGIONS}
        steps = {series.steps for series in lines.values()}
        if len(steps) == 1 and steps != {()}:
            # curves that are thinned separately may not share their x
            drawn = {region: line(series, region) for region, series in lines.items()}
            if len({tuple(one["x"]) for one in drawn.values()}) == 1:
                found[kind] = {"x": drawn[REGIONS[0]]["x"], **{region: one["y"] for region, one in drawn.items()}}
    return found
