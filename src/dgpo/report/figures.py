"""Static figures of runs for papers: SVG, PDF or PNG, the same bytes for the same input."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo.diagnostics.naming import label
from dgpo.diagnostics.replay import replay
from dgpo.files import write_bytes_atomic
from dgpo.installation import require
from dgpo.objectives import Objective
from dgpo.report import series, tokens, weight_curves
from dgpo.report.data import NO_TOKENS, labels
from dgpo.report.regions import drawn_regions
from dgpo.report.sample import sample
from dgpo.runs.info import objective_of
from dgpo.runs.run import Run, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0528a", "#2a9fd6", "#b37700", "#6a4c9c", "#5a5a5a")
METHOD_COLOURS = ("#332288", "#aa4499", "#117733", "#cc6677", "#1f8a99", "#882255", "#8a8a20", "#444444")
REGION_COLOURS = {"left": "#882255", "right": "#2a9d8f", "reverse_left": "#a39a2a", "reverse_right": "#cc6677"}
"""As in the page's style, light theme."""

METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {"Software": None},
}
"""File ending -> metadata that keep time and version out of the file."""

RATIOS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20, 100, 1000)


def plot(
    kind: str,
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    methods: Sequence[Objective] = (),
) -> Path:
    """Draw one figure of some runs and write it atomically.

    Args:
        kind: one of `KINDS`: "curves" over updates; "regions", shares outside the boundaries; "weights", w and w/π over
            the ratio; "histogram", the tokens on the weight curves.
        runs: folders that were recorded to.
        out: the file; its ending, .svg, .pdf or .png, is its format.
        methods: for "weights" and "histogram"; those of the runs if none are given.

    Raises:
        ValueError: if the kind or ending is unknown, or a run lacks the data of the figure; names the run.
        OSError: if the file cannot be written.
    """
    out = Path(out)
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is unknown; expected one of {', '.join(KINDS)}")
    if out.suffix.lower() not in METADATA:
        raise ValueError(f"{str(out)!r} has the ending {out.suffix!r}; expected one of {', '.join(METADATA)}")
    named = dict(zip(labels([Path(path) for path in runs]), map(load, runs), strict=True))
    return _save(KINDS[kind](named, methods), out)


def curves(runs: Mapping[str, Run], methods: Sequence[Objective] = ()) -> Figure:
    """Reward, groups without spread, entropy, KL, gradient norm and response length, if logged."""
    found = {name: series.charts(run.log) for name, run in runs.items()}
    drawn = [
        name for name, chart in series.CHARTS.items() if chart.main and any(lines[name] for lines in found.values())
    ]
    if not drawn:
        raise ValueError(f"{', '.join(map(repr, runs))}: no metrics were recorded, so there are no curves to plot")
    figure = _figure(3.3 * min(3, len(drawn)), 2.5 * math.ceil(len(drawn) / 3))
    for place, chart in enumerate(drawn):
        axes = figure.add_subplot(math.ceil(len(drawn) / 3), min(3, len(drawn)), place + 1)
        several = len({line["name"] for lines in found.values() for line in lines[chart]}) > 1
        for number, (name, lines) in enumerate(found.items()):
            for style, line in zip(("-", "--", ":"), lines[chart], strict=False):
                y = [math.nan if value is None else value for value in line["y"]]
                words = f"{name}, {line['name']}" if several else name
                axes.plot(line["x"], y, style, color=RUN_COLOURS[number % 8], lw=1.2, label=_plain(words))
        axes.set(title=series.CHARTS[chart].title, xlabel="update", ylabel=series.CHARTS[chart].unit)
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
        if several or (place == 0 and len(runs) > 1):
            axes.legend(fontsize=7)
    return figure


def regions(runs: Mapping[str, Run], methods: Sequence[Objective] = ()) -> Figure:
    """Tokens and gradient mass outside the boundaries, over the run and within a generation, one row per run."""
    figure = _figure(11, 2.6 * len(runs))
    first: dict[int, Axes] = {}
    for row, (name, run) in enumerate(runs.items()):
        part = sample(run)
        read = tokens.moved(part, part.chosen, objective_of(run.info))
        replayed = replay(part, [], updates=read.updates) if _some(read) else None
        found = drawn_regions(part, run.log, replayed)
        panels = [(where, kind) for where in ("over", "within") for kind in found[where]]
        if not panels:
            raise ValueError(f"{name!r}: {NO_TOKENS}, and its log has no regions")
        for where, kind in panels:
            place = 1 + 2 * (where == "within") + (kind == "mass")
            # the same scale for every run
            axes = figure.add_subplot(len(runs), 4, 4 * row + place, sharey=first.get(place))
            first.setdefault(place, axes)
            _outside(axes, found[where][kind], within=where == "within")
            axes.set_ylabel("tokens outside, %" if kind == "fraction" else "Σ|A·w| outside, %")
            axes.set_title(_plain(name) if len(runs) > 1 else "")
            if row == 0 and (where, kind) == panels[0]:
                axes.legend(fontsize=7)
    return figure


def _outside(axes: Axes, found: Mapping[str, Sequence[float | None]], *, within: bool) -> None:
    x = [value + within for value in found["x"] if value is not None]
    y = {region: [100 * (value or 0.0) for value in found[region]] for region in REGION_COLOURS}
    words = [region.replace("_", " ") for region in y]
    if not within:
        axes.stackplot(x, *y.values(), colors=list(REGION_COLOURS.values()), labels=words)
    else:
        floor = [0.0] * len(x)
        for (region, heights), name in zip(y.items(), words, strict=True):
            axes.bar(x, heights, 0.6, bottom=floor, color=REGION_COLOURS[region], label=name)
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.set_xticks(x)
    axes.set_xlabel("update within its generation" if within else "update")


def weights(runs: Mapping[str, Run], methods: Sequence[Objective] = ()) -> Figure:
    """w and w/π over the ratio: rows are the bases, columns the signs of A."""
    return _weights(runs, methods, bases=("log", "prob"), bars=False)


def histogram(runs: Mapping[str, Run], methods: Sequence[Objective] = ()) -> Figure:
    """The tokens over the ratio, on the weights on ∇log π."""
    return _weights(runs, methods, bases=("log",), bars=True)


KINDS: dict[str, Callable[[Mapping[str, Run], Sequence[Objective]], Figure]] = {
    "weights": weights,
    "regions": regions,
    "curves": curves,
    "histogram": histogram,
}


def _weights(runs: Mapping[str, Run], methods: Sequence[Objective], *, bases: Sequence[str], bars: bool) -> Figure:
    parts = {name: sample(run) for name, run in runs.items()}
    read = {name: tokens.moved(part, part.chosen, objective_of(runs[name].info)) for name, part in parts.items()}
    if bars and (without := [name for name, found in read.items() if not _some(found)]):
        raise ValueError(f"{without[0]!r}: {NO_TOKENS}, so there is no histogram of them")
    own = {label(one): one for run in runs.values() if (one := objective_of(run.info)) is not None}
    chosen = {label(one): one for one in methods} or own or weight_curves.registered()
    widest = tokens.reach(list(read.values()))
    grid = weight_curves.grid(widest)
    _, old_prob = [*tokens.old_probs(list(read.values())), ("", 0.5)][0]
    figure = _figure(9, 3.2 * len(bases))
    for row, basis in enumerate(bases):
        for column, (sign, advantage) in enumerate((("negative", -1.0), ("positive", 1.0))):
            axes = figure.add_subplot(len(bases), 2, 2 * row + column + 1)
            highest = 1.0
            for number, (name, objective) in enumerate(chosen.items()):
                w = weight_curves.weights(objective, grid, old_prob, advantage)
                points = [(x, y) for x, y in zip(grid, w, strict=True) if y is not None]
                y = [_based(y, x, old_prob, basis) for x, y in points]
                highest = max(highest, *(one for one in y if math.isfinite(one)))
                style = ("-", "--", "-.", ":")[number // 8 % 4]
                axes.plot([x for x, _ in points], y, style, color=METHOD_COLOURS[number % 8], label=_plain(name))
            _ratio_axis(axes, widest)
            axes.set_xlabel(f"importance ratio r (weights at π_old = {old_prob:.2g})")
            axes.set(ylabel="w" if basis == "log" else f"w/π at π_old = {old_prob:.2g}")
            axes.set_title("A < 0" if advantage < 0 else "A > 0")
            if basis == "prob":
                axes.set_yscale("log")
                axes.set_ylim(bottom=max(axes.get_ylim()[0], highest / 1e4))
                _plain_ticks(axes)
            else:
                axes.set_ylim(0, 1.05 * min(highest, 5))
            if row == column == 0 and len(chosen) <= 8:
                axes.legend(fontsize=7)
            elif row == column == 0:  # too many for a legend inside the axes
                figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7)
            if bars:
                shares = {name: tokens.counts(found, widest) for name, found in read.items()}
                _bars(axes, shares, sign, legend=len(shares) > 1 and column == 1)
    return figure


def _plain_ticks(axes: Axes) -> None:
    """Numbers instead of powers of ten; between the powers only where the axis is short."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high / low < 8 else NullFormatter())


def _bars(axes: Axes, found: Mapping[str, Mapping[str, Any]], sign: str, *, legend: bool) -> None:
    below = axes.twinx()
    # the twin axes would be drawn on top: lift the curves above the bars, and let these show through
    axes.set_zorder(below.get_zorder() + 1)
    axes.patch.set_visible(False)
    for number, (name, one) in enumerate(found.items()):
        colour = RUN_COLOURS[number % 8]
        below.stairs(one[sign], one["edges"], fill=True, alpha=0.35, color=colour, label=_plain(name))
    below.set_yscale("log")
    below.set_ylim(0.5 / max(one["tokens"] for one in found.values()), 1)
    below.set_ylabel("share of tokens")
    if legend:
        below.legend(fontsize=7, loc="upper left")


def _ratio_axis(axes: Axes, widest: float) -> None:
    shown = [r for r in RATIOS if abs(math.log(r)) <= widest]
    # no closer than an eighth of the axis
    kept = [r for i, r in enumerate(shown) if r == 1 or (i - shown.index(1)) % max(1, math.ceil(len(shown) / 8)) == 0]
    axes.set_xticks([math.log(r) for r in kept], [f"{r:g}" for r in kept])
    axes.set_xlim(-widest, widest)
    axes.axvline(0, color="#888888", lw=0.7, ls=":")
    axes.set_xlabel("importance ratio r")


def _based(w: float, x: float, old_prob: float, basis: str) -> float:
    if basis == "log":
        return w
    return w / (old_prob * math.exp(x)) if w > 0 else math.nan


def _some(found: tokens.Moved) -> bool:
    return bool(len(found.log_ratio))


def _plain(text: str) -> str:
    """Escape a name: matplotlib reads $ as mathematics, and omits labels with a leading _ from legends."""
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    require("static figures are drawn with", "report", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, out: Path) -> Path:
    import matplotlib

    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
        axes.spines["right"].set_visible(axes.yaxis.get_ticks_position() == "right")
        axes.title.set_fontsize(10)
    drawn = io.BytesIO()
    # the ids in an SVG are random without a salt
    with matplotlib.rc_context({"svg.hashsalt": "dgpo", "font.size": 9}):
        figure.savefig(drawn, format=out.suffix[1:].lower(), dpi=200, metadata=METADATA[out.suffix.lower()])
    return write_bytes_atomic(out, drawn.getvalue())
