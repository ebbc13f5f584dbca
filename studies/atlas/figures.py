"""Tables and figures of the atlas from the committed results. Same matplotlib, same bytes.

python studies/atlas/figures.py            write docs/figures/atlas_*.svg, results/*.md and the marked tables of
                                           docs/evidence.md
python studies/atlas/figures.py --check    exit 1 if a committed file is not the one that would be written
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import best_weight
import collapse
import matplotlib.style
import numpy as np
from arms import METHODS, RATES, TASKS
from collapse_figure import foresight_figure
from hypotheses import (
    MATTERS,
    NINE,
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
from markdown_table import table
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from recorded import EVALUATED_EVERY, RESULTS, Stack, final, stacks, tuning

from dgpo.comparison import statistics
from dgpo.files import read_json, write_bytes_atomic

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
EVIDENCE = ROOT / "docs" / "evidence.md"
TABLES = RESULTS / "tables.md"
STYLE = {
    "svg.hashsalt": "dgpo",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.93",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}
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


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.04))


# --- figures ----------------------------------------------------------------------------------------------------------


def scores(found: list[Stack]) -> Figure:
    """Primary score of every method, by staleness and task, with 95 % intervals over seeds."""
    cells = final(found)
    figure = _figure(9.6, 4.6)
    axes = figure.subplots(1, len(TASKS), sharey=True)
    rows = {name: -i for i, name in enumerate(METHODS)}
    for axis, task in zip(axes, TASKS, strict=True):
        if (task, 1, "is") in cells:
            axis.axvline(100 * cells[task, 1, "is"].area.mean(), color="0.5", linewidth=0.8, linestyle="dotted")
        for offset, k in zip((0.22, 0, -0.22), KS, strict=True):
            for name, row in rows.items():
                if (task, k, name) not in cells:
                    continue
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
    figure = _figure(9.6, 5.6)
    axes = figure.subplots(2, len(TASKS), sharex=True)
    for row, k in zip(axes, (16, 64), strict=True):
        for axis, task in zip(row, TASKS, strict=True):
            for name, colour in DRAWN.items():
                if (task, k, name) not in cells:
                    continue
                stack = cells[task, k, name]
                steps = EVALUATED_EVERY * np.arange(len(stack.scores))
                middle, low, high = statistics.curve_band(stack.scores.T)
                axis.plot(steps, 100 * middle, color=colour, linewidth=1.3, label=name)
                axis.fill_between(steps, 100 * low, 100 * high, color=colour, alpha=0.12, linewidth=0)
            axis.set_title(f"{task}, k = {k}", loc="left")
            axis.set_ylim(0, 100)
    for axis in axes[-1]:
        axis.set_xlabel("updates")
    for axis in axes[:, 0]:
        axis.set_ylabel("score, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(DRAWN), frameon=False)
    return figure


def rates(found: list[Stack]) -> Figure:
    """Primary score on the tuning seeds against the learning rate at k = 16 and 64."""
    cells = tuning(found)
    figure = _figure(9.6, 5.2)
    axes = figure.subplots(2, len(TASKS))
    for row, k in zip(axes, (16, 64), strict=True):
        for axis, task in zip(row, TASKS, strict=True):
            for name, colour in DRAWN.items():
                if (task, k, name) not in cells:
                    continue
                stack = cells[task, k, name]
                means = [100 * stack.area[np.isclose(stack.rates, rate)].mean() for rate in RATES[task]]
                axis.plot(RATES[task], means, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=name)
            axis.set_xscale("log")
            axis.set_xticks(RATES[task], [f"{rate:g}" for rate in RATES[task]])
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_title(f"{task}, k = {k}", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("learning rate")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean score over training, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(DRAWN), frameon=False)
    return figure


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


def collapses(found: list[Stack]) -> str:
    """Failed runs of every method: final seeds at the chosen rate, and the tuning seeds at each of the four rates."""
    cells, tuned = final(found), tuning(found)
    columns = [(task, k) for task in TASKS for k in (16, 64) if all((task, k, name) in cells for name in METHODS)]
    rows = []
    for name in METHODS:
        row = [f"`{name}`"]
        for task, k in columns:
            stack = tuned[task, k, name]
            fell = np.array(failed(stack))
            each = "/".join(str(int(fell[np.isclose(stack.rates, rate)].sum())) for rate in RATES[task])
            row.append(f"{sum(failed(cells[task, k, name]))}; {each}")
        rows.append(row)
    return _numbers(("method", *(f"{task}, k = {k}" for task, k in columns)), rows)


def metric_table(found: list[Stack], name: str, summary: Callable[[np.ndarray], float], form: str) -> str:
    """A summary over updates and final seeds of a recorded metric, by method, task and k."""
    cells = final(found)
    columns = [(task, k) for task in TASKS for k in (16, 64) if all((task, k, method) in cells for method in METHODS)]
    return _numbers(
        ("method", *(f"{task}, k = {k}" for task, k in columns)),
        (
            (
                f"`{method}`",
                *(format(summary(cells[task, k, method].metrics[name].astype(float)), form) for task, k in columns),
            )
            for method in METHODS
        ),
    )


def chosen(found: list[Stack]) -> str:
    """The learning rate that tuning chose; * at an end of its grid."""
    cells = final(found)
    columns = [(task, k) for task in TASKS for k in KS if any((task, k, name) in cells for name in METHODS)]

    def shown(task: str, k: int, name: str) -> str:
        if (task, k, name) not in cells:
            return ""
        rate = float(cells[task, k, name].rates[0])
        return f"{rate:g}" + ("*" if rate in (RATES[task][0], RATES[task][-1]) else "")

    return _numbers(
        ("method", *(f"{task}, k = {k}" for task, k in columns)),
        ((f"`{name}`", *(shown(task, k, name) for task, k in columns)) for name in METHODS),
    )


def means(found: list[Stack], which: Callable[[Stack], np.ndarray]) -> str:
    """Mean and standard deviation over the final seeds, in percent, of every method."""
    cells = final(found)
    columns = [(task, k) for task in TASKS for k in KS if any((task, k, name) in cells for name in METHODS)]

    def shown(key: tuple[str, int, str]) -> str:
        if key not in cells:
            return ""
        values = 100 * which(cells[key]).astype(float)
        return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"

    return _numbers(
        ("method", *(f"{task}, k = {k}" for task, k in columns)),
        ((f"`{name}`", *(shown((task, k, name)) for task, k in columns)) for name in METHODS),
    )


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
    if not given:
        return ""
    loss = {name: max(max(s[n] for n in NINE) - s[name] for s in given.values()) for name in NINE}
    name = min(loss, key=loss.__getitem__)
    word = "supported" if loss[name] < 0.02 and len(given) >= 2 else "not supported"
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
    if exponents(found):
        parts["hypothesis-8"] = f"{exponent_table(found)}\n\n{one_setting(found)}"
    others = exploration(found)
    parts["hypothesis-1"] += "\n\nExploration, not registered: without the three methods of hypothesis 2,\n\n"
    parts["hypothesis-1"] += differences(c for c in others if "hard" in c.what)
    parts["mass"] = "Exploration, not registered:\n\n" + differences(c for c in others if "grpo" in c.what)
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


def tables_page(found: list[Stack], registered: list[Comparison]) -> str:
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
    return (
        "# Tables of the staleness atlas\n\nWritten by `python studies/atlas/figures.py`; do not edit.\n\n"
        f"{runs} runs, {hours:.2f} CPU-hours.\n\n{body}\n"
    )


def written(title: str, tables: str) -> bytes:
    """A page of tables."""
    return f"# {title}\n\nWritten by `python studies/atlas/figures.py`; do not edit.\n\n{tables.strip()}\n".encode()


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with every marked part replaced.

    Raises:
        ValueError: a part has no marker.
    """
    for name, text in parts.items():
        marked = re.compile(f"(<!-- atlas: {re.escape(name)} -->\n).*?(<!-- end -->\n)", re.DOTALL)
        if not marked.search(page):
            raise ValueError(f"docs/evidence.md has no <!-- atlas: {name} --> ... <!-- end -->")
        page = marked.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", page)  # type: ignore[misc]
    return page


def svg(figure: Callable[[], Figure]) -> bytes:
    """A figure as the bytes of an SVG file."""
    with matplotlib.style.context(["default", STYLE]):
        stream = io.BytesIO()
        figure().savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def main(argv: list[str]) -> int:
    """Write everything, or compare it with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    arguments = parser.parse_args(argv)
    found = stacks()
    registered = comparisons(found)
    drawn: dict[Path, bytes] = {
        FIGURES / "atlas_scores.svg": svg(lambda: scores(found)),
        FIGURES / "atlas_curves.svg": svg(lambda: curves(found)),
        FIGURES / "atlas_rates.svg": svg(lambda: rates(found)),
        FIGURES / "atlas_collapse.svg": svg(lambda: foresight_figure(read_json(RESULTS / "collapse.json"))),
        FIGURES / "atlas_best_weight.svg": svg(best_weight.figure),
        RESULTS / "collapse.md": written("What foresees a collapse", collapse.tables()),
        RESULTS / "best_weight.md": written("The weight that would have been best", best_weight.tables()),
        TABLES: tables_page(found, registered).encode(),
        EVIDENCE: filled(EVIDENCE.read_text("utf-8"), fragments(found, registered)).encode(),
    }
    stale = [path for path, content in drawn.items() if not path.is_file() or path.read_bytes() != content]
    if arguments.check:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            print(f"out of date: {names}; run: make atlas-figures", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        write_bytes_atomic(path, drawn[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
