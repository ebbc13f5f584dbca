"""A ratio is the quotient of two medians: in its function, and wherever a page prints one beside seconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ratios import times_as_fast, times_as_long

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "benchmarks" / "RESULTS.md"
SECONDS = ("seconds", "ms per update", "s per update")
NUMBER = re.compile(r"^[\d,]+(\.\d+)?$")


def test_quotients_of_medians_and_their_range() -> None:
    rounds = {"stock": [10.0, 12.0, 30.0], "ours": [5.0, 4.0, 6.0]}
    fast, long = times_as_fast(rounds, "stock"), times_as_long(rounds, "stock")
    # the median of the quotients would be 3
    assert (fast["ours"].seconds, fast["ours"].times, fast["ours"].low, fast["ours"].high) == (5.0, 2.4, 2.0, 5.0)
    assert (long["ours"].seconds, long["ours"].times, long["ours"].low, long["ours"].high) == (5.0, 5 / 12, 0.2, 0.5)
    assert (fast["stock"].times, fast["stock"].low, fast["stock"].high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("ratio", [times_as_fast, times_as_long])
def test_rows_that_do_not_compare(ratio) -> None:
    with pytest.raises(ValueError, match=r"baseline = 'TRL' was not measured; expected one of ours"):
        ratio({"ours": [1.0]}, "TRL")
    with pytest.raises(ValueError, match=r"ours has 1 rounds; expected 2, as many as the baseline TRL"):
        ratio({"TRL": [1.0, 2.0], "ours": [1.0]}, "TRL")


def tables(page: str) -> list[list[list[str]]]:
    """Every table as rows of cells, its head first."""
    found: list[list[list[str]]] = []
    previous = ""
    for line in page.splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                found.append([])
            if not line.startswith("|--"):
                found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        previous = line
    return found


def wrong(table: list[list[str]]) -> tuple[list[str], int]:
    """What is wrong with the ratios of a table, and how many of them were compared."""
    head = table[0]
    value = next((i for i, name in enumerate(head) if name in SECONDS), None)
    if value is None:
        return [], 0
    # what stands before the name of the variant: the rows that have one baseline
    keys = [i for i, name in enumerate(head[:value]) if name not in ("trainer", "")] if "trainer" in head else []
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in table[1:]:
        groups.setdefault(tuple(row[i] for i in keys), []).append(row)
    found, count = [], 0
    for ratio, name in enumerate(head):
        if not name.startswith(("times as fast as ", "x the three products")):
            continue
        for rows in groups.values():
            measured = [row for row in rows if NUMBER.match(row[value]) and NUMBER.match(row[ratio])]
            # the row that the head names, or the first
            named = [row for row in measured if row[value - 1] == name.removeprefix("times as fast as ")]
            baseline = number((named or measured)[0][value])
            for row in measured:
                seconds, printed = number(row[value]), number(row[ratio])
                quotient = seconds / baseline if name.startswith("x") else baseline / seconds
                # half a unit of the last place of each of the three numbers
                places = len(row[value].partition(".")[2])
                slack = 0.5 * 10.0**-places * (1 / seconds + 1 / baseline) * quotient + 0.00501
                count += 1
                if abs(quotient - printed) > slack:
                    found.append(f"{row} has the ratio {printed}; expected {quotient:.3f}")
    return found, count


def number(cell: str) -> float:
    """Of a cell with commas."""
    return float(cell.replace(",", ""))


def test_every_ratio_of_the_page_is_that_of_the_seconds_beside_it() -> None:
    results = [wrong(table) for table in tables(PAGE.read_text(encoding="utf-8"))]
    assert [text for found, _ in results for text in found] == []
    assert sum(count for _, count in results) >= 30 + 12 + 6


def test_a_ratio_to_another_baseline_is_found() -> None:
    page = """
| model and batch | trainer | ms per update | times as fast as TRL | range over rounds |
|---|---|---:|---:|---:|
| demo | TRL | 139.6 | 1.00 | 1.00 .. 1.00 |
| demo | fused_loss=False | 74.1 | 1.77 | 1.65 .. 1.88 |
| demo | fused | 78.4 | 1.78 | 1.66 .. 1.84 |
| large | TRL | 8854.3 | 1.00 | 1.00 .. 1.00 |
| large | fused | 1833.7 | 4.83 | 4.04 .. 5.90 |
"""
    (table,) = tables(page)
    found, count = wrong(table)
    assert count == 5
    assert len(found) == 1
    assert "fused_loss=False" in found[0]


def test_the_ratios_of_the_page_about_the_fused_loss_are_those_of_the_results() -> None:
    results = tables(PAGE.read_text(encoding="utf-8"))
    heads = [table for table in results if "x the three products" in table[0]][:3]
    steps = next(table for table in results if table[0][:2] == ["model and batch", "trainer"])
    expected = {
        name: [of(row) for table in heads for row in table if row[0] == name]
        for name in {row[0] for row in heads[0][1:]} - {"three products"}
    }
    for case in {row[0] for row in steps[1:]}:
        expected[case] = [row[3] for row in steps if row[0] == case and row[1].startswith("DGPOTrainer")]
    page = tables((ROOT / "docs" / "fused.md").read_text(encoding="utf-8"))
    shown = {row[0]: row[1:] for table in page for row in table[1:] if row[0] in expected}
    assert shown == expected


def of(row: list[str]) -> str:
    """Ratio, and memory in brackets where it was measured."""
    return f"{row[2]} ({row[4]})" if row[4] else row[2]
