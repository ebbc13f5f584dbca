"""Tables and figure of results/best_weight.json; `best_weight.py` computes it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from best_weight_cells import COMPARED, HIGH, LOW, bounds
from markdown_table import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgpo import objectives
from dgpo.objectives.curves import weight_curve

sys.path.append(str(Path(__file__).parents[2] / "docs" / "figures"))
import drawing

DRAWN = {
    "is": "#000000",
    "grpo": "#999999",
    "gppo": "#D55E00",
    "sapo": "#009E73",
    "maspo": "#CC79A7",
    "dgpo(1,2)": "#0072B2",
}
"""Methods whose curves are drawn -> colour."""
OLD_PROBABILITY = 0.1
"""Of the token whose curve is drawn; dual clips and Gaussians that read it or |A| have other curves for others."""
SPAN = (0.05, 20.0)
"""Ratios that are drawn."""
FLOOR = 3e-3
"""Smallest w/r that is drawn; what is below it is drawn here."""
CRITERIA = {
    "distance_alone": "curve, registered",
    "distance_alone_at_best_scale": "curve, up to a factor",
    "distance_together_at_best_scale": "curve of all bins together, up to a factor",
    "mse": "MSE",
    "mse_at_best_scale": "MSE at best scale",
}


def tables(results: dict[str, Any]) -> str:
    """Markdown: errors of every method, best multipliers, distances of the curves, DGPO's best exponents."""
    pieces = results["pieces"]
    parts = [
        _overview(results),
        "The same by position in the generation: bias² + variance = MSE, in units of |∇|²; error at the best scale.",
        *(_positions(piece, name) for name, piece in pieces.items()),
        "**Best multiplier of r, bin by bin**, as registered (alone), and for all bins together.",
        _multipliers(pieces, "alone"),
        _multipliers(pieces, "together"),
        "**Mean squared difference between w and w\\***, weighted by the bins' share of tokens: as registered / up "
        "to a factor, in units of the mean of w² / the same with w\\* of all bins together. Bins with less than "
        f"{100 * results['setting']['least_share']:g} % of the tokens are left out; together, their multiplier is 0.",
        _distances(pieces),
    ]
    return "\n\n".join(parts)


def _overview(results: dict[str, Any]) -> str:
    """Markdown: what the pairs of policies are, the methods' errors, one multiplier per region, DGPO's exponents."""
    pieces = results["pieces"]
    setting = results["setting"]
    parts = [
        f"Pairs of policies of the arm `is`: π_old after {_words(setting['states'])} updates of the seeds "
        f"{_words(setting['seeds'])}, and π "
        + "; ".join(f"{_words(at)} updates later at k = {k}" for k, at in setting["positions"].items())
        + f". {setting['prompts']} prompts with {setting['group']} responses each; sums over pairs, so that a large "
        "gradient counts more than a small one. At k = 64 a generation is cut short where π_old is remembered, so that "
        "the data of all updates from there to π come from π_old. Where the estimate of |G|² of a bin is negative the "
        "bin's weight is 0. Pairs by piece: "
        + ", ".join(f"{name} {len(piece['cells'])}" for name, piece in pieces.items())
        + ".",
        f"**Relative MSE of an update's gradient of {setting['update']} prompts**, variance + bias², over that of "
        "`is`; below it the error that remains at the best scale, less that of `is`: Adam and the clipped norm take no "
        "notice of a scale. In brackets 95 % over prompts.",
        _errors(pieces, "mse_over_is", "all"),
        _errors(pieces, "at_best_scale_less_is", "all"),
        "**Best multiplier of r**, one per region: alone; all regions together. Alone, a multiplier says how well the "
        "gradient of its tokens is known, and falls with their number whatever their ratio; together, they minimise "
        "the error of the sum, with all products between regions in it.",
        _regions(pieces),
        "Error with the best multipliers of the bins (in brackets: fitted on the other seeds).",
        _best(pieces),
        "**DGPO's n and m** with the least value of each criterion, over n in [0, 4] and m in [1, 8] or infinite, and "
        "the value there, that of (1, 2) and that of importance sampling, which is (0, inf).",
        _exponents(pieces),
    ]
    return "\n\n".join(parts)


def _words(values: list[int]) -> str:
    *first, last = (str(value) for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def _errors(pieces: dict[str, Any], key: str, position: str) -> str:
    rows = [[label, *(_interval(p["methods"][label][position][key]) for p in pieces.values())] for label in COMPARED]
    return table(["method", *pieces], rows)


def _positions(piece: dict[str, Any], name: str) -> str:
    positions = [position for position in piece["methods"]["is"] if position != "all"]
    rows = []
    for label in COMPARED:
        cells = []
        for position in positions:
            found = piece["methods"][label][position]
            bias, variance, mse, direction = (
                _short(found[key][0]) for key in ("bias_squared", "variance", "mse", "at_best_scale")
            )
            cells.append(f"{bias} + {variance} = {mse}; {direction}")
        rows.append([label, *cells])
    return table([name, *(f"after {position} updates" for position in positions)], rows)


def _multipliers(pieces: dict[str, Any], kind: str) -> str:
    rows = []
    for b, (sign, low, high) in enumerate(bounds()):
        cells = [
            f"{_interval(p['bins'][b][kind])}, {100 * p['bins'][b]['share']:.2f} %" if p["bins"][b]["share"] else "-"
            for p in pieces.values()
        ]
        rows.append([f"A {'<' if sign < 0 else '>'} 0, {low:.3g} to {high:.3g}", *cells])
    return table([f"{kind}: multiplier, share of tokens", *pieces], rows)


def _regions(pieces: dict[str, Any]) -> str:
    names = list(next(iter(pieces.values()))["regions"]) if pieces else []
    rows = []
    for name in names:
        found = [p["regions"][name] for p in pieces.values()]
        rows.append(
            [name, *(f"{_interval(f['alone'])}; {_interval(f['together'])}, {100 * f['share']:.2f} %" for f in found)]
        )
    return table(["alone; together, share of tokens", *pieces], rows)


def _best(pieces: dict[str, Any]) -> str:
    rows = []
    for kind in ("alone", "together"):
        for key, title in (("mse", "MSE"), ("at_best_scale", "error at best scale")):
            cells = [_fitted(p["best"][kind], key) for p in pieces.values()]
            rows.append([f"{kind}: {title}", *cells])
    for key, title in (("mse", "MSE"), ("at_best_scale", "error at best scale")):
        rows.append([f"is: {title}", *(_short(p["methods"]["is"]["all"][key][0]) for p in pieces.values())])
    return table(["multipliers", *pieces], rows)


def _fitted(found: dict[str, Any], key: str) -> str:
    held = "one seed" if found["held_out"] is None else _short(found["held_out"][key])
    return f"{_short(found[key][0])} ({held})"


def _distances(pieces: dict[str, Any]) -> str:
    rows = []
    for label in COMPARED:
        cells = []
        for p in pieces.values():
            alone, together = p["distance"]["alone"][label], p["distance"]["together"][label]
            found = (alone["as_it_is"], alone["at_best_scale"], together["at_best_scale"])
            cells.append(" / ".join(_short(value[0]) for value in found))
        rows.append([label, *cells])
    return table(["method", *pieces], rows)


def _exponents(pieces: dict[str, Any]) -> str:
    rows = []
    for key, title in CRITERIA.items():
        cells = []
        for p in pieces.values():
            found = p["dgpo"][key]
            values = ", ".join(_short(found[name]) for name in ("value", "value_of_1_2", "value_of_is"))
            n, m = found["n"], [_inverse(value) for value in found["inverse_m"]]
            cells.append(f"n {n[0]:g} [{n[1]:g}, {n[2]:g}], m {m[0]} [{m[2]}, {m[1]}]: {values}")
        rows.append([title, *cells])
    return table(["criterion", *pieces], rows)


def _inverse(value: float) -> str:
    return f"{1 / value:.3g}" if value else "inf"


def _interval(found: list[float | None]) -> str:
    value, low, high = found
    return f"{_short(value)} [{_short(low)}, {_short(high)}]"


def _short(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def figure(results: dict[str, Any]) -> Figure:
    """w/r against r: methods as lines, the best multipliers of the bins as points, those of the regions as bars."""
    pieces = results["pieces"]
    drawn = drawing.blank(9.6, 1.2 + 1.9 * len(pieces))
    axes = drawn.subplots(max(len(pieces), 1), 2, squeeze=False, sharex=True, sharey=True)
    for row, (name, piece) in zip(axes, pieces.items(), strict=False):
        for axis, sign in zip(row, (-1, 1), strict=True):
            _curves(axis, sign)
            _regions_of(axis, piece["regions"], sign)
            _points(axis, [b for b, (s, _, _) in zip(piece["bins"], bounds(), strict=True) if s == sign])
            axis.set_title(f"{name}, A {'<' if sign < 0 else '>'} 0", loc="left")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlim(*SPAN)
            axis.set_ylim(FLOOR, 8)
            axis.set_xticks([0.1, 0.2, 0.5, 0.8, 1.2, 2, 5, 10], ["0.1", "0.2", "0.5", "0.8", "1.2", "2", "5", "10"])
            axis.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
            axis.minorticks_off()
        row[0].set_ylabel("w / r")
    for axis in axes[-1]:
        axis.set_xlabel("r")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return drawn


def _curves(axis: Axes, sign: int) -> None:
    x = torch.linspace(math.log(SPAN[0]), math.log(SPAN[1]), 600, dtype=torch.float64)
    for label, colour in DRAWN.items():
        objective = objectives.make(COMPARED[label])
        curve = weight_curve(objective, x, advantage=float(sign), old_logprob=math.log(OLD_PROBABILITY))
        # 0 has no place on a logarithmic axis: the line ends below the frame
        axis.plot(x.exp(), (curve.weight / x.exp()).clamp(min=FLOOR / 10), color=colour, linewidth=1.2, label=label)


def _regions_of(axis: Axes, regions: dict[str, Any], sign: int) -> None:
    """One multiplier for all tokens below, within or above the boundaries, with its interval."""
    found = list(regions.values())[:3] if sign < 0 else list(regions.values())[3:]
    edges = (SPAN[0], LOW, HIGH, SPAN[1])
    for i, region in enumerate(found):
        value, low, high = (max(number or 0.0, FLOOR / 10) for number in region["together"])
        if region["share"] > 0:
            axis.fill_between(edges[i : i + 2], low, high, color="0.8", alpha=0.5, linewidth=0)
            axis.plot(
                edges[i : i + 2],
                [value, value],
                color="0.35",
                linewidth=1.4,
                linestyle=(0, (3, 1.5)),
                label="" if i else "best, one per region, together",
            )


def _points(axis: Axes, bins: list[dict[str, Any]]) -> None:
    shown = [b for b in bins if b["share"] > 0 and None not in b["alone"]]
    ratios = [min(max(b["ratio"], SPAN[0]), SPAN[1]) for b in shown]
    for ratio, b in zip(ratios, shown, strict=True):
        axis.plot([ratio] * 2, [max(number, FLOOR) for number in b["alone"][1:]], color="0.25", linewidth=0.8)
    axis.scatter(
        ratios,
        [max(b["alone"][0], FLOOR) for b in shown],
        # the area grows with the share of tokens
        s=[6 + 120 * math.sqrt(b["share"]) for b in shown],
        facecolor="#F0E442",
        edgecolor="0.1",
        linewidth=0.9,
        zorder=3,
        clip_on=False,
        label="best, bins alone",
    )
