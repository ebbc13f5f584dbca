"""The summary of a comparison as tables, for terminals and in Markdown, and as files; and what a design can find."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo.comparison.statistics import ALPHA, smallest_difference, smallest_p_value
from dgpo.comparison.summary import Method, Summary
from dgpo.counts import counted
from dgpo.evaluation.intervals import POWER
from dgpo.evaluation.tables import UNKNOWN, Grid, grid_markdown
from dgpo.files import write_json_atomic, write_text_atomic
from dgpo.runs.results import Estimate

if TYPE_CHECKING:
    from rich.table import Table

JSON, MARKDOWN = "summary.json", "summary.md"

BASELINE = " (baseline)"
"""What follows the label of the baseline in a table."""

STDS = (0.01, 0.02, 0.05, 0.1)
"""Standard deviations between seeds that a design is shown for while none is known."""

CORRELATION = 0.5
"""Between the scores of two arms over the same seeds, as a second case of a design."""


def grids(summary: Summary) -> list[Grid]:
    """The tables: final scores and their differences, scores over training; by task if there are several; tuning."""
    found = [final_grid(summary)]
    if any(method.against for method in summary.methods):
        found.append(differences_grid(summary))
    found.append(area_grid(summary))
    if len(summary.tasks) > 1:
        found.append(tasks_grid(summary))
    if any(method.tuned for method in summary.methods):
        found.append(tuning_grid(summary))
    return found


def final_grid(summary: Summary) -> Grid:
    """One row per arm: score of the last evaluation, its spread between seeds, and the runs that diverged."""
    rows = [
        [
            _named(method, summary),
            str(method.runs),
            f"{100 * method.start:.1f}",
            _with_ends(method.final),
            _with_ends(method.final_middle),
            UNKNOWN if method.std is None else f"{100 * method.std:.1f}",
            ", ".join(f"{count} {reason}" for reason, count in method.diverged.items()) or "0",
        ]
        for method in summary.methods
    ]
    missing = sum(method.missing for method in summary.methods)
    notes = [
        f"score of the last evaluation, with {100 * summary.confidence:g} % intervals over seeds, each by itself",
        "start: score before training",
        "IQM: mean of the middle half of the runs",
        "SD: standard deviation between seeds",
        "diverged runs count with the scores that they have, and as 0 from where they ended"
        + (f" ({counted(missing, 'run')} here)" if missing else ""),
    ]
    return Grid("Final score, in %", ["method", "runs", "start", "mean", "IQM", "SD", "diverged"], rows, notes)


def area_grid(summary: Summary) -> Grid:
    """One row per arm: mean score over training, and its difference from the baseline."""
    rows = [
        [
            _named(method, summary),
            _with_ends(method.area),
            _with_ends(method.area_middle),
            UNKNOWN if method.against is None else _points(method.against.area),
        ]
        for method in summary.methods
    ]
    notes = ["area under the learning curve, divided by its length", "difference: from the baseline, paired by seed"]
    return Grid("Score over training, in %", ["method", "mean", "IQM", "difference"], rows, notes)


def differences_grid(summary: Summary) -> Grid:
    """One row per arm besides the baseline: difference of the final score, and the test."""
    rows = [
        [
            method.arm,
            str(found.pairs),
            _points(found.final),
            UNKNOWN if found.over_problems is None else _ends(found.over_problems, "+.1f"),
            f"{found.improvement.value:.2f} [{found.improvement.low:.2f}, {found.improvement.high:.2f}]",
            _p(found.p_value),
            _p(found.p_adjusted),
            _size((found.final if summary.measure == "final" else found.area).detectable),
        ]
        for method in summary.methods
        if (found := method.against) is not None
    ]
    columns = ["method", "pairs", "difference", "over problems too", "P(better)", "p", "Holm p", "detects"]
    count = counted(summary.comparisons, "comparison")
    tested = "the final score" if summary.measure == "final" else "the score over training"
    notes = [
        "paired by seed",
        "over problems too: the interval for other seeds and other problems",
        "P(better): probability that a run ends with a higher score than one of the baseline, 0.5 if alike",
        f"p: sign-flip test over seeds, of {tested}",
        f"Holm p is adjusted for {count}, the intervals are not",
        f"detects: smallest true difference of {tested} that a comparison with this spread finds ({summary.alpha:g} "
        f"for all comparisons together, power {100 * summary.power:g} %)",
    ]
    if any(m.against and m.against.improvement.low == m.against.improvement.high != 0.5 for m in summary.methods):
        notes.append("where P(better) has an interval without width, all runs are on one side, which is not certainty")
    return Grid(f"Final score minus that of {summary.baseline}, in points", columns, rows, notes)


def tasks_grid(summary: Summary) -> Grid:
    """The final score by task."""
    rows = [
        [
            method.arm,
            *(UNKNOWN if task not in method.by_task else _with_ends(method.by_task[task]) for task in summary.tasks),
        ]
        for method in summary.methods
    ]
    runs = "every run was evaluated on all tasks" if summary.same_runs else "every task has its own runs"
    return Grid("Final score by task, in %", ["method", *summary.tasks], rows, [f"{runs}; all tasks weigh the same"])


def tuning_grid(summary: Summary) -> Grid:
    """What each arm was tuned over, and the setting that was chosen."""
    rows = []
    for method in summary.methods:
        found = method.tuned
        if found is None:
            rows.append([method.arm, "not tuned", UNKNOWN, "0", UNKNOWN, UNKNOWN])
            continue
        tried = "; ".join(f"{name}: {', '.join(values)}" for name, values in found.grid.items())
        ends = found.at_the_end()
        chosen = ", ".join(
            f"{name} = {value}" + (" (end of the grid)" if name in ends else "") for name, value in found.chosen.items()
        )
        seeds = ", ".join(map(str, found.seeds))
        rows.append([method.arm, tried, chosen, str(found.runs), seeds, str(found.diverged)])
    criteria = sorted({method.tuned.criterion for method in summary.methods if method.tuned is not None})
    return Grid(
        "Tuning",
        ["method", "tried", "chosen", "runs", "seeds", "diverged"],
        rows,
        [f"chosen: the largest mean {' or '.join(criteria)} score over the tuning seeds"],
    )


def design_grid(seeds: int, comparisons: int, stds: Sequence[float] = STDS) -> Grid:
    """What a design can find, before its first run: the smallest difference for several spreads between seeds.

    Args:
        seeds: of every arm.
        comparisons: number of arms besides the baseline.
        stds: standard deviations of the score between the seeds of an arm: of tuning runs, or supposed ones.

    Raises:
        ValueError: as `smallest_difference`.
    """
    rows = []
    for std in stds:
        found = [
            smallest_difference(seeds, std, comparisons=comparisons, paired=paired, correlation=c)
            for paired, c in ((True, CORRELATION), (True, 0.0), (False, 0.0))
        ]
        rows.append([f"{100 * std:.1f}", *map(_size, found)])
    least = smallest_p_value(seeds)
    notes = [
        f"{counted(seeds, 'seed')} per arm",
        f"two-sided {ALPHA:g} for {counted(comparisons, 'comparison')} together, power "
        f"{100 * POWER:g} %, t-test of the mean",
        f"the correlation is that of the two arms' scores over the same seeds: {CORRELATION:g}, or none",
    ]
    if least * comparisons > ALPHA:
        notes.append(
            f"the sign-flip test of the summary gives p >= {least:.3g} with {counted(seeds, 'pair')}, so it finds no "
            "difference at this level; use more seeds"
        )
    columns = ["SD between seeds, %", f"paired, correlation {CORRELATION:g}", "paired, no correlation", "unpaired"]
    return Grid("Smallest difference that this design finds, in points", columns, rows, notes)


def markdown(summary: Summary) -> str:
    """All tables, then what limits them."""
    parts = [headline(summary) + "\n", *map(grid_markdown, grids(summary))]
    if listed := limits(summary):
        parts.append("### Limits\n\n" + "\n".join(f"* {line}" for line in listed) + "\n")
    return "\n".join(parts)


def headline(summary: Summary) -> str:
    """What was compared, in a sentence."""
    arms = len(summary.methods)
    what = f"{counted(arms, 'method')} on {', '.join(summary.tasks)}"
    return f"{what}; baseline {summary.baseline}; seeds {_seeds(summary.seeds)}."


def limits(summary: Summary) -> list[str]:
    """The warnings, and the runs that are missing."""
    found = list(summary.warnings)
    if summary.incomplete:
        names = [f"{arm} on {task}, seed {seed}" for arm, task, seed in summary.incomplete]
        listed = "; ".join(names[:10] + ([f"and {len(names) - 10} more"] if len(names) > 10 else []))
        found.append(f"{len(names)} missing or unfinished, counted nowhere: {listed}")
    return found


def table(grid: Grid) -> Table:
    """A table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text: brackets are not markup
    drawn = Table(title=Text(grid.title), caption=Text("; ".join(grid.caption)), box=box.SIMPLE_HEAD, min_width=64)
    drawn.show_edge, drawn.pad_edge, drawn.padding = False, False, (0, 1, 0, 0)
    for place, column in enumerate(grid.columns):
        numbers = all(re.fullmatch(r"[-+.,\d\[\] ]+|none", row[place]) for row in grid.rows)
        # a number stays on one line, its header need not
        header = column.replace(" ", "\n") if numbers else column
        drawn.add_column(Text(header), justify="right" if place else "left", overflow="fold", no_wrap=numbers)
    for row in grid.rows:
        # an interval goes below its value, to fit into 80 characters
        drawn.add_row(*(Text(re.sub(r" ?\[(\S+), (\S+)\]", r"\n\1..\2", cell).strip()) for cell in row))
    return drawn


def write(summary: Summary, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `summary.json` and `summary.md` into a folder, each atomically.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    return (
        write_json_atomic(Path(folder) / JSON, summary.as_dict()),
        write_text_atomic(Path(folder) / MARKDOWN, markdown(summary)),
    )


def _with_ends(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} {_ends(estimate, '.1f')}"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} {_ends(estimate, '+.1f')}"


def _ends(estimate: Estimate, form: str) -> str:
    return f"[{100 * estimate.low:{form}}, {100 * estimate.high:{form}}]"


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _size(difference: float | None) -> str:
    return "none" if difference is None or difference > 1 else f"{100 * difference:.1f}"


def _named(method: Method, summary: Summary) -> str:
    return method.arm + BASELINE if method.arm == summary.baseline else method.arm


def _seeds(seeds: Sequence[int]) -> str:
    """`0-4, 7`"""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
