"""Draw docs/figures/bias_*.svg from the committed results. Same matplotlib, same bytes.

python studies/bias/figures.py            write the figures
python studies/bias/figures.py --check    exit 1 if a committed figure is not the one that would be written
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dgpo.diagnostics.bias import power_bias

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "docs" / "figures"))
import drawing
from run import read

SHOWN = {
    "is": ("#000000", "o"),
    "grpo": ("#999999", "s"),
    "gppo": ("#D55E00", "^"),
    "sapo": ("#009E73", "D"),
    "maspo": ("#CC79A7", "v"),
    "dgpo, n=1 m=2": ("#0072B2", "P"),
    "dgpo, n=3 m=3": ("#56B4E9", "X"),
}
"""Label -> colour and marker."""


def trajectories() -> Figure:
    """Log ratio against stale updates: the simulation as markers, gradient flow as lines."""
    results = read("trajectories")
    figure = drawing.blank(9.6, 3.9)
    left, right = figure.subplots(1, 2)
    for label, (colour, marker) in SHOWN.items():
        for axis, name in ((left, "down"), (right, "up")):
            found = results["measured"][name][label]
            updates = results["updates"][name]
            every = 1 if name == "down" else 4
            size = [-x for x in found["simulated"]] if name == "down" else found["simulated"]
            line = [-x for x in found["flow"]] if name == "down" else found["flow"]
            axis.plot(updates[1:], line[1:], color=colour, linewidth=1.3)
            style = {"color": colour, "marker": marker, "markersize": 4.5, "linestyle": "none", "fillstyle": "none"}
            axis.plot(updates[every::every], size[every::every], label=label, **style)
    left.set_title("A = -1, π_old = 0.3: pushed down", loc="left")
    left.set_ylabel("-log r")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
    left.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    right.set_title("A = +1, π_old = 0.001: pushed up", loc="left")
    right.set_ylabel("log r")
    right.axhline(math.log(1000), color="0.6", linewidth=0.8, linestyle="dotted")
    right.annotate("π = 1", (62, math.log(1000) + 0.12), ha="right", color="0.4")
    right.set_xlim(0, 65)
    right.set_ylim(0, 7.6)
    right.set_xticks([0, 16, 32, 48, 64])
    for axis in (left, right):
        axis.set_xlabel("stale updates")
    left.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(SHOWN), frameon=False)
    return figure


def pointwise() -> Figure:
    """|w - r| / b against u = r/b on either side."""
    figure = drawing.blank(9.6, 3.4)
    left, right = figure.subplots(1, 2)
    u = torch.linspace(0.002, 1, 400, dtype=torch.float64)
    v = torch.linspace(1, 6, 400, dtype=torch.float64)
    curves = {
        "hard clip (GRPO)": ("#999999", "solid", math.inf, -math.inf),
        "constant weight (GPPO)": ("#D55E00", "solid", 0.0, 0.0),
        "DGPO n = 1; m = 2": ("#0072B2", "solid", 2.0, 1 / 2),
        "DGPO n = 2; m = 3": ("#0072B2", (0, (5, 2)), 3.0, 2 / 3),
        "DGPO n = 3; m = 5": ("#0072B2", (0, (1.2, 1.4)), 4.0, 4 / 5),
    }
    for label, (colour, style, low, high) in curves.items():
        left.plot(u, power_bias(u, low), color=colour, linestyle=style, label=label, linewidth=1.6)
        right.plot(v, power_bias(v, high), color=colour, linestyle=style, linewidth=1.6)
    golden = (math.sqrt(5) - 1) / 2
    left.plot([golden], [1 - golden], color="#000000", marker="o", markersize=4, linestyle="none")
    left.annotate("u = 0.618", (golden, 1 - golden), xytext=(6, 4), textcoords="offset points")
    left.set_title("left, u = r/lo", loc="left")
    left.set_ylabel("|w - r| / boundary")
    right.set_title("right, v = r/hi", loc="left")
    left.set_xlabel("u")
    right.set_xlabel("v")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves), frameon=False)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "bias_trajectories.svg": trajectories,
    "bias_pointwise.svg": pointwise,
}


def svg(draw: Callable[[], Figure]) -> bytes:
    """A figure as the bytes of an SVG file."""
    return drawing.svg(draw)


def main(argv: list[str]) -> int:
    """Write the figures, or compare them with the committed ones."""
    parser = argparse.ArgumentParser(description="Draw the figures of the page on bias.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a figure is out of date")
    arguments = parser.parse_args(argv)
    files = {drawing.FOLDER / name: svg(draw) for name, draw in FIGURES.items()}
    return drawing.write(files, check=arguments.check, command="python studies/bias/figures.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
