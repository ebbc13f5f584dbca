"""The figure of what foresees a collapse, from `results/collapse.json`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLOURS = {
    "ESS of w": ("#0072B2", "o"),
    "ESS of the ratios": ("#56B4E9", "D"),
    "entropy": ("#009E73", "s"),
    "KL(π_old, π)": ("#D55E00", "^"),
    "gradient norm": ("#000000", "v"),
    "largest weight": ("#CC79A7", "P"),
}


def foresight_figure(found: dict[str, Any]) -> Figure:
    """AUROC by statistic and horizon at the same position in a generation: all collapses, and those still ahead."""
    figure = Figure(figsize=(9.6, 3.6), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.04))
    rows = [r for r in found["auroc"] if r["task"] == "all" and r["control"] == "position"]
    horizons = list(dict.fromkeys(r["horizon"] for r in rows))
    for axis, name, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("auroc", "not yet fallen"),
        ("all collapses", "the policy has not fallen yet"),
        strict=True,
    ):
        for i, (statistic, (colour, marker)) in enumerate(COLOURS.items()):
            mine = [r for r in rows if r["statistic"] == statistic and r[name]["value"] is not None]
            if mine:
                place = [horizons.index(r["horizon"]) + 0.12 * (i - (len(COLOURS) - 1) / 2) for r in mine]
                value = [r[name]["value"] for r in mine]
                ends = [
                    [v - r[name]["low"] for v, r in zip(value, mine, strict=True)],
                    [r[name]["high"] - v for v, r in zip(value, mine, strict=True)],
                ]
                style = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none", "elinewidth": 1.2}
                axis.errorbar(place, value, yerr=ends, label=statistic, **style)
        axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle="dotted")
        axis.set_title(title, loc="left")
        runs = [next(r[name]["runs"] for r in rows if r["horizon"] == horizon) for horizon in horizons]
        axis.set_xticks(range(len(horizons)), [f"{h}\n{n} runs" for h, n in zip(horizons, runs, strict=True)])
        axis.set_xlabel("updates before the collapse")
        axis.set_ylim(0, 1)
        axis.set_xlim(-0.5, len(horizons) - 0.5)
    left = figure.axes[0]
    left.set_ylabel("AUROC, same position in a generation")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    return figure
