"""Draw docs/figures/growth.svg: seconds of an update over its tokens and over the spread of lengths, as measured.

python docs/figures/growth.py            write the figure
python docs/figures/growth.py --check    exit 1 if the committed figure is not the one that would be written
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

sys.path.insert(0, str(Path(__file__).parent))
import drawing

TARGET = Path(__file__).with_name("growth.svg")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "growth.json"
COLOURS = ("#D55E00", "#56B4E9", "#0072B2")
MARKERS = ("s", "^", "o")


def slope(tokens: list[float], seconds: list[float]) -> float:
    """Of log seconds over log tokens, by least squares: 1 where twice the tokens take twice the time."""
    return linear_regression([math.log(x) for x in tokens], [math.log(y) for y in seconds]).slope


def medians(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Trainer -> seconds of every row, median over rounds."""
    return {name: [median(row["seconds"][name]) for row in rows] for name in rows[0]["seconds"]}


def draw(document: dict[str, Any]) -> Figure:
    """Two panels: seconds over tokens on logarithmic axes, and microseconds per token over the spread."""
    figure = drawing.blank(9.2, 3.7)
    growth, spread = figure.subplots(1, 2)
    rows, at = document["by_tokens"], document["at"]
    tokens = [row["tokens"] for row in rows]
    for (name, seconds), colour, marker in zip(medians(rows).items(), COLOURS, MARKERS, strict=True):
        label = f"{name}: slope {slope(tokens, seconds):.2f}"
        growth.plot(tokens, seconds, color=colour, marker=marker, label=label)
    growth.set(xscale="log", yscale="log", xlabel="tokens of an update, prompts included", ylabel="seconds")
    growth.set_title(f"log-normal lengths, σ = {at['sigma']:g}")
    _plain(growth, tokens)
    rows = document["by_spread"]
    for seconds, colour, marker in zip(medians(rows).values(), COLOURS, MARKERS, strict=True):
        each = [1e6 * second / row["tokens"] for second, row in zip(seconds, rows, strict=True)]
        spread.plot([row["sigma"] for row in rows], each, color=colour, marker=marker)
    spread.set(xlabel="σ of the lengths", ylabel="microseconds per token", xticks=[row["sigma"] for row in rows])
    spread.set_ylim(bottom=0)
    spread.set_title(f"about {at['tokens']:,} tokens")
    growth.legend(frameon=False, loc="upper left")
    return figure


def _plain(axis: Axes, tokens: list[float]) -> None:
    axis.set_xticks(tokens, [f"{value / 1000:.0f}k" for value in tokens])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the figure is out of date")
    args = parser.parse_args()
    if not RESULTS.is_file():
        print("nothing to draw: python benchmarks/growth.py measures it")
        return 0
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    content = drawing.svg(lambda: draw(document))
    return drawing.write({TARGET: content}, check=args.check, command="python docs/figures/growth.py")


if __name__ == "__main__":
    sys.exit(main())
