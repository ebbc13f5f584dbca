"""Tables and figures of the atlas from the committed results. Same matplotlib, same bytes.

python studies/atlas/figures.py            write docs/figures/atlas_*.svg, results/*.md and the marked tables of
                                           docs/evidence.md
python studies/atlas/figures.py --check    exit 1 if a committed file is not the one that would be written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import best_weight_view
import collapse_view
import numpy as np
from arms import METHODS, RATES, TASKS
from hypotheses import (
    MATTERS,
    NINE,
    STALE,
    Comparison,
    Failures,
    comparisons,
    exploration,
    exponents,
    failed,
    failures,
    judged,
    ranks,
)
from markdown_table import filled, table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recorded import EVALUATED_EVERY, RESULTS, Stack, final, stacks, tuning

from dgpo.comparison import statistics
from dgpo.files import read_json

sys.path.append(str(Path(__file__).parents[2] / "docs" / "figures"))
import drawing

EVIDENCE = drawing.FOLDER.parent / "evidence.md"
KS = (4, 16, 64)
COLOURS = {4: "#56B4E9", 16: "#0072B2", 64: "#D55E00"}
"""Updates per generation -> colour."""
DRAWN = {
    "is": "#000000",
    "grpo": "#999999",
    "gppo": "#D55E00",
    "cispo_two_sided": "#E69F00",
    "sapo": "#009E73",
    "maspo": "#CC79A7",
    "dgpo(1,2)": "#0072B2",
}
"""Methods of the learning curves."""


# --- figures ----------------------------------------------------------------------------------------------------------


def scores(found: list[Stack]) -> Figure:
    """Primary score of every method, by staleness and task, with 95 % intervals over seeds."""
    cells = final(found)
    figure = drawing.blank(9.6, 4.6)
    axes = figure.subplots(1, len(TASKS), sharey=True)
    rows = {name: -i for i, name in enumerate(METHODS)}
    for axis, task in zip(axes, TASKS, strict=True):
        axis.axvline(100 * cells[task, 1, "is"].area.mean(), color="0.5", linewidth=0.8, linestyle="dotted")
        for offset, k in zip((0.22, 0, -0.22), KS, strict=True):
            for name, row in rows.items():
                estimate = statistics.mean([cells[task, k, name].area])
                points = [100 * value for value in (estimate.value, estimate.low, estimate.high)]
                axis.plot(points[1:], [row + offset] * 2, color=COLOURS[k], linewidth=1.2)
                axis.plot(points[:1], [row + offset], color=COLOURS[k], marker="o", markersize=3.5)
        axis.set_title(task, loc="left")
        axis.set_xlabel("mean score over training, %")
        axis.set_xlim(0, 90)
    axes[0].set_yticks(list(rows.values()), list(rows))
    handles = [axes[0].plot([], [], color=COLOURS[k], marker="o", markersize=3.5, label=f"k = {k}")[0] for k in KS]
    handles.append(axes[0].plot([], [], color="0.5", linestyle="dotted", label="k = 1, every method")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def curves(found: list[Stack]) -> Figure:
    """Score against updates at k = 16 and 64, mean and 95 % band over seeds."""
    cells = final(found)
    figure = drawing.blank(9.6, 5.6)
    axes = figure.subplots(len(STALE), len(TASKS), sharex=True)
    for axis, task, k in _panels(axes):
        for name, colour in DRAWN.items():
            stack = cells[task, k, name]
            steps = EVALUATED_EVERY * np.arange(len(stack.scores))
            middle, low, high = statistics.curve_band(stack.scores.T)
            axis.plot(steps, 100 * middle, color=colour, linewidth=1.3, label=name)
            axis.fill_between(steps, 100 * low, 100 * high, color=colour, alpha=0.12, linewidth=0)
        axis.set_ylim(0, 100)
    _label(figure, axes, "updates", "score, %")
    return figure


def rates(found: list[Stack]) -> Figure:
    """Primary score on the tuning seeds against the learning rate at k = 16 and 64."""
    cells = tuning(found)
    figure = drawing.blank(9.6, 5.2)
    axes = figure.subplots(len(STALE), len(TASKS))
    for axis, task, k in _panels(axes):
        for name, colour in DRAWN.items():
            stack = cells[task, k, name]
            means = [100 * stack.area[np.isclose(stack.rates, rate)].mean() for rate in RATES[task]]
            axis.plot(RATES[task], means, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=name)
        axis.set_xscale("log")
        axis.set_xticks(RATES[task], [f"{rate:g}" for rate in RATES[task]])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
    _label(figure, axes, "learning rate", "mean score over training, %")
    return figure


def _panels(axes: NDArray[Any]) -> Iterator[tuple[Axes, str, int]]:
    """One for each staleness (row) and task (column), with its title."""
    for row, k in zip(axes, STALE, strict=True):
        for axis, task in zip(row, TASKS, strict=True):
            axis.set_title(f"{task}, k = {k}", loc="left")
            yield axis, task, k


def _label(figure: Figure, axes: NDArray[Any], x: str, y: str) -> None:
    for axis in axes[-1]:
        axis.set_xlabel(x)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(DRAWN), frameon=False)


# --- tables -----------------------------------------------------------------------------------------------------------


def _numbers(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return table(head, rows, numbers=True)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _points(value: float) -> str:
    # no "-0.0"
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def differences(given: Iterable[Comparison]) -> str:
    """Registered comparisons in points, the final score beside the primary one."""
    return _numbers(
        ("task, k", "comparison", "difference, points (95 %)", "adjusted p", "final score", "verdict"),
        (
            (
                f"{c.task}, {'' if c.k is None else c.k}".rstrip(", "),
                c.what,
                f"{_points(c.difference)} ({_points(c.low)} … {_points(c.high)})",
                _p(c.adjusted),
                _points(c.final),
                c.verdict,
            )
            for c in given
        ),
    )


def failure_table(given: Iterable[Failures]) -> str:
    """Hypothesis 2."""
    return _numbers(
        ("task, k", "GPPO, CE-GPPO, CISPO two-sided", "DGPO(1,2), DGPO(2,2)", "adjusted p", "verdict"),
        (
            (
                f"{f.task}, {f.k}",
                f"{f.failed[0]} of {f.runs[0]}",
                f"{f.failed[1]} of {f.runs[1]}",
                _p(f.adjusted),
                f.verdict,
            )
            for f in given
        ),
    )


def verdict(given: Iterable[Comparison | Failures]) -> str:
    """The word of the registered rule for the comparisons of a hypothesis."""
    by_task: dict[str, list[str]] = {}
    for comparison in given:
        by_task.setdefault(comparison.task, []).append(comparison.verdict)
    return judged(by_task)


def by_method(staleness: Iterable[int], shown: Callable[[tuple[str, int, str]], str]) -> str:
    """A row for each method, a column for each task and staleness; `shown` has (task, k, method)."""
    columns = [(task, k) for task in TASKS for k in staleness]
    return _numbers(
        ("method", *(f"{task}, k = {k}" for task, k in columns)),
        ((f"`{name}`", *(shown((task, k, name)) for task, k in columns)) for name in METHODS),
    )


def collapses(found: list[Stack]) -> str:
    """Failed runs of every method: final seeds at the chosen rate, and the tuning seeds at each of the four rates."""
    cells, tuned = final(found), tuning(found)

    def shown(cell: tuple[str, int, str]) -> str:
        fell, rates = np.array(failed(tuned[cell])), tuned[cell].rates
        each = "/".join(str(int(fell[np.isclose(rates, rate)].sum())) for rate in RATES[cell[0]])
        return f"{sum(failed(cells[cell]))}; {each}"

    return by_method(STALE, shown)


def metric_table(found: list[Stack], name: str, summary: Callable[[NDArray[Any]], float], form: str) -> str:
    """A summary over updates and final seeds of a recorded metric."""
    cells = final(found)
    return by_method(STALE, lambda cell: format(summary(cells[cell].metrics[name].astype(float)), form))


def chosen(found: list[Stack]) -> str:
    """The learning rate that tuning chose; * at an end of its grid."""
    cells = final(found)

    def shown(cell: tuple[str, int, str]) -> str:
        rate, grid = float(cells[cell].rates[0]), RATES[cell[0]]
        return f"{rate:g}" + ("*" if rate in (grid[0], grid[-1]) else "")

    return by_method(KS, shown)


def means(found: list[Stack], which: Callable[[Stack], NDArray[Any]]) -> str:
    """Mean and standard deviation over the final seeds, in percent."""
    cells = final(found)

    def shown(cell: tuple[str, int, str]) -> str:
        values = 100 * which(cells[cell]).astype(float)
        return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"

    return by_method(KS, shown)


def exponent_table(found: list[Stack]) -> str:
    """Hypothesis 8: mean primary score of DGPO's exponents at k = 16, the best of the nine in bold."""
    given = exponents(found)
    best = {task: max(NINE, key=lambda name, task=task: given[task][name]) for task in given}  # type: ignore[misc]
    names = list(next(iter(given.values()), {}))
    return _numbers(
        ("setting", *given),
        (
            (
                f"`{name}`",
                *(
                    (f"**{100 * s[name]:.1f}**" if best[task] == name else f"{100 * s[name]:.1f}")
                    for task, s in given.items()
                ),
            )
            for name in names
        ),
    )


def one_setting(found: list[Stack]) -> str:
    """How far the best single setting is from each task's best."""
    given = exponents(found)
    loss = {name: max(max(s[n] for n in NINE) - s[name] for s in given.values()) for name in NINE}
    name = min(loss, key=loss.__getitem__)
    word = "supported" if loss[name] < MATTERS else "not supported"
    return (
        f"The setting whose largest distance from a task's best is smallest is `{name}`: "
        f"{100 * loss[name]:.1f} points. By the registered rule, hypothesis 8 is **{word}**."
    )


def fragments(found: list[Stack], registered: list[Comparison]) -> dict[str, str]:
    """Marker of docs/evidence.md -> what stands between it and its end."""
    parts = {}
    for number in (1, 3, 4, 5, 6, 7):
        mine = [c for c in registered if c.hypothesis == number]
        if number == 7:
            better = [c for c in mine if c.verdict == "yes" and c.difference >= MATTERS]
            word = f"contradicted by {len(better)} of {len(mine)} comparisons" if better else "not contradicted"
        else:
            word = verdict(mine)
        last = f"By the registered rule, hypothesis {number} is **{word}**."
        if number in (1, 3, 5, 6):
            parts[f"hypothesis-{number}"] = f"{differences(mine)}\n\n{last}"
        else:
            certain = [c for c in mine if c.verdict != "open" and abs(c.difference) >= MATTERS]
            parts[f"hypothesis-{number}"] = (
                f"Of {len(mine)} comparisons {sum(c.verdict == 'yes' for c in mine)} are *yes*, "
                f"{sum(c.verdict == 'no' for c in mine)} *no*, {sum(c.verdict == 'open' for c in mine)} open. Those "
                f"that are not open, and at least 2 points:\n\n{differences(certain)}\n\n{last}"
            )
    agreement = "; ".join(f"{where}: {tau:+.2f}" for where, tau in ranks(found).items())
    parts["hypothesis-4"] += f" Agreement of the order of all methods between tasks (Kendall's τ): {agreement}."
    fell = failures(found)
    parts["hypothesis-2"] = f"{failure_table(fell)}\n\nBy the registered rule, hypothesis 2 is **{verdict(fell)}**."
    parts["hypothesis-8"] = f"{exponent_table(found)}\n\n{one_setting(found)}"
    others = exploration(found)
    parts["hypothesis-1"] += "\n\nExploration, not registered: without the three methods of hypothesis 2,\n\n"
    parts["hypothesis-1"] += differences(c for c in others if "hard" in c.what)
    parts["hypothesis-3"] += "\n\nExploration, not registered:\n\n"
    parts["hypothesis-3"] += differences(c for c in others if c.what == "dgpo(1,2) - grpo")
    bounds = [c for c in others if c.what in ("dac - grpo", "dppo_tv - grpo")]
    parts["mass"] = f"Exploration, not registered:\n\n{differences(bounds)}"
    parts["entropy"] = "Mean entropy per token, in nats, over the last 64 updates:\n\n" + metric_table(
        found, "entropy", lambda values: float(values[-64:].mean()), ".3f"
    )
    parts["gradient-norms"] = "99th percentile of the gradient norm before clipping, over updates and final seeds:\n\n"
    parts["gradient-norms"] += metric_table(found, "grad_norm", lambda values: float(np.quantile(values, 0.99)), ".3g")
    parts["gradient-norms"] += "\n\nLargest weight of a token in any update of a final run:\n\n" + metric_table(
        found, "largest_weight", lambda values: float(values.max()), ".3g"
    )
    parts["collapses"] = (
        "Runs that collapsed: of 16 final seeds at the chosen learning rate; and of four tuning seeds at each of the "
        f"four rates, lowest first:\n\n{collapses(found)}"
    )
    parts["area"] = "Mean score over training, in percent, ± standard deviation over seeds:\n\n" + means(
        found, lambda stack: stack.area
    )
    return parts


def tables_page(found: list[Stack], registered: list[Comparison]) -> bytes:
    """results/tables.md."""
    hours = sum(stack.cpu_seconds for stack in found) / 3600
    runs = sum(len(stack.seeds) for stack in found)
    sections = {
        "Mean score over training, %, ± standard deviation over 16 seeds": means(found, lambda stack: stack.area),
        "Final score, %, ± standard deviation over 16 seeds": means(found, lambda stack: stack.scores[-1]),
        "Chosen learning rates (* at an end of the grid)": chosen(found),
        "Registered comparisons": differences(registered),
        "Collapses: final seeds; tuning seeds by learning rate": collapses(found),
        "Collapses of hypothesis 2": failure_table(failures(found)),
        "Exponents of DGPO at k = 16": f"{exponent_table(found)}\n\n{one_setting(found)}",
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return written("Tables of the staleness atlas", f"{runs} runs, {hours:.2f} CPU-hours.\n\n{body}")


def written(title: str, tables: str) -> bytes:
    """A page of tables."""
    return f"# {title}\n\nWritten by `python studies/atlas/figures.py`; do not edit.\n\n{tables.strip()}\n".encode()


def main(argv: list[str]) -> int:
    """Write everything, or compare it with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    arguments = parser.parse_args(argv)
    found = stacks()
    registered = comparisons(found)
    foresight, best = read_json(RESULTS / "collapse.json"), read_json(RESULTS / "best_weight.json")
    drawn: dict[Path, bytes] = {
        drawing.FOLDER / "atlas_scores.svg": drawing.svg(lambda: scores(found)),
        drawing.FOLDER / "atlas_curves.svg": drawing.svg(lambda: curves(found)),
        drawing.FOLDER / "atlas_rates.svg": drawing.svg(lambda: rates(found)),
        drawing.FOLDER / "atlas_collapse.svg": drawing.svg(lambda: collapse_view.figure(foresight)),
        drawing.FOLDER / "atlas_best_weight.svg": drawing.svg(lambda: best_weight_view.figure(best)),
        RESULTS / "collapse.md": written("What foresees a collapse", collapse_view.tables(foresight)),
        RESULTS / "best_weight.md": written("The weight that would have been best", best_weight_view.tables(best)),
        RESULTS / "tables.md": tables_page(found, registered),
        EVIDENCE: filled(EVIDENCE.read_text("utf-8"), fragments(found, registered), "atlas").encode(),
    }
    return drawing.write(drawn, check=arguments.check, command="make atlas-figures")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
