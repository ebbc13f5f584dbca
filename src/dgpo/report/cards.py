"""The header of the page: a card per run, and the main evaluation results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dgpo.report.markup import Markup, joined, percent, shown, tag
from dgpo.report.sections import SIGNS, mark, unregistered


def header(runs: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> Markup:
    """One card per run, and the first estimate of every benchmark."""
    cards = tag("div", *(_card(run, number) for number, run in enumerate(runs)), class_="cards")
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
        if first[row["label"], row["benchmark"]] == row["estimate"]
    ]
    arrows = "Arrows go from the mean of the first tenth of the log to that of the last tenth."
    return joined([cards, tag("ul", *lines, class_="results") if lines else "", tag("p", arrows, class_="aside")])


def _card(run: Mapping[str, Any], number: int) -> Markup:
    summary = run["summary"]
    parameters = summary["parameters"]
    model = summary["model"].rstrip("/").rpartition("/")[2] if summary["model"] else "unknown"
    updates = f"{summary['updates']:,}" + (f" of {summary['planned']:,}" if summary["planned"] else "")
    if summary["finished"] is False:
        updates += ", not finished"
    facts = [
        ("objective", run["objective"] or unregistered(run) or "unknown"),
        ("model", f"{model} ({_size(parameters)})" if parameters else model),
        ("updates", updates),
        ("time", None if summary["seconds"] is None else _duration(summary["seconds"])),
        ("entropy", _change(summary["entropy"], "nats")),
        ("length", _change(summary["length"], "tokens")),
    ]
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    reward = summary["reward"]
    if reward is None:
        headline = tag("p", "no reward was logged", class_="headline none")
    else:
        change = reward[1] - reward[0]
        moved = "+" if change > 0 else "−" if change < 0 else "±"
        headline = tag(
            "p",
            tag("span", "reward ", class_="what"),
            tag("span", _three(reward[0]), class_="from"),
            tag("span", " → ", aria_label=" to "),
            tag("span", _three(reward[1]), class_="to"),
            tag("span", f" ({moved}{shown(abs(change), 2)})", class_="what"),
            class_="headline",
        )
    return tag(
        "article",
        tag("h2", mark(run, number)),
        headline,
        tag("dl", *listed),
        _verdict(run, number),
        class_=f"card run-{number % 8}",
    )


def _verdict(run: Mapping[str, Any], number: int) -> Markup:
    findings = run["findings"]
    if not findings and not run["can_tell"]:
        return tag("p", f"the doctor {run['covered']}", class_="verdict")
    if not findings:
        return tag("p", "✔ the doctor finds nothing wrong", class_="verdict fine")
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
