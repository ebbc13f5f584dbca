"""Bias, variance and stale updates of every method where the true gradient is known; see README.md.

python studies/bias/run.py            compute, print the tables, write results/
python studies/bias/run.py --tables   print the tables of the committed results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softmax_bias import Baseline, drifted, estimator
from stale import StaleToken, flow, trajectory

from dgpo import objectives
from dgpo.objectives import Objective

RESULTS = Path(__file__).parent / "results"

METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "is": ("is", {}),
    "grpo": ("grpo", {}),
    "cispo_two_sided": ("cispo_two_sided", {}),
    "cispo, cap 1.2": ("cispo", {"cap": 1.2}),
    "gppo": ("gppo", {}),
    "ce_gppo": ("ce_gppo", {}),
    "sapo": ("sapo", {}),
    "maspo": ("maspo", {}),
    "dgpo, n=1 m=1": ("dgpo", {"n": 1, "m": 1}),
    "dgpo, n=1 m=2": ("dgpo", {"n": 1, "m": 2}),
    "dgpo, n=2 m=2": ("dgpo", {"n": 2, "m": 2}),
    "dgpo, n=3 m=3": ("dgpo", {"n": 3, "m": 3}),
    "aspo": ("aspo", {}),
    "dppo_tv": ("dppo_tv", {}),
    "cispo, cap 5": ("cispo", {"cap": 5.0}),
    "sapo_unilateral": ("sapo_unilateral", {}),
    "dac": ("dac", {}),
    "bapo": ("bapo", {}),
    "bapo_algorithm1": ("bapo_algorithm1", {}),
    "gspo": ("gspo", {}),
    "gmpo": ("gmpo", {}),
    "vespo": ("vespo", {}),
    "dppo_kl": ("dppo_kl", {}),
    "drpo": ("drpo", {}),
}
"""Label -> name and fields; defaults of the classes where no field stands."""
YARDSTICK = "dgpo, n=1 m=2"

DRIFTS = (0.1, 0.3, 0.6, 1.0)
SEEDS, VOCABULARY, DRAWS = 40, 400, 256

BASELINES: dict[str, Baseline] = {"measured": "none", "centred_old": "old", "centred": "current"}
"""Key of the results -> what is subtracted from A."""

TOKENS = {
    "down": (StaleToken(advantage=-1.0, probability=0.3), (16, 1024)),
    "up": (StaleToken(advantage=1.0, probability=1e-3), (16, 64)),
    "down, rare": (StaleToken(advantage=-1.0, probability=1e-3), (16, 1024)),
}
"""Name -> the token and the numbers of updates that the table shows."""
WITH_FLOW = {"down": 1, "up": 16}
"""Tokens whose flow is computed as well, and with how many substeps: the right side is the steeper one."""
MANY = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
POINTS = {"down": MANY, "up": tuple(range(65)), "down, rare": MANY}
"""Numbers of updates that are kept for the figure."""


def make(label: str) -> Objective:
    """The objective of a label."""
    name, fields = METHODS[label]
    return objectives.make(name, **fields)


def measure_estimators(
    labels: Iterable[str] = METHODS, drifts: Iterable[float] = DRIFTS, baseline: Baseline = "none"
) -> dict[str, Any]:
    """Drift -> label -> figures over the seeds: means of relative bias, variance, MSE and bound, and the MSE's median.

    `seeds_below` counts the seeds in which the MSE is below that of the yardstick.
    """
    measured: dict[str, Any] = {}
    for drift in drifts:
        yardstick = estimator(make(YARDSTICK), drift, range(SEEDS), VOCABULARY, DRAWS, baseline).mse
        measured[str(drift)] = {}
        for label in labels:
            found = estimator(make(label), drift, range(SEEDS), VOCABULARY, DRAWS, baseline)
            measured[str(drift)][label] = {
                "bias": _rounded(found.bias.mean()),
                "variance": _rounded(found.variance.mean()),
                "mse": _rounded(found.mse.mean()),
                "mse_median": _rounded(found.mse.quantile(0.5)),
                "bound": _rounded(found.bound.mean()),
                "seeds_below": int((found.mse < yardstick * (1 - 1e-9)).sum()),
            }
    return measured


def measure_mean_advantage() -> dict[str, float]:
    """Drift -> E_π[A], mean over the seeds: what the baseline under π subtracts."""
    found = {}
    for drift in DRIFTS:
        means = [
            (new.softmax(0) * A).sum() for _, new, A in (drifted(drift, seed, VOCABULARY) for seed in range(SEEDS))
        ]
        found[str(drift)] = _rounded(sum(means) / SEEDS)
    return found


def measure_trajectories(labels: Iterable[str] = METHODS, names: Iterable[str] = TOKENS) -> dict[str, Any]:
    """Token -> label -> log ratio at `POINTS`, simulated, and for some tokens that of the flow and its own time."""
    measured: dict[str, Any] = {}
    for name in names:
        token, (_, steps) = TOKENS[name]
        points = POINTS[name]
        measured[name] = {}
        for label in labels:
            simulated = trajectory(make(label), token, steps)
            figures = {"simulated": [_rounded(simulated[k]) for k in points]}
            if name in WITH_FLOW:
                found = flow(make(label), token, steps, WITH_FLOW[name])
                figures["flow"] = [_rounded(found.log_ratio[k]) for k in points]
                figures["own_time"] = [_rounded(found.own_time[k]) for k in points]
            measured[name][label] = figures
    return measured


def _rounded(value: Any) -> float:
    """Nine digits: what another processor's rounding does not change."""
    return float(f"{float(value):.9g}")


def estimator_table(measured: dict[str, Any]) -> str:
    """Markdown: one row per method, relative bias → relative MSE (median of the MSE over the seeds) per drift."""
    head = ["method", *(f"drift {drift}" for drift in measured), f"seeds below at {list(measured)[-1]}"]
    rows = []
    for label in METHODS:
        cells = [by_label[label] for by_label in measured.values()]
        found = [f"{_short(cell['bias'])} → {_short(cell['mse'])} ({_short(cell['mse_median'])})" for cell in cells]
        rows.append([label, *found, "" if label == YARDSTICK else str(cells[-1]["seeds_below"])])
    return _table(head, rows)


def baseline_table(estimators: dict[str, Any]) -> str:
    """Markdown: mean (and median) of the MSE at the largest drift, by what is subtracted from A; last column sorted."""
    last = str(DRIFTS[-1])
    head = ["method", "A as drawn", "A - E_old[A]", "A - E_π[A]"]
    cells = {label: [estimators[key][last][label] for key in BASELINES] for label in METHODS}
    order = sorted(METHODS, key=lambda label: cells[label][-1]["mse"])
    return _table(
        head, [[label, *(f"{_short(c['mse'])} ({_short(c['mse_median'])})" for c in cells[label])] for label in order]
    )


def mean_advantage_text(estimators: dict[str, Any]) -> str:
    """E_π[A] of the draws as a line of text."""
    return ", ".join(f"{mean:.2f} at drift {drift}" for drift, mean in estimators["mean_advantage"].items())


def break_even(measured: dict[str, Any], label: str = YARDSTICK, unbiased: str = "is") -> dict[str, int]:
    """Drift -> number of draws from which the unbiased estimate has the smaller mean MSE: bias² + V/N = V_is/N."""
    found = {}
    for drift, by_label in measured.items():
        cell = by_label[label]
        saved = (by_label[unbiased]["variance"] - cell["variance"]) * DRAWS
        found[drift] = round(saved / (cell["mse"] - cell["variance"]))
    return found


def break_even_text(measured: dict[str, Any]) -> str:
    """`break_even` of the yardstick as a line of text."""
    return ", ".join(f"{draws} at drift {drift}" for drift, draws in break_even(measured).items())


def trajectory_table(measured: dict[str, Any]) -> str:
    """Markdown: log ratio after so many updates, and of the flow after the last; methods with equal rows share one."""
    head, columns = ["method"], []
    for name, (token, counts) in TOKENS.items():
        which = f"A = {token.advantage:+g}, π_old = {token.probability:g}"
        for k in counts if name in WITH_FLOW else counts[1:]:
            head.append(f"{which}: {k}")
            columns.append((name, "simulated", POINTS[name].index(k)))
        if name in WITH_FLOW:
            head.append(f"flow: {counts[1]}")
            columns.append((name, "flow", POINTS[name].index(counts[1])))
    together: dict[tuple[str, ...], list[str]] = {}
    for label in METHODS:
        cells = tuple(f"{measured[name][label][kind][i]:.2f}" for name, kind, i in columns)
        together.setdefault(cells, []).append(label)
    rows = [["; ".join(labels), *cells] for cells, labels in together.items()]
    return _table(head, rows)


def _short(value: float) -> str:
    return "0" if abs(value) < 5e-5 else f"{value:.4f}" if value < 0.1 else f"{value:#.3g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(name: str) -> dict[str, Any]:
    """Committed figures: "estimator" or "trajectories"."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Compute or read, print, write."""
    parser = argparse.ArgumentParser(description="Exact bias and stale updates of every method.")
    parser.add_argument("--tables", action="store_true", help="compute nothing; print the committed results")
    if parser.parse_args().tables:
        found = {name: read(name) for name in ("estimator", "trajectories")}
    else:
        methods = {label: {"name": name, **asdict(make(label))} for label, (name, _) in METHODS.items()}
        found = {
            "estimator": {
                "setting": {"seeds": SEEDS, "vocabulary": VOCABULARY, "draws": DRAWS},
                "methods": methods,
                "mean_advantage": measure_mean_advantage(),
                **{key: measure_estimators(baseline=baseline) for key, baseline in BASELINES.items()},
            },
            "trajectories": {
                "setting": {name: asdict(token) for name, (token, _) in TOKENS.items()},
                "updates": POINTS,
                "measured": measure_trajectories(),
            },
        }
        RESULTS.mkdir(exist_ok=True)
        for name, figures in found.items():
            (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for key in ("measured", "centred"):
        print(f"{estimator_table(found['estimator'][key])}\n\n{break_even_text(found['estimator'][key])}\n")
    print(f"{baseline_table(found['estimator'])}\n")
    print(trajectory_table(found["trajectories"]["measured"]))


if __name__ == "__main__":
    main()
