"""Draw docs/figures/weights.svg: the weight of every registered objective against the importance ratio.

The curves are what the classes return; no formula of a method stands here. Same matplotlib, same bytes.

    python docs/figures/weights.py            write the figure
    python docs/figures/weights.py --check    exit 1 if the committed figure is not the one that would be written
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import product
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import drawing

from dgpo import objectives
from dgpo.objectives.curves import WeightCurve, weight_curve

TARGET = Path(__file__).with_name("weights.svg")

OLD_LOGPROB = -2.0
"""log π_old of the token; some methods read it. The axis ends where π_θ = 1, at r = 1/π_old."""
LOG_RATIO = torch.linspace(-3.0, -OLD_LOGPROB, 601, dtype=torch.float64)
ADVANTAGES = (-1.0, 1.0)

LOWEST, ZERO, HIGHEST = 1e-3, 4e-4, 20.0
"""y axis: where the logarithmic scale starts, the place below it where 0 is drawn, and the top."""
# Okabe and Ito's colours without the yellow, which is faint on white; 7 colours x 5 styles = 35 methods
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("solid", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)))
LEGEND_COLUMNS = 5


def curves() -> dict[str, dict[float, Tensor]]:
    """Name -> sign of A -> w at every ratio of `LOG_RATIO`, for the defaults of every class, in registry order.

    Every ratio is a response of one token, which is what a sequence-level method then sees. Adaptive methods are drawn
    as constructed, before they have seen a batch.
    """
    return {name: {sign: _curve(name, sign).weight for sign in ADVANTAGES} for name in objectives.OBJECTIVES}


def _curve(name: str, sign: float) -> WeightCurve:
    return weight_curve(objectives.make(name), LOG_RATIO, advantage=sign, old_logprob=OLD_LOGPROB)


def clip_range(name: str) -> tuple[float, float]:
    """The boundaries of a method, as ratios, for a token with π_old = exp(`OLD_LOGPROB`)."""
    _, low, high = _curve(name, 1.0).boundaries
    return low[0].exp().item(), high[0].exp().item()


def draw() -> Figure:
    """Two rows (weight on ∇log π, weight on ∇π), two columns (A < 0, A > 0)."""
    ratio = LOG_RATIO.exp()
    weights = curves()
    panels = {
        "w, the weight on ∇log π": lambda w: w,
        "w/r, the weight on ∇π  (unit: 1/π_old)": lambda w: w / ratio,
    }
    negative = any(bool((w < 0).any()) for by_sign in weights.values() for w in by_sign.values())
    rows = -(-len(weights) // LEGEND_COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.03, wspace=0.03)
    low, high = clip_range("dgpo")
    figure = Figure(figsize=(10.6, 8.2 + 0.2 * rows), layout=layout)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for axis, ((label, basis), sign) in zip(axes.flat, product(panels.items(), ADVANTAGES), strict=True):
        for index, (name, by_sign) in enumerate(weights.items()):
            values = basis(by_sign[sign])
            # later curves are thinner and on top, so that curves that coincide are all seen
            axis.plot(
                ratio,
                _heights(values),
                label=name,
                color=COLOURS[index % len(COLOURS)],
                linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
                linewidth=4.2 - 2.9 * index / max(len(weights) - 1, 1),
                solid_capstyle="butt",
            )
        _dress(axis, title=label, floor="≤ 0" if negative else "0", inside=(low, high))
    for axis, sign in zip(axes[0], ADVANTAGES, strict=True):
        what = "A < 0: the token is pushed down" if sign < 0 else "A > 0: the token is pushed up"
        axis.annotate(what, (0.5, 1.13), xycoords="axes fraction", ha="center", fontsize=11, fontweight="bold")
    for axis in axes[1]:
        axis.set_xlabel("r = π_θ / π_old")
    handles, names = axes[0, 0].get_legend_handles_labels()
    title = (
        f"π_old = exp({OLD_LOGPROB:g}), A = ±1, defaults of every class; grey: clip range of dgpo, {low:g} … {high:g}"
    )
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(names), LEGEND_COLUMNS),
        frameon=False,
        handlelength=3.2,
        title=title,
    )
    return figure


def _heights(values: Tensor) -> Tensor:
    """Where a value is drawn: 0 and below at `ZERO`, positive values too small for the scale not at all."""
    on_scale = torch.where(values >= LOWEST, values, torch.nan)
    return torch.where(values > 0, on_scale, ZERO)


def _dress(axis: Axes, title: str, floor: str, inside: tuple[float, float]) -> None:
    axis.set_title(title, loc="left")
    left, right = LOG_RATIO[0].exp().item(), LOG_RATIO[-1].exp().item()
    if inside != (0.0, math.inf):
        axis.axvspan(max(inside[0], left), min(inside[1], right), color="0.9", linewidth=0.8)
    axis.axhline(1.0, color="0.6", linewidth=0.8, zorder=0.9)
    axis.axhline(ZERO, color="0.6", linewidth=0.8, linestyle="dotted", zorder=0.9)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(left, right)
    axis.set_ylim(ZERO * 0.8, HIGHEST)
    axis.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"])
    axis.set_yticks([ZERO, LOWEST, 0.01, 0.1, 1, 10], [floor, "0.001", "0.01", "0.1", "1", "10"])
    axis.minorticks_off()
    axis.grid(color="0.93", linewidth=0.6)


def draw_one(name: str) -> Figure:
    """Two small panels of one method, w and w/r; A < 0 and A > 0 in each; its boundaries in grey."""
    ratio, weights = LOG_RATIO.exp(), curves()[name]
    figure = Figure(figsize=(6.4, 2.5), layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.03))
    axes = figure.subplots(1, 2, sharey=True)
    negative = any(bool((w < 0).any()) for w in weights.values())
    for axis, title, unit in zip(axes, ("w, on ∇log π", "w/r, on ∇π"), (torch.ones_like(ratio), ratio), strict=True):
        for sign, colour, style, width in ((1.0, "#0072B2", "solid", 2.6), (-1.0, "#D55E00", (0, (4, 1.5)), 1.6)):
            heights = _heights(weights[sign] / unit)
            label = "A < 0" if sign < 0 else "A > 0"
            axis.plot(ratio[::2], heights[::2], label=label, color=colour, linestyle=style, linewidth=width)
        _dress(axis, title=title, floor="≤ 0" if negative else "0", inside=clip_range(name))
        axis.set_xticks([0.05, 0.2, 1, 5], ["0.05", "0.2", "1", "5"])
        axis.minorticks_off()
        axis.set_xlabel("r")
    axes[0].legend(loc="best", frameon=False, fontsize=8)
    return figure


def svg() -> bytes:
    """The large figure as the bytes of an SVG file."""
    return drawing.svg(draw, grid=False)


def svg_of(name: str) -> bytes:
    """The small figure of one method as the bytes of an SVG file."""
    return drawing.svg(lambda: draw_one(name), grid=False)


def main(argv: list[str]) -> int:
    """Write the figure, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description="Draw the weight of every registered objective.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the figure is out of date")
    parser.add_argument("--out", type=Path, default=TARGET, help="where to write (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        arguments.out.write_bytes(svg())
        return 0
    if arguments.out.is_file() and arguments.out.read_bytes() == svg():
        return 0
    print(f"{arguments.out} is not what the classes give; run: python docs/figures/weights.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
