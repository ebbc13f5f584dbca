"""Tables of collapses, from `results/collapse.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
NONE = "-"
RISKS = ("collapse after it", "collapse without it")


def as_markdown(found: Row) -> str:
    """All tables."""
    return "\n\n".join(
        [
            "**Runs by task and staleness.** A run may be in several columns; in brackets with 0.25 and 0.75 in place "
            "of 0.5.",
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
            "**Thresholds held out by task**: chosen to catch 80 % of the collapses of the other tasks. Caught: share "
            "of the collapses here. Alarms: false ones per healthy run; alarmed: share of healthy runs with any; "
            "updates: share of their updates with one.",
            _held_out(found["held out"]),
            "**The doctor's rules**, as they are, asked so many updates before a collapse, and after every 32 updates "
            "of healthy runs; warnings and errors count, notes do not.",
            _doctor(found["doctor"]),
            "**Other limits for the doctor's `drift`** (not registered): collapses caught so many updates before, in "
            "brackets those whose policy had not fallen yet; healthy runs with an alarm at any update; and of the runs "
            "that ever reach the limit, and of those that never do, the share that collapses (afterwards).",
            _drift(found["drift"]),
            "**The doctor afterwards**: `reward_fell` on the whole log.",
            _table(
                ("task", "collapsed runs found", "healthy runs blamed"),
                ((r["task"], _share(r["collapsed"]), _share(r["healthy"])) for r in found["afterwards"]),
            ),
        ]
    )


def _by_cell(counts: Sequence[Row]) -> str:
    def cells() -> Iterable[Sequence[str]]:
        for task, k in sorted({(r["task"], r["k"]) for r in counts}, key=lambda c: (_order(counts)(c[0]), c[1])):
            mine = [r for r in counts if (r["task"], r["k"]) == (task, k)]
            total = {name: sum(r[name] for r in mine) for name in mine[0] if isinstance(mine[0][name], int)}
            few, many = (total[f"collapsed, {fall}"] for fall in (0.25, 0.75))
            collapsed = f"{total['collapsed']} ({few}, {many})"
            others = [total[name] for name in ("non-finite", "worse", "stalled")]
            yield task, str(k), str(total["runs"]), collapsed, *map(str, others)

    return _table(("task", "k", "runs", "collapsed", "non-finite", "worse than the start", "stalled"), cells())


def _by_method(counts: Sequence[Row]) -> str:
    cells = sorted({(r["task"], r["k"]) for r in counts if r["k"] > 1}, key=lambda c: (_order(counts)(c[0]), c[1]))

    def collapsed(method: str, task: str, k: int) -> str:
        mine = [r for r in counts if (r["method"], r["task"], r["k"]) == (method, task, k)]
        if not mine:
            return NONE
        return " + ".join(str(sum(r["collapsed"] for r in mine if r["phase"] == one)) for one in ("tuning", "final"))

    return _table(
        ("method", *(f"{task}, k = {k}" for task, k in cells)),
        ((method, *(collapsed(method, *cell) for cell in cells)) for method in dict.fromkeys(_of(counts, "method"))),
    )


def _by_rate(counts: Sequence[Row]) -> str:
    tuning = [r for r in counts if r["phase"] == "tuning"]
    rates = sorted(set(_of(tuning, "rate")))

    def cells() -> Iterable[Sequence[str]]:
        for task, k in sorted({(r["task"], r["k"]) for r in tuning}, key=lambda c: (_order(counts)(c[0]), c[1])):
            row = [task, str(k)]
            for rate in rates:
                mine = [r for r in tuning if (r["task"], r["k"], r["rate"]) == (task, k, rate)]
                row.append(f"{sum(_of(mine, 'collapsed'))} of {sum(_of(mine, 'runs'))}" if mine else NONE)
            yield row

    return _table(("task", "k", *(f"{rate:g}" for rate in rates)), cells())


def _fallen(rows: Sequence[Row]) -> str:
    horizons = sorted(set(_of(rows, "horizon")))
    by = {(r["k"], r["horizon"]): r for r in rows}

    def cells() -> Iterable[Sequence[str]]:
        for k in sorted(set(_of(rows, "k"))):
            yield str(k), *(f"{by[k, h]['fallen']} of {by[k, h]['events']}" for h in horizons)

    return _table(("k", *(f"{h} before" for h in horizons)), cells())


def _pooled(rows: Sequence[Row]) -> str:
    by = {(r["statistic"], r["horizon"], r["control"]): r for r in rows if r["task"] == "all"}
    none, position, matched = dict.fromkeys(_of(rows, "control"))

    def cells() -> Iterable[Sequence[str]]:
        for horizon in dict.fromkeys(_of(rows, "horizon")):
            for statistic in dict.fromkeys(_of(rows, "statistic")):
                one = {control: by[statistic, horizon, control] for control in (none, position, matched)}
                ahead = one[position]["not yet fallen"]
                yield (
                    str(horizon),
                    statistic,
                    *(_interval(one[control]["auroc"]) for control in (none, position, matched)),
                    f"{_interval(ahead)} ({ahead['runs']})",
                )

    events = {r["horizon"]: r["events"] for r in by.values()}
    head = ("updates before", "statistic", "AUROC", "same position", "matched", "ahead (collapses)")
    return (
        _table(head, cells())
        + "\n\nCollapses with a value: "
        + ", ".join(f"{n} at {h} updates" for h, n in events.items())
        + "."
    )


def _per_task(rows: Sequence[Row]) -> str:
    plain = [r for r in rows if r["control"] == "none" and r["task"] != "all"]
    by = {(r["statistic"], r["horizon"], r["task"]): r for r in plain}
    tasks = list(dict.fromkeys(_of(plain, "task")))

    def cells() -> Iterable[Sequence[str]]:
        for horizon in dict.fromkeys(_of(plain, "horizon")):
            statistics = list(dict.fromkeys(_of(plain, "statistic")))
            for statistic in statistics:
                yield str(horizon), statistic, *(_interval(by[statistic, horizon, t]["auroc"]) for t in tasks)
            yield str(horizon), "collapses", *(str(by[statistics[0], horizon, task]["events"]) for task in tasks)

    return _table(("updates before", "statistic", *tasks), cells())


def _held_out(rows: Sequence[Row]) -> str:
    return _table(
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
    return _table(
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

    return _table(("limit", *horizons, "healthy runs alarmed", *RISKS), cells())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _of(rows: Iterable[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _order(rows: Sequence[Row]) -> Callable[[str], int]:
    return list(dict.fromkeys(_of(rows, "task"))).index


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
