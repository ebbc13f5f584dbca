"""Tables of an evaluation, for terminals and in Markdown: one row per benchmark as in papers, or one per estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgpo.counts import counted
from dgpo.runs.results import RATES, Evaluation

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "-"


@dataclass(frozen=True)
class Grid:
    """A table in no particular format: the first column is text, all others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: Sequence[str]


def table(evaluation: Evaluation) -> Table:
    """For a terminal: one row per estimate if there is one benchmark, otherwise one row per benchmark."""
    from rich import box
    from rich.table import Table

    single = len(evaluation.benchmarks) == 1
    grid = metrics_grid(evaluation, next(iter(evaluation.benchmarks))) if single else benchmarks_grid(evaluation)
    # rich folds a caption to the width of its table
    drawn = Table(title=grid.title, min_width=64, caption="\n".join(grid.caption))
    if not single:  # to fit into 80 characters
        drawn.box, drawn.show_edge, drawn.pad_edge = box.SIMPLE_HEAD, False, False
        drawn.padding = (0, 1, 0, 0)
    for place, column in enumerate(grid.columns):
        header = column if single else column.replace("truncated,", "cut").replace(" ", "\n", 1)
        drawn.add_column(header, justify="right" if place else "left", no_wrap=True)
    for number, row in enumerate(grid.rows):
        # a line above the average, which is the last row
        drawn.add_row(*row, end_section=not single and number == len(grid.rows) - 2)
    return drawn


def markdown(evaluation: Evaluation) -> str:
    """The table of the benchmarks, then the estimates of each with their intervals."""
    grids = [benchmarks_grid(evaluation), *(metrics_grid(evaluation, name) for name in evaluation.benchmarks)]
    return "\n".join(grid_markdown(grid) for grid in grids)


def benchmarks_grid(evaluation: Evaluation) -> Grid:
    """One row per benchmark and their unweighted average, in percent."""
    names = list(dict.fromkeys(name for result in evaluation.benchmarks.values() for name in result.estimates))
    n = evaluation.sampling["samples"]
    shown = [(name, header) for name, header in _headers(n) if name in names]
    rows = []
    for benchmark, result in evaluation.benchmarks.items():
        counted = f"{len(result.per_problem)}" + (f" of {result.problems}" if result.excluded else "")
        values = [_with_error(result.estimates.get(name), name) for name, _ in shown]
        rows.append([benchmark, counted, *values, *_rate_cells(result.rates)])
    if len(rows) > 1:
        values = [_with_error(evaluation.average.get(name), name) for name, _ in shown]
        rows.append(["average", "", *values, "", "", ""])
    columns = ["benchmark", "N", *(header for _, header in shown), "truncated, %", "no answer, %", "mean tokens"]
    notes = [f"P@{n} is best@{n}: n drawn with replacement, as verl does; pass@{n} is unbiased"] if n else []
    return Grid(f"{evaluation.model}, in %", columns, rows, [*caption(evaluation), *notes])


def metrics_grid(evaluation: Evaluation, benchmark: str) -> Grid:
    """One row per estimate: value, standard error and 95 % interval over problems."""
    result = evaluation.benchmarks[benchmark]
    rows = [
        [
            name,
            f"{100 * estimate.value:.1f}",
            f"{100 * estimate.se:.1f}",
            f"{100 * estimate.low:.1f} .. {100 * estimate.high:.1f}",
        ]
        for name, estimate in result.estimates.items()
    ]
    title = f"{benchmark}, {counted(result.problems, 'problem')}"
    columns = ["metric", "value, %", "standard error", "95 % interval"]
    return Grid(title, columns, rows, caption(evaluation, benchmark))


def caption(evaluation: Evaluation, benchmark: str | None = None) -> list[str]:
    """How the results were obtained, and their caveats; with the lengths of `benchmark`, if given."""
    sampling = evaluation.sampling
    if sampling["samples"] == 0:
        drawn = "greedy only"
    elif sampling["temperature"] is None:
        drawn = f"{counted(sampling['samples'], 'sample')}; how they were drawn is not known"
    else:
        drawn = (
            f"{counted(sampling['samples'], 'sample')} at temperature {sampling['temperature']:g}, "
            f"top_p {sampling['top_p']:g}, seed {sampling['seed']}"
        )
    budget = sampling["max_new_tokens"]
    lengths = [f"at most {counted(budget, 'new token')}"] if budget is not None else []
    if benchmark is not None:
        rates = evaluation.benchmarks[benchmark].rates
        truncated, unanswered, mean = (rates[name] for name in ("truncated", "no_answer", "mean_tokens"))
        lengths += [f"{100 * truncated:.1f} % truncated"] if truncated is not None else []
        lengths += [f"{100 * unanswered:.1f} % no answer"] if unanswered else []
        lengths += [f"{mean:.1f} tokens on average"] if mean is not None else []
    graders = list(dict.fromkeys(result.grader for result in evaluation.benchmarks.values()))
    prompt = evaluation.prompt.get("name")
    told = [drawn, ", ".join(lengths), f"{f'prompt {prompt}, ' if prompt else ''}graded by {', '.join(graders)}"]
    lines = [line for line in told if line]
    for name, result in evaluation.benchmarks.items():
        if benchmark in (None, name):
            lines += detectable(result.detectable, "" if benchmark else f"{name}: ")
        found = [f"{reason} {100 * (result.rates[reason] or 0):.2g} %" for reason in RATES[1:] if result.rates[reason]]
        if found:
            lines.append(f"{name}: {', '.join(found)}")
        if result.excluded:
            lines.append(f"{name}: not counted, the reference cannot be used: {', '.join(result.excluded)}")
    return lines


def detectable(found: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The smallest detectable difference of a benchmark as a line; none if nothing was counted."""
    if found.get("unpaired") is None:
        return []
    shown = [f"{_points(found['unpaired'])} unpaired (other problems)"]
    if found["paired"] is not None:
        shown.append(f"{_points(found['paired'])} paired (same problems) at best")
    return [f"{prefix}smallest detectable difference of {found['metric']} (5 %, power 80 %): {', '.join(shown)}"]


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points" if difference <= 1 else "none"


def _headers(n: int) -> list[tuple[str, str]]:
    return [
        ("greedy", "greedy"),
        (f"avg@{n}", f"A@{n} ± SE"),
        (f"best@{n}", f"P@{n}"),
        (f"pass@{n}", f"pass@{n}"),
        (f"maj@{n}", f"maj@{n}"),
    ]


def _with_error(estimate: Any, name: str) -> str:
    """An `Estimate`, or an average as a mapping; the error only where the header announces one."""
    if estimate is None:
        return UNKNOWN
    value, error = (estimate["value"], estimate["se"]) if isinstance(estimate, dict) else (estimate.value, estimate.se)
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if name.startswith("avg@") else "")


def _rate_cells(rates: dict[str, float | None]) -> list[str]:
    truncated, unanswered, tokens = (rates[name] for name in ("truncated", "no_answer", "mean_tokens"))
    percents = [UNKNOWN if rate is None else f"{100 * rate:.1f}" for rate in (truncated, unanswered)]
    return [*percents, UNKNOWN if tokens is None else f"{tokens:.0f}"]


def grid_markdown(grid: Grid) -> str:
    """Title, table and caption."""
    lines = [grid.columns, ["---", *["---:"] * (len(grid.columns) - 1)], *grid.rows]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"### {grid.title}\n\n{body}\n\n{'; '.join(grid.caption)}.\n"
