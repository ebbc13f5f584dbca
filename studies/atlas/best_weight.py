"""The weight that would have been best, per bin of the ratio, and what every method's own weight costs; see README.md.

python studies/atlas/best_weight.py     compute what is left, write results/best_weight.json

A few final seeds of the arm `is` are trained again up to the policies π_old and π. Samples of π_old for 1024 fresh
prompts then give the gradient of every prompt under every method, and of the tokens of every bin. Repeat an interrupted
call to resume it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from arms import TASKS
from best_weight_cells import (
    BLOCK,
    COMPARED,
    EDGES,
    GROUP,
    HIGH,
    LOW,
    POSITIONS,
    PROMPTS,
    RESAMPLES,
    SEEDS,
    STATES,
    UPDATE,
    Cell,
    bounds,
    compute,
    exponents,
    load,
)
from gradient_moments import (
    Moments,
    alone,
    error_at_best_scale,
    errors_of_bins,
    merged,
    squared_error,
    together,
)
from phases import WORK
from recorded import RESULTS
from torch import Tensor

from dgpo.files import write_json_atomic

LEAST_SHARE = 1e-3
"""Share of tokens from which a bin takes part in the comparison of curves and in the weights of all bins together."""
REGIONS = ("A < 0, below", "A < 0, within", "A < 0, above", "A > 0, below", "A > 0, within", "A > 0, above")
"""Sign of A, and whether r is below `LOW`, above `HIGH` or between."""

Piece = dict[Cell, dict[str, Any]]


def analyse(work: Path, results: Path) -> None:
    """Compute the cells that are left and whose arm has its learning rate; write best_weight.json from all of them."""
    compute(work)
    loaded = {f"{task}-k{k}": load(work, task, k) for task in TASKS for k in POSITIONS}
    setting = {
        "states": STATES,
        "positions": {str(k): at for k, at in POSITIONS.items()},
        "seeds": SEEDS,
        "prompts": PROMPTS,
        "group": GROUP,
        "update": UPDATE,
        "block": BLOCK,
        "resamples": RESAMPLES,
        "edges": EDGES,
        "least_share": LEAST_SHARE,
    }
    pieces = {name: summary(piece) for name, piece in loaded.items() if piece}
    write_json_atomic(results / "best_weight.json", {"setting": setting, "pieces": pieces})


def pooled(piece: Piece, keep: Callable[[Cell], bool] = lambda cell: True) -> Moments:
    """Sum of the moments of the cells that are kept."""
    chosen = [values for cell, values in piece.items() if keep(cell)]
    return reduce(
        Moments.__add__,
        (Moments(**{name: values[name].double() for name in Moments.__annotations__}) for values in chosen),
    )


def summary(piece: Piece) -> dict[str, Any]:
    """What is committed of a task and staleness; an interval is [value, 2.5 %, 97.5 %] over resamples of prompts."""
    every = pooled(piece)
    tokens, weights, log_ratio = (
        torch.stack([values[name] for values in piece.values()]).sum(0) for name in ("tokens", "weights", "log_ratio")
    )
    share = tokens / tokens.sum()
    used = share >= LEAST_SHARE
    mean = weights / tokens.clamp(min=1)
    # the first method is importance sampling
    ratio = mean[0]
    best = {"alone": alone(every, UPDATE), "together": together(every, UPDATE, used)}
    at = {"all": every}
    for position in sorted({cell.position for cell in piece}):
        at[str(position)] = pooled(piece, lambda cell, position=position: cell.position == position)
    return {
        "cells": [[cell.seed, cell.old, cell.position] for cell in piece],
        "rate": next(iter(piece.values()))["rate"],
        "cpu_seconds": round(sum(values["cpu_seconds"] for values in piece.values()), 1),
        "bins": [
            {
                "share": rounded(share[b]),
                "ratio": rounded((log_ratio[b] / tokens[b].clamp(min=1)).exp()),
                **{name: interval(multiplier[:, b]) for name, multiplier in best.items()},
            }
            for b in range(len(share))
        ],
        "regions": _regions(every, share),
        "methods": _methods(at),
        "best": _best(piece, every, best, used),
        "distance": {
            name: {
                label: {
                    "as_it_is": interval(distance(w, c * ratio, share, used)),
                    "at_best_scale": interval(distance(w, c * ratio, share, used, scaled=True)),
                }
                for label, w in zip(COMPARED, mean[: len(COMPARED)], strict=True)
            }
            for name, c in best.items()
        },
        "dgpo": _dgpo(every, best, mean[len(COMPARED) :], ratio, share, used),
    }


def _methods(at: dict[str, Moments]) -> dict[str, Any]:
    """Method -> position -> errors of an update's gradient."""
    found: dict[str, dict[str, Any]] = {label: {} for label in COMPARED}
    for position, moments in at.items():
        bias, variance = squared_error(moments, UPDATE)
        direction = error_at_best_scale(moments, UPDATE)
        for i, label in enumerate(COMPARED):
            mse = bias[:, i] + variance[:, i]
            found[label][position] = {
                "bias_squared": interval(bias[:, i]),
                "variance": interval(variance[:, i]),
                "mse": interval(mse),
                "mse_over_is": interval(mse / (bias + variance)[:, 0]),
                "at_best_scale": interval(direction[:, i]),
                "at_best_scale_less_is": interval(direction[:, i] - direction[:, 0]),
            }
    return found


def _best(piece: Piece, every: Moments, best: dict[str, Tensor], used: Tensor) -> dict[str, Any]:
    """Errors of an update's gradient with the best multipliers, of the same data and of those of the other seeds."""
    seeds = sorted({cell.seed for cell in piece})
    found: dict[str, Any] = {}
    for name, multipliers in best.items():
        mse, direction = errors_of_bins(every, multipliers, UPDATE)
        found[name] = {"mse": interval(mse), "at_best_scale": interval(direction), "held_out": None}
        held_out = []
        for seed in seeds if len(seeds) > 1 else ():
            rest = pooled(piece, lambda cell, seed=seed: cell.seed != seed)
            c = alone(rest, UPDATE) if name == "alone" else together(rest, UPDATE, used)
            own = pooled(piece, lambda cell, seed=seed: cell.seed == seed)
            held_out.append([errors[0] for errors in errors_of_bins(own, c, UPDATE)])
        if held_out:
            held = torch.tensor(held_out).mean(0)
            found[name]["held_out"] = {"mse": rounded(held[0]), "at_best_scale": rounded(held[1])}
    return found


def distance(w: Tensor, best: Tensor, share: Tensor, used: Tensor, scaled: bool = False) -> Tensor:
    """[..., R+1] mean of (w - w*)² over the bins in use, weighted by their shares of tokens.

    Args:
        w: [..., Q] a method's mean weight in every bin.
        best: [R+1, Q] w*.
        share, used: [Q] of tokens, and which bins count.
        scaled: with s·w* in place of w*, s being the best number, in units of the mean of w².
    """
    p = (share * used) / share[used].sum()
    if not scaled:
        return (p * (w.unsqueeze(-2) - best).square()).sum(-1)
    product, own, other = (p * w.unsqueeze(-2) * best).sum(-1), (p * w.square()).sum(-1), (p * best.square()).sum(-1)
    return 1 - product.square() / (own.unsqueeze(-1) * other).clamp(min=torch.finfo(best.dtype).tiny)


def _regions(every: Moments, share: Tensor) -> dict[str, Any]:
    """Best multipliers of r if all tokens below, within or above the boundaries, by sign of A, share one."""
    region = torch.tensor([3 * (sign > 0) + (low >= LOW) + (low >= HIGH) for sign, low, _ in bounds()])
    found = merged(every, region)
    parts = torch.zeros(6, dtype=share.dtype).index_add_(0, region, share)
    separate, joint = alone(found, UPDATE), together(found, UPDATE, parts > 0)
    return {
        name: {"share": rounded(parts[i]), "alone": interval(separate[:, i]), "together": interval(joint[:, i])}
        for i, name in enumerate(REGIONS)
    }


def _dgpo(
    every: Moments, best: dict[str, Tensor], curves: Tensor, ratio: Tensor, share: Tensor, used: Tensor
) -> dict[str, Any]:
    """Criterion -> the n and m of the grid with the least value, over the resamples too, and that value."""
    grid = torch.tensor(exponents(), dtype=torch.float64)
    # a bin without tokens has no mean weight, and no gradient
    multipliers = (curves / ratio.clamp(min=torch.finfo(ratio.dtype).tiny)).unsqueeze(1)
    mse, direction = errors_of_bins(every, multipliers, UPDATE)
    criteria = {"mse": mse, "mse_at_best_scale": direction}
    for name, c in best.items():
        criteria[f"distance_{name}"] = distance(curves, c * ratio, share, used)
        criteria[f"distance_{name}_at_best_scale"] = distance(curves, c * ratio, share, used, scaled=True)
    found = {}
    for name, values in criteria.items():
        n, m = grid[values.argmin(0)].T
        found[name] = {
            "n": interval(n),
            # 1/m has a finite value for every m
            "inverse_m": interval(1 / m),
            "value": rounded(values[:, 0].min()),
            "value_of_is": rounded(values[exponents().index((0.0, math.inf)), 0]),
            "value_of_1_2": rounded(values[exponents().index((1.0, 2.0)), 0]),
        }
    return found


def interval(values: Tensor) -> list[float | None]:
    """[value, 2.5 %, 97.5 %] of [R+1]: of the sample, and over the resamples."""
    low, high = values[1:].double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [rounded(value) for value in (values[0], low, high)]


def rounded(value: Tensor | float) -> float | None:
    """Six digits; None for what is no number."""
    return float(f"{float(value):.6g}") if math.isfinite(float(value)) else None


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder of the arms ({WORK})")
    analyse(parser.parse_args().work, RESULTS)


if __name__ == "__main__":
    main()
