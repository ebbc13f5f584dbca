"""How often 95 % intervals of evaluations hold the truth: a simulation over models, problems and samples.

python studies/intervals/run.py [--out FILE]
python studies/intervals/run.py --table      # of the committed results, in Markdown
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln
from scipy.stats import norm, t

from dgpo.evaluation.intervals import bounded, bounded_difference

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"

Values = NDArray[np.float64]
Ends = tuple[Values, Values]
Method = Callable[[Values, np.random.Generator], Ends]

PROBLEMS = (10, 30, 100, 500)
MEANS = (0.02, 0.09, 0.3, 0.5, 0.7, 0.91, 0.98)
SPREADS = ("0", "0.3", "0.9", "few")
SAMPLES = (1, 8, 32)
CHANGES = ("equal", "gain", "few gain")
MEANS_OF_TWO = (0.02, 0.09, 0.5, 0.91, 0.98)
TRIALS = 3000
RESAMPLES = 999
RESAMPLED_TRIALS, RESAMPLED_PROBLEMS = 300, 100
"""Of the bootstraps, which take a thousand times as long as a formula."""


@dataclass(frozen=True)
class Difficulty:
    """How likely problems are solved: with this mean, and this spread.

    A number is the share of the variance of a single graded sample that lies between problems: p ~ Beta with
    a + b = 1/spread - 1, and the mean itself for 0. "few": all problems are alike, p = mean/2, but for a few that are
    always solved (for means above 1/2 the mirror image: a few that never are).
    """

    mean: float
    spread: str

    def draw(self, rng: np.random.Generator, shape: tuple[int, int]) -> Values:
        if self.spread == "few":
            small, share = self._few()
            p = np.where(rng.random(shape) < share, 1.0, small)
            return p if self.mean <= 0.5 else 1 - p
        if float(self.spread) == 0:
            return np.full(shape, self.mean)
        return rng.beta(*self._beta(), shape)

    def missed(self, k: int) -> float:
        """E[(1 - p)^k]."""
        if self.spread == "few":
            small, share = self._few()
            return (1 - share) * (1 - small) ** k if self.mean <= 0.5 else share + (1 - share) * small**k
        if float(self.spread) == 0:
            return float((1 - self.mean) ** k)
        a, b = self._beta()
        return math.exp(betaln(a, b + k) - betaln(a, b))

    def _few(self) -> tuple[float, float]:
        small = min(self.mean, 1 - self.mean) / 2
        return small, small / (1 - small)

    def _beta(self) -> tuple[float, float]:
        total = 1 / float(self.spread) - 1
        return self.mean * total, (1 - self.mean) * total


def student(values: Values, _: np.random.Generator) -> Ends:
    """Miller's clustered formula with the quantile of Student's t: mean ± t(P-1) sd / sqrt(P)."""
    size = values.shape[-1]
    half = t.ppf(0.975, size - 1) * values.std(-1, ddof=1) / math.sqrt(size)
    return values.mean(-1) - half, values.mean(-1) + half


def wilson(values: Values, _: np.random.Generator) -> Ends:
    """Wilson's interval with the sample size that has the standard error of the per-problem values, and t(P-1)."""
    size, mean = values.shape[-1], values.mean(-1)
    binomial = mean * (1 - mean)
    effect = np.where(binomial > 0, values.var(-1, ddof=1) / np.where(binomial > 0, binomial, 1), 1.0)
    n, q2 = size / np.maximum(effect, 1e-9), t.ppf(0.975, size - 1) ** 2
    half = np.sqrt(q2 * (binomial / n + q2 / (4 * n * n))) / (1 + q2 / n)
    middle = (mean + q2 / (2 * n)) / (1 + q2 / n)
    return middle - half, middle + half


def percentile(values: Values, rng: np.random.Generator) -> Ends:
    """Percentile bootstrap over problems."""
    low, high = np.quantile(_resampled(values, rng), [0.025, 0.975], axis=1)
    return low, high


def bca(values: Values, rng: np.random.Generator) -> Ends:
    """Bias-corrected and accelerated bootstrap over problems (Efron 1987); ties count half."""
    means, mean = np.sort(_resampled(values, rng), axis=1), values.mean(-1)[:, None]
    below = ((means < mean - 1e-9).mean(1) + (means <= mean + 1e-9).mean(1)) / 2
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    away = mean - values
    squares = (away**2).sum(1)
    acceleration = np.where(squares > 0, (away**3).sum(1) / 6 / np.where(squares > 0, squares, 1) ** 1.5, 0)
    ends = []
    for level in (0.025, 0.975):
        z = bias + norm.ppf(level)
        place = norm.cdf(bias + z / (1 - acceleration * z)) * RESAMPLES
        ends.append(means[np.arange(len(means)), np.clip(place.astype(int), 0, RESAMPLES - 1)])
    return ends[0], ends[1]


def with_pseudo(values: Values, rng: np.random.Generator) -> Ends:
    """Percentile bootstrap of the problems and two more, 0 and 1."""
    more = np.broadcast_to([0.0, 1.0], (*values.shape[:-1], 2))
    return percentile(np.concatenate([values, more], axis=-1), rng)


def ours(values: Values, _: np.random.Generator) -> Ends:
    """`dgpo.evaluation.interval`: two pseudo-problems, 0 and 1, and t(P+1)."""
    return bounded(values)[:2]


def ours_of_differences(values: Values, _: np.random.Generator) -> Ends:
    """`dgpo.evaluation.interval_of_differences`: two pseudo-problems, ± the usual size of a difference, and t(P+1)."""
    return bounded_difference(values)[:2]


def unit(values: Values, _: np.random.Generator) -> Ends:
    """Two pseudo-problems, -1 and 1, and t(P+1)."""
    more = np.broadcast_to([-1.0, 1.0], (*values.shape[:-1], 2))
    return student(np.concatenate([values, more], axis=-1), _)


ONE: dict[str, Method] = {
    "percentile bootstrap": percentile,
    "BCa bootstrap": bca,
    "Miller with t": student,
    "Wilson": wilson,
    "pseudo-problems, bootstrap": with_pseudo,
    "pseudo-problems, t": ours,
}
TWO: dict[str, Method] = {
    "percentile bootstrap": percentile,
    "BCa bootstrap": bca,
    "Miller with t": student,
    "pseudo-problems ±1, t": unit,
    "pseudo-problems ±h, t": ours_of_differences,
}
BOOTSTRAPS = ("percentile bootstrap", "BCa bootstrap", "pseudo-problems, bootstrap")
MEASURED = ("coverage", "width", "power")
CHOSEN = ("pseudo-problems, t", "pseudo-problems ±h, t")


def one_cell(problems: int, mean: float, spread: str, samples: int, trials: int = TRIALS) -> list[dict[str, Any]]:
    """Coverage and width for greedy (one sample), avg@n, pass@8 and pass@n of these samples."""
    difficulty = Difficulty(mean, spread)
    rng = _rng(problems, mean, spread, samples)
    c = rng.binomial(samples, difficulty.draw(rng, (trials, problems)))
    figures = {f"avg@{samples}": (c / samples, mean)}
    for k in {8, samples}:
        if 8 <= k <= samples:
            passed = np.array([1 - math.comb(samples - x, k) / math.comb(samples, k) for x in range(samples + 1)])
            figures[f"pass@{k}"] = (passed[c], 1 - difficulty.missed(k))
    cells = []
    for figure, (values, truth) in figures.items():
        place = {"problems": problems, "mean": mean, "spread": spread, "samples": samples, "figure": figure}
        cells.append(place | {"truth": round(truth, 5)} | _measured(ONE, values, truth, rng))
    return cells


def two_cell(
    problems: int, mean: float, spread: str, samples: int, change: str, trials: int = TRIALS
) -> dict[str, Any]:
    """Coverage, width and power for the difference of two models on the same problems.

    B's chance is A's ("equal": power is the rate of false alarms), nearer to 1 by a tenth of what is missing ("gain"),
    or 1 on one problem in twenty ("few gain").
    """
    rng = _rng(problems, mean, spread, samples, CHANGES.index(change))
    p = Difficulty(mean, spread).draw(rng, (trials, problems))
    if change == "equal":
        q, truth = p, 0.0
    elif change == "gain":
        q, truth = p + 0.1 * (1 - p), 0.1 * (1 - mean)
    else:
        q, truth = np.where(rng.random(p.shape) < 0.05, 1.0, p), 0.05 * (1 - mean)
    differences = (rng.binomial(samples, q) - rng.binomial(samples, p)) / samples
    place = {"problems": problems, "mean": mean, "spread": spread, "samples": samples, "change": change}
    return place | {"truth": round(truth, 5)} | _measured(TWO, differences, truth, rng)


def run(workers: int = 2) -> dict[str, Any]:
    """All cells; each has random numbers of its own, so that the number of processes changes nothing."""
    ones = list(itertools.product(PROBLEMS, MEANS, SPREADS, SAMPLES))
    twos = list(itertools.product(PROBLEMS, MEANS_OF_TWO, SPREADS, SAMPLES, CHANGES))
    with ProcessPoolExecutor(workers) as pool:
        one = [cell for cells in pool.map(one_cell, *zip(*ones, strict=True), chunksize=4) for cell in cells]
        two = list(pool.map(two_cell, *zip(*twos, strict=True), chunksize=4))
    settings = {
        "trials": TRIALS,
        "trials of bootstraps": RESAMPLED_TRIALS,
        "resamples": RESAMPLES,
        "numpy": np.__version__,
    }
    return {"settings": settings, "one": one, "two": two}


def summary(cells: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Worst, 5 % quantile and median of the coverage over the cells, the share under 93 %, mean width and power."""
    found = [cell for cell in cells if method in cell["coverage"]]
    coverage = np.array([cell["coverage"][method] for cell in found])
    return {
        "cells": len(found),
        "worst": found[int(coverage.argmin())],
        "min": float(coverage.min()),
        "low": float(np.quantile(coverage, 0.05)),
        "median": float(np.median(coverage)),
        "under 93 %": float((coverage < 0.93).mean()),
        "width": float(np.mean([cell["width"][method] for cell in found])),
        "power": float(np.mean([cell["power"][method] for cell in found])),
    }


def where(cell: Mapping[str, Any]) -> str:
    """The cell in words."""
    spread = "few" if cell["spread"] == "few" else f"spread {cell['spread']}"
    of = cell["figure"] if "figure" in cell else "1 sample" if cell["samples"] == 1 else f"{cell['samples']} samples"
    return f"{cell['problems']} problems, {of}, mean {cell['mean']:g}, {spread}"


def table(results: Mapping[str, Any]) -> str:
    """The page's tables. Of up to 100 problems, where the bootstraps were run, too."""
    head = "| method | worst | 5 % of cells below | median | cells under 93 % | mean width | worst cell |"
    lines = ["One model: coverage of 95 % intervals, up to 100 problems.", "", head, "|:--|--:|--:|--:|--:|--:|:--|"]
    small = [cell for cell in results["one"] if cell["problems"] <= RESAMPLED_PROBLEMS]
    for method in ONE:
        lines.append(_line(method, summary(small, method), "width"))
    for change in CHANGES:
        what = "false alarms" if change == "equal" else "told apart"
        lines += ["", f"Two models, {change}: the same, and how often they are told apart ({what}, mean).", ""]
        lines += [head.replace("mean width", what), "|:--|--:|--:|--:|--:|--:|:--|"]
        cells = [cell for cell in results["two"] if cell["problems"] <= RESAMPLED_PROBLEMS and cell["change"] == change]
        lines += [_line(method, summary(cells, method), "power") for method in TWO]
    return "\n".join(lines)


def sentence_of_one(results: Mapping[str, Any]) -> str:
    """What docs/evaluation.md says of the coverage for one model."""
    ours, before = (summary(results["one"], method) for method in (CHOSEN[0], "percentile bootstrap"))
    shares = [f"{100 * share:.1f} %" for share in (ours["median"], ours["low"], ours["min"], before["min"])]
    return (
        f"In a simulation of {ours['cells']} cells (mean, spread, problems, samples, metric; `studies/intervals`), the "
        f"interval contains the true value in {shares[0]} of the cases in the median cell, in {shares[1]} or more in "
        f"95 % of the cells, and in {shares[2]} in the worst cell ({where(ours['worst'])}). For the percentile "
        f"bootstrap, the worst cell has {shares[3]}."
    )


def sentence_of_two(results: Mapping[str, Any]) -> str:
    """What docs/evaluation.md says of the coverage for two models."""
    of = {change: [cell for cell in results["two"] if cell["change"] == change] for change in CHANGES}
    equal, gain, few = (summary(of[change], CHOSEN[1]) for change in CHANGES)
    before = summary(of["equal"], "percentile bootstrap")
    shares = (equal["power"], 1 - equal["min"], 1 - before["min"], gain["median"], gain["min"], few["min"])
    alarms, most, other, median, least, missed = (f"{100 * share:.1f} %" for share in shares)
    return (
        f"In the simulation, it finds a difference between equal models in {alarms} of the cases on average and in "
        f"{most} in the worst of {equal['cells']} cells (percentile bootstrap: {other}). If one model solves a tenth "
        f"of what the other one misses, the interval contains this gain in {median} of the cases in the median cell "
        f"and in {least} in the worst cell ({where(gain['worst'])}). It does not cover a difference that comes from a "
        f"few problems which the benchmark happens not to have: with one such problem in twenty, it contains the true "
        f"difference in {missed} in the worst cell ({where(few['worst'])})."
    )


def _line(method: str, found: Mapping[str, Any], last: str) -> str:
    shares = [f"{100 * found[name]:.1f} %" for name in ("min", "low", "median", "under 93 %")]
    width = f"{found['width']:.3f}" if last == "width" else f"{100 * found['power']:.1f} %"
    name = f"**{method}**" if method in CHOSEN else method
    return f"| {name} | {' | '.join(shares)} | {width} | {where(found['worst'])} |"


def _rng(problems: int, mean: float, spread: str, samples: int, change: int = 9) -> np.random.Generator:
    return np.random.default_rng([problems, round(1000 * mean), SPREADS.index(spread), samples, change])


def _resampled(values: Values, rng: np.random.Generator) -> Values:
    """[T, R] means of resampled problems; all trials share their resamples, which makes it one matrix product."""
    size = values.shape[-1]
    weights = rng.multinomial(size, [1 / size] * size, size=RESAMPLES)
    return np.asarray(values @ weights.T / size)


def _measured(methods: Mapping[str, Method], values: Values, truth: float, rng: np.random.Generator) -> dict[str, Any]:
    coverage, width, power = {}, {}, {}
    for name, method in methods.items():
        if name in BOOTSTRAPS and values.shape[-1] > RESAMPLED_PROBLEMS:
            continue
        low, high = method(values[:RESAMPLED_TRIALS] if name in BOOTSTRAPS else values, rng)
        coverage[name] = round(float(((low <= truth + 1e-9) & (high >= truth - 1e-9)).mean()), 4)
        width[name] = round(float((high - low).mean()), 4)
        power[name] = round(float(((low > 1e-9) | (high < -1e-9)).mean()), 4)
    return {"coverage": coverage, "width": width, "power": power}


def _written(results: Mapping[str, Any]) -> str:
    """JSON with a cell per line: what was measured as lists, in the order of the methods."""
    dump = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
    parts = [f'"settings":{dump(results["settings"])}', f'"methods":{dump([list(ONE), list(TWO)])}']
    for part, methods in (("one", ONE), ("two", TWO)):
        lines = [
            dump({**cell, **{name: [cell[name].get(method) for method in methods] for name in MEASURED}})
            for cell in results[part]
        ]
        parts.append(f'"{part}":[\n' + ",\n".join(lines) + "\n]")
    return "{" + ",\n".join(parts) + "}\n"


def load(path: Path = RESULTS) -> dict[str, Any]:
    """What `run` returned."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for part, methods in zip(("one", "two"), results.pop("methods"), strict=True):
        for cell in results[part]:
            for name in MEASURED:
                values = zip(methods, cell[name], strict=True)
                cell[name] = {method: value for method, value in values if value is not None}
    return results


def main() -> None:
    """Run the study, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of the committed results")
    arguments = parser.parse_args()
    if not arguments.table:
        started = time.perf_counter()
        arguments.out.write_text(_written(run()), encoding="utf-8")
        print(f"{time.perf_counter() - started:.0f} s")
    print(table(load(arguments.out)))


if __name__ == "__main__":
    main()
