"""Tables and figure of results/collapse.json; `collapse.py` computes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from arms import TASKS
from collapse import FALL, SENSITIVITY
from foresight import CAUGHT
from markdown_table import table
from matplotlib.figure import Figure
from signs import ALL, CHECKED_EVERY, CONTROLS

sys.path.append(str(Path(__file__).parents[2] / "docs" / "figures"))
import drawing

Row = dict[str, Any]
NONE = "-"
RISKS = ("collapse after it", "collapse without it")
COLOURS = {
    "ESS of w": ("#0072B2", "o"),
    "ESS of the ratios": ("#56B4E9", "D"),
    "entropy": ("#009E73", "s"),
    "KL(π_old, π)": ("#D55E00", "^"),
    "gradient norm": ("#000000", "v"),
    "largest weight": ("#CC79A7", "P"),
}
"""Statistic -> its colour and marker."""


def tables(found: Row) -> str:
    """All tables."""
    return "\n\n".join(
        [
            "**Runs by task and staleness.** A run may be in several columns; in brackets with "
            f"{' and '.join(map(str, SENSITIVITY))} in place of {FALL}.",
            _by_cell(found["counts"]),
            "**Collapsed runs by method**, tuning (four learning rates, 16 runs) + final (16 runs).",
            _by_method(found["counts"]),
            "**Collapsed runs by learning rate**, tuning seeds, all methods.",
            _by_rate(found["counts"]),
            "**Collapses that samples show late.** Of the collapses with a value so many updates before, those whose "
            "policy had fallen below the same line at its last evaluation.",
            _fallen(found["fallen"]),
            "**AUROC, all tasks**, with 95 % intervals over runs. Position: updates at the same position in a "
            "generation, and the same k; matched: also the same task and learning rate (not registered). Ahead: only "
            "collapses whose policy had not fallen yet, at the same position (not registered).",
            _pooled(found["auroc"]),
            "**AUROC by task**, without control.",
            _per_task(found["auroc"]),
            f"**Thresholds held out by task**: chosen to catch {100 * CAUGHT:g} % of the collapses of the other tasks. "
            "Caught: share of the collapses here. Alarms: false ones per healthy run; alarmed: share of healthy runs "
            "with any; updates: share of their updates with one.",
            _held_out(found["held out"]),
            "**The doctor's rules**, as they are, asked so many updates before a collapse, and after every "
            f"{CHECKED_EVERY} updates of healthy runs; warnings and errors count, notes do not.",
            _doctor(found["doctor"]),
            "**Other limits for the doctor's `drift`** (not registered): collapses caught so many updates before, in "
            "brackets those whose policy had not fallen yet; healthy runs with an alarm at any update; and of the runs "
            "that ever reach the limit, and of those that never do, the share that collapses (afterwards).",
            _drift(found["drift"]),
            "**The doctor afterwards**: `reward_fell` on the whole log.",
            table(
                ("task", "collapsed runs found", "healthy runs blamed"),
                ((r["task"], _share(r["collapsed"]), _share(r["healthy"])) for r in found["afterwards"]),
            ),
        ]
    )


def _by_cell(counts: Sequence[Row]) -> str:
    def cells() -> Iterable[Sequence[str]]:
        for task, k in _cells(counts):
            mine = [r for r in counts if (r["task"], r["k"]) == (task, k)]
            total = {name: sum(r[name] for r in mine) for name in mine[0] if isinstance(mine[0][name], int)}
            others = ", ".join(str(total[f"collapsed, {fall}"]) for fall in SENSITIVITY)
            beside = (str(total[name]) for name in ("non-finite", "worse", "stalled"))
            yield task, str(k), str(total["runs"]), f"{total['collapsed']} ({others})", *beside

    return table(("task", "k", "runs", "collapsed", "non-finite", "worse than the start", "stalled"), cells())


def _by_method(counts: Sequence[Row]) -> str:
    cells = _cells(r for r in counts if r["k"] > 1)

    def collapsed(method: str, task: str, k: int) -> str:
        mine = [r for r in counts if (r["method"], r["task"], r["k"]) == (method, task, k)]
        if not mine:
            return NONE
        return " + ".join(str(sum(r["collapsed"] for r in mine if r["phase"] == one)) for one in ("tuning", "final"))

    return table(
        ("method", *(f"{task}, k = {k}" for task, k in cells)),
        ((method, *(collapsed(method, *cell) for cell in cells)) for method in dict.fromkeys(_of(counts, "method"))),
    )


def _by_rate(counts: Sequence[Row]) -> str:
    tuning = [r for r in counts if r["phase"] == "tuning"]
    rates = sorted(set(_of(tuning, "rate")))

    def cells() -> Iterable[Sequence[str]]:
        for task, k in _cells(tuning):
            row = [task, str(k)]
            for rate in rates:
                mine = [r for r in tuning if (r["task"], r["k"], r["rate"]) == (task, k, rate)]
                row.append(f"{sum(_of(mine, 'collapsed'))} of {sum(_of(mine, 'runs'))}" if mine else NONE)
            yield row

    return table(("task", "k", *(f"{rate:g}" for rate in rates)), cells())


def _fallen(rows: Sequence[Row]) -> str:
    horizons = sorted(set(_of(rows, "horizon")))
    by = {(r["k"], r["horizon"]): r for r in rows}

    def cells() -> Iterable[Sequence[str]]:
        for k in sorted(set(_of(rows, "k"))):
            yield str(k), *(f"{by[k, h]['fallen']} of {by[k, h]['events']}" for h in horizons)

    return table(("k", *(f"{h} before" for h in horizons)), cells())


def _pooled(rows: Sequence[Row]) -> str:
    by = {(r["statistic"], r["horizon"], r["control"]): r for r in rows if r["task"] == ALL}

    def cells() -> Iterable[Sequence[str]]:
        for horizon in dict.fromkeys(_of(rows, "horizon")):
            for statistic in dict.fromkeys(_of(rows, "statistic")):
                ahead = by[statistic, horizon, "position"]["not yet fallen"]
                yield (
                    str(horizon),
                    statistic,
                    *(_interval(by[statistic, horizon, control]["auroc"]) for control in CONTROLS),
                    f"{_interval(ahead)} ({ahead['runs']})",
                )

    events = {r["horizon"]: r["events"] for r in by.values()}
    head = ("updates before", "statistic", "AUROC", "same position", "matched", "ahead (collapses)")
    return (
        table(head, cells())
        + "\n\nCollapses with a value: "
        + ", ".join(f"{n} at {h} updates" for h, n in events.items())
        + "."
    )


def _per_task(rows: Sequence[Row]) -> str:
    plain = [r for r in rows if r["control"] == "none" and r["task"] != ALL]
    by = {(r["statistic"], r["horizon"], r["task"]): r for r in plain}
    tasks = list(dict.fromkeys(_of(plain, "task")))

    def cells() -> Iterable[Sequence[str]]:
        for horizon in dict.fromkeys(_of(plain, "horizon")):
            statistics = list(dict.fromkeys(_of(plain, "statistic")))
            for statistic in statistics:
                yield str(horizon), statistic, *(_interval(by[statistic, horizon, t]["auroc"]) for t in tasks)
            yield str(horizon), "collapses", *(str(by[statistics[0], horizon, task]["events"]) for task in tasks)

    return table(("updates before", "statistic", *tasks), cells())


def _held_out(rows: Sequence[Row]) -> str:
    return table(
        ("updates before", "statistic", "task", "threshold", "caught", "alarms", "alarmed", "updates"),
        (
            (
                str(r["horizon"]),
                r["statistic"],
                r["task"],
                _bound(r["threshold"], r["sign"]),
                _share(r["caught"]),
                _interval(r["alarms"]),
                _share(r["alarmed"]),
                f"{r['updates']:.0%}",
            )
            for r in rows
        ),
    )


def _doctor(rows: Sequence[Row]) -> str:
    return table(
        ("updates before", "rule", "task", "caught", "alarms", "alarmed"),
        (
            (
                str(r["horizon"]),
                f"`{r['rule']}`",
                r["task"],
                _share(r["caught"]),
                _interval(r["alarms"]),
                _share(r["alarmed"]),
            )
            for r in rows
        ),
    )


def _drift(rows: Sequence[Row]) -> str:
    horizons = [name for name in rows[0] if name.startswith("caught") and name.endswith("before")]

    def cells() -> Iterable[Sequence[str]]:
        for r in rows:
            caught = (f"{_percent(r[name])} ({_percent(r[f'{name}, not yet fallen'])})" for name in horizons)
            yield f"{r['limit']:g}", *caught, *(_share(r[name]) for name in ("alarmed", *RISKS))

    return table(("limit", *horizons, "healthy runs alarmed", *RISKS), cells())


def _of(rows: Iterable[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _cells(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """Task and staleness."""
    return sorted({(row["task"], row["k"]) for row in rows}, key=lambda cell: (TASKS.index(cell[0]), cell[1]))


def _interval(one: Row) -> str:
    return NONE if one["value"] is None else f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _share(one: Row) -> str:
    return (
        NONE if one["value"] is None else f"{one['value']:.0%} [{one['low']:.0%}, {one['high']:.0%}] of {one['runs']}"
    )


def _percent(one: Row) -> str:
    return NONE if one["value"] is None else f"{one['value']:.0%}"


def _bound(threshold: float | None, sign: int) -> str:
    """A threshold as the statistic itself has it; None is infinite."""
    if threshold is None:
        return "not finite"
    return f"{'≥' if sign > 0 else '≤'} {sign * threshold:.3g}"


def figure(found: Row) -> Figure:
    """AUROC by statistic and horizon at the same position in a generation: all collapses, and those still ahead."""
    drawn = drawing.blank(9.6, 3.6)
    rows = [r for r in found["auroc"] if r["task"] == ALL and r["control"] == "position"]
    horizons = list(dict.fromkeys(r["horizon"] for r in rows))
    for axis, name, title in zip(
        drawn.subplots(1, 2, sharey=True),
        ("auroc", "not yet fallen"),
        ("all collapses", "the policy has not fallen yet"),
        strict=True,
    ):
        for i, (statistic, (colour, marker)) in enumerate(COLOURS.items()):
            mine = [r for r in rows if r["statistic"] == statistic and r[name]["value"] is not None]
            if mine:
                place = [horizons.index(r["horizon"]) + 0.12 * (i - (len(COLOURS) - 1) / 2) for r in mine]
                value = [r[name]["value"] for r in mine]
                ends = [
                    [v - r[name]["low"] for v, r in zip(value, mine, strict=True)],
                    [r[name]["high"] - v for v, r in zip(value, mine, strict=True)],
                ]
                style = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none", "elinewidth": 1.2}
                axis.errorbar(place, value, yerr=ends, label=statistic, **style)
        axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle="dotted")
        axis.set_title(title, loc="left")
        runs = [next(r[name]["runs"] for r in rows if r["horizon"] == horizon) for horizon in horizons]
        axis.set_xticks(range(len(horizons)), [f"{h}\n{n} runs" for h, n in zip(horizons, runs, strict=True)])
        axis.set_xlabel("updates before the collapse")
        axis.set_ylim(0, 1)
        axis.set_xlim(-0.5, len(horizons) - 0.5)
    left = drawn.axes[0]
    left.set_ylabel("AUROC, same position in a generation")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    return drawn
