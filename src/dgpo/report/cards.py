"""The header of the page: a card per run, and the main evaluation results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dgpo.counts import counted
from dgpo.report import sections
from dgpo.report.markup import Markup, joined, percent, shown, table, tag
from dgpo.report.sections import SIGNS, mark, unregistered

MOST_CARDS = 3


def header(
    runs: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Any] | None = None,
) -> Markup:
    """One card per run, of more than `MOST_CARDS` a table; the first estimate of every evaluation not in a headline.

    Args:
        runs: of `collect`.
        results: rows of evaluations.
        groups: of the runs, with what differs between them.
    """
    cards = (
        tag("div", *(_card(run, number) for number, run in enumerate(runs)), class_="cards")
        if len(runs) <= MOST_CARDS
        else joined([_groups(runs, groups) if groups and groups["several"] else "", _table(runs)])
    )
    first: dict[tuple[str, str], str] = {}
    for row in results:
        first.setdefault((row["label"], row["benchmark"]), row["estimate"])
    lines = [
        tag(
            "li",
            f"{row['benchmark']}, {row['estimate']}: ",
            tag("strong", percent(row["value"])),
            f" ({100 * row['low']:.1f} to {100 * row['high']:.1f}), {row['label']}",
        )
        for row in results
        if first[row["label"], row["benchmark"]] == row["estimate"] and not row["in_headline"]
    ]
    arrows = (
        "Arrows of what was logged in training (reward, entropy, length) go from the mean of the first tenth of the "
        "log to that of the last tenth."
    )
    different = sections.differences(groups, runs) if groups else ""
    listed = tag("ul", *lines, class_="results") if lines else ""
    return joined([cards, listed, tag("p", arrows, class_="aside"), different])


def _groups(runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Any]) -> Markup:
    """A card per group: the median over its runs of where they ended, from the lowest to the highest."""
    made = []
    for place, name in enumerate(groups["labels"]):
        members = [run for run, of in zip(runs, groups["of"], strict=True) if of == place]
        count = counted(len(members), "run")
        changes = [run["headline"][0] for run in members if run["headline"]]
        rate = all(change["estimate"] for change in changes)
        rewards = [run["summary"]["reward"][1] for run in members if run["summary"]["reward"] is not None]
        if len(changes) == len(members) and len({change["name"] for change in changes}) == 1:
            ends, what = [change["after"]["value"] for change in changes], changes[0]["name"]
        else:
            ends, what, rate = rewards, "reward in training", False
        if not ends:
            said = tag("p", "no evaluation, and no reward was logged", class_="headline none")
            why = ""
        else:
            middle, low, high = (_value({"value": v}, rate) for v in (median(ends), min(ends), max(ends)))
            said = tag(
                "p",
                tag("span", f"{what} ", class_="what"),
                tag("span", middle + ("\u00a0%" if rate else ""), class_="to"),
                class_="headline",
            )
            why = tag("p", f"At the end: median of {count}, from {low} to {high}.", class_="aside")
        swatch = tag("span", tag("span", class_=f"swatch run-{place % 8}", aria_hidden="true"), name, class_="run")
        made.append(tag("article", tag("h2", swatch), said, why, class_=f"card run-{place % 8}"))
    return tag("div", *made, class_="cards")


def _table(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """A row per run."""
    rows: list[list[object]] = []
    for number, run in enumerate(runs):
        summary, found = run["summary"], run["findings"]
        first = run["headline"][0] if run["headline"] else None
        reward = summary["reward"]
        worst = found[0]["severity"] if found else None
        rows.append(
            [
                mark(run, number),
                "–" if first is None else (_line(first), first["after"]["value"]),
                "–" if reward is None else (f"{_three(reward[0])} → {_three(reward[1])}", reward[1]),
                (f"{summary['updates']:,}", summary["updates"]),
                _change(summary["entropy"], "nats") or "–",
                tag("span", f"{SIGNS[worst]}: {found[0]['title']}", class_=f"severity {worst} long")
                if worst
                else "nothing wrong"
                if run["can_tell"]
                else "cannot tell",
            ]
        )
    head = ["run", "evaluation", "training reward", "updates", "entropy", "the doctor's first finding"]
    if all(row[1] == "–" for row in rows):
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    return table("", head, rows, numeric=(head.index("updates"),), sortable=True, name="the runs")


def _card(run: Mapping[str, Any], number: int) -> Markup:
    summary = run["summary"]
    parameters = summary["parameters"]
    model = summary["model"].rstrip("/").rpartition("/")[2] if summary["model"] else "unknown"
    updates = f"{summary['updates']:,}" + (f" of {summary['planned']:,}" if summary["planned"] else "")
    if summary["finished"] is False:
        updates += ", not finished"
    facts = [
        # a log alone does not say what ran
        ("objective", run["objective"] or unregistered(run) or ("unknown" if run["info"] else None)),
        ("model", f"{model} ({_size(parameters)})" if parameters else model if run["info"] else None),
        ("updates", updates),
        ("time", None if summary["seconds"] is None else _duration(summary["seconds"])),
        ("entropy", _change(summary["entropy"], "nats")),
        ("length", _change(summary["length"], "tokens")),
    ]
    reward = summary["reward"]
    if run["headline"] and reward is not None:
        facts.insert(2, ("training reward", f"{_three(reward[0])} → {_three(reward[1])}"))
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    headline = _evaluated(run["headline"]) if run["headline"] else _reward(reward, summary["tenth"])
    return tag(
        "article",
        tag("h2", mark(run, number)),
        headline,
        tag("dl", *listed),
        _verdict(run, number),
        class_=f"card run-{run['colour'] % 8}",
    )


def _evaluated(changes: Sequence[Mapping[str, Any]]) -> Markup:
    """The main result of an evaluation as the headline, the others below it."""
    first, *others = changes
    before, after = first["before"], first["after"]
    rate = bool(first["estimate"])
    words = [tag("span", f"{first['name']} ", class_="what")]
    if before is not None:
        words += [tag("span", _value(before, rate), class_="from"), tag("span", " → ", aria_label=" to ")]
    words.append(tag("span", _value(after, rate) + ("\u00a0%" if rate else ""), class_="to"))
    return joined(
        [
            tag("p", *words, class_="headline"),
            tag("p", f"{_because(first)}.", class_="aside"),
            tag("ul", *(tag("li", _line(one)) for one in others), class_="others") if others else "",
        ]
    )


def _because(change: Mapping[str, Any]) -> str:
    """How sure a change is, and what was compared."""
    before, after, difference = change["before"], change["after"], change["difference"]
    ends = [one for one in (before, after) if one is not None]
    problems = "" if change["problems"] is None else f" on {counted(change['problems'], 'problem')}"
    updates = [one["update"] for one in ends if one["update"] is not None]
    where = f", after update {' and '.join(f'{update:,}' for update in updates)}" if updates else ""
    if difference is not None:
        return f"difference {_interval(difference, sign='+')} points, 95 % interval, paired{problems}{where}"
    if all(one["low"] is None for one in ends):
        return f"no interval was logged{where}"
    return (
        f"95 % {'intervals' if len(ends) > 1 else 'interval'} "
        + " and ".join(f"{100 * one['low']:.1f} to {100 * one['high']:.1f} %" for one in ends if one["low"] is not None)
        + problems
        + where
    )


def _line(change: Mapping[str, Any]) -> str:
    before, after, difference = change["before"], change["after"], change["difference"]
    rate = bool(change["estimate"])
    start = "" if before is None else f"{_value(before, rate)} → "
    why = "" if difference is None else f" ({_interval(difference, sign='+')})"
    unit = "\u00a0%" if rate else ""
    return f"{change['name']}: {start}{_value(after, rate)}{unit}{why}"


def _value(end: Mapping[str, Any], rate: bool) -> str:
    return f"{100 * end['value']:.1f}" if rate else _three(end["value"])


def _interval(estimate: Mapping[str, Any], sign: str = "") -> str:
    value, low, high = (f"{100 * estimate[name]:{sign}.1f}".replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _reward(reward: Sequence[float] | None, tenth: int) -> Markup:
    """The reward in training, where there is no evaluation."""
    if reward is None:
        return tag("p", "no evaluation, and no reward was logged", class_="headline none")
    change = reward[1] - reward[0]
    moved = "+" if change > 0 else "−" if change < 0 else "±"
    points = counted(tenth, "point") if tenth > 1 else "point"
    return joined(
        [
            tag(
                "p",
                tag("span", "reward ", class_="what"),
                tag("span", _three(reward[0]), class_="from"),
                tag("span", " → ", aria_label=" to "),
                tag("span", _three(reward[1]), class_="to"),
                tag("span", f" ({moved}{shown(abs(change), 2)})", class_="what"),
                class_="headline",
            ),
            tag(
                "p",
                f"In training, mean of the first {points} of the log and of the last. There is no evaluation.",
                class_="aside",
            ),
        ]
    )


def _verdict(run: Mapping[str, Any], number: int) -> Markup:
    findings = run["findings"]
    if not findings and not run["can_tell"]:
        return tag("p", f"the doctor {run['covered']}", class_="verdict")
    if not findings:
        where = " in what was read" if run["unknown"] else ""
        return tag("p", f"✔ the doctor finds nothing wrong{where}", class_="verdict fine")
    items = [
        tag("li", tag("span", SIGNS[one["severity"]], class_=f"severity {one['severity']}"), " ", one["title"])
        for one in findings[:3]
    ]
    more = len(findings) - len(items)
    link = tag("a", f"{more} more, causes and remedies" if more else "causes and remedies", href=f"#findings-{number}")
    return tag("div", tag("ul", *items), tag("p", link), class_="verdict")


def _three(value: float) -> str:
    """Three significant digits, with trailing zeros."""
    return f"{value:#.3g}".rstrip(".").replace("-", "−")


def _size(parameters: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters:g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _change(ends: Sequence[float] | None, unit: str) -> str | None:
    return None if ends is None else f"{shown(ends[0])} → {shown(ends[1])} {unit}"
