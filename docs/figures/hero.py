"""Draw docs/figures/hero.svg: how strongly four methods train on a token that has moved, against how far it has moved.

The curves are what the classes return. Left of ratio 1 the answer was wrong, right of it right: the sides on which clip
ranges act. Same matplotlib, same bytes.

    python docs/figures/hero.py            write the figure
    python docs/figures/hero.py --check    exit 1 if the committed figure is not the one that would be written
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import drawing

from dgpo import objectives
from dgpo.objectives.curves import weight_curve

TARGET = Path(__file__).with_name("hero.svg")

OLD_LOGPROB = math.log(0.3)
"""log π_old of the token, which MASPO reads."""
RATIO = torch.cat([torch.linspace(0.002, 1, 500), torch.linspace(1, 3.3, 851)]).double()
SIDES = {-1.0: RATIO[:500], 1.0: RATIO[500:]}
"""Sign of A -> the ratios at which it is drawn: the ends of the clip range act on nothing else."""

CLIP_RANGE = (1 - objectives.GRPO().eps_low, 1 + objectives.GRPO().eps_high)

INK, FAINT, BAND = "#1f2328", "#59636e", "#eaeef2"
COLOURS = {"grpo": "#cf222e", "cispo_two_sided": "#9a6700", "maspo": "#8250df", "dgpo": "#0969da"}
"""In the order of drawing: a later curve is thinner and on top, so that curves that coincide are all seen."""
WIDTHS = {"grpo": 8.0, "cispo_two_sided": 5.6, "maspo": 3.8, "dgpo": 2.0}
DARK = {
    INK: "#f0f6fc",
    FAINT: "#9198a1",
    BAND: "#262c36",
    "#cf222e": "#ff7b72",
    "#9a6700": "#e3b341",
    "#8250df": "#d2a8ff",
    "#0969da": "#58a6ff",
}
"""Colour on white -> colour on black."""


def curves() -> dict[str, dict[float, Tensor]]:
    """Name -> sign of A -> w at the ratios of `SIDES`, for the defaults of the class."""
    return {name: {sign: _weight(name, ratio, sign) for sign, ratio in SIDES.items()} for name in COLOURS}


def _weight(name: str, ratio: Tensor, sign: float) -> Tensor:
    return weight_curve(objectives.make(name), ratio.log(), advantage=sign, old_logprob=OLD_LOGPROB).weight


LABELS = {
    -1.0: (
        ("cispo_two_sided", "CISPO holds", (0.03, 0.87), 0),
        ("maspo", "MASPO gates", (0.17, 0.225), 22),
        ("dgpo", "DGPO decays", (0.405, 0.05), 0),
        ("grpo", "GRPO drops to zero", (0.03, -0.16), 0),
    ),
    1.0: (
        ("dgpo", "DGPO slows down", (2.13, 2.08), 0),
        ("maspo", "MASPO gates", (1.80, 1.27), 0),
        ("cispo_two_sided", "CISPO holds", (1.60, 1.06), 0),
        ("grpo", "GRPO drops to zero", (1.30, -0.16), 0),
    ),
}
"""Sign of A -> name, words, where they start and how they are turned: beside a stretch that no other curve shares."""
RANGE_LABEL = {-1.0: (0.92, 0.0), 1.0: (1.06, 0.0)}
TITLES = {-1.0: "wrong answer: push its tokens down", 1.0: "right answer: push its tokens up"}
ENDS = {-1.0: (0.0, 1.04), 1.0: (0.9, RATIO[-1].item())}
TICKS = {-1.0: [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 1.0: [1.0, 1.5, 2.0, 2.5, 3.0]}


def draw() -> Figure:
    """Two panels, A < 0 and A > 0: w over r, and r itself, which is the weight without any clipping."""
    figure = drawing.blank(8.8, 4.5)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, sign in zip(axes, SIDES, strict=True):
        axis.axvspan(*CLIP_RANGE, color=BAND, zorder=0, linewidth=0)
        axis.text(*RANGE_LABEL[sign], "clip range", color=FAINT, fontsize=12, rotation=90, ha="center")
        axis.plot(RATIO, RATIO, color=FAINT, linewidth=1.4, linestyle=(0, (1, 2)), zorder=1)
        for name, by_sign in curves().items():
            axis.plot(SIDES[sign], by_sign[sign], color=COLOURS[name], linewidth=WIDTHS[name], solid_capstyle="butt")
        for name, words, where, turned in LABELS[sign]:
            axis.text(
                *where,
                words,
                color=COLOURS[name],
                fontsize=13.5,
                fontweight="bold",
                rotation=turned,
                rotation_mode="anchor",
            )
        _dress(axis, sign)
    axes[1].text(1.33, 1.5, "no clipping", color=FAINT, fontsize=12, rotation=40, rotation_mode="anchor")
    axes[0].set_ylabel("weight of the token", color=INK, fontsize=14)
    figure.supxlabel("probability of the token now, relative to when it was sampled", color=INK, fontsize=14)
    return figure


def _dress(axis: Axes, sign: float) -> None:
    axis.set_title(TITLES[sign], color=INK, fontsize=14, loc="left")
    axis.set_xlim(*ENDS[sign])
    axis.set_ylim(-0.24, 2.25)
    axis.set_xticks(TICKS[sign], [f"{tick:g}" for tick in TICKS[sign]])
    axis.set_yticks([0, 0.5, 1, 1.5, 2], ["0", "½", "1", "1½", "2"])
    axis.tick_params(colors=FAINT, labelsize=12, length=0)
    axis.spines[["left", "bottom"]].set_color(FAINT)


def svg() -> bytes:
    """The figure as the bytes of an SVG file."""
    return drawing.svg(draw, grid=False, dark=DARK)


def main(argv: list[str]) -> int:
    """Write the figure, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description="Draw the weight of four methods.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the figure is out of date")
    parser.add_argument("--out", type=Path, default=TARGET, help="where to write (default: %(default)s)")
    arguments = parser.parse_args(argv)
    return drawing.write({arguments.out: svg()}, check=arguments.check, command="python docs/figures/hero.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
