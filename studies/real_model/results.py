"""From finished runs to what is committed of them, and from that to the figure and tables of docs/first-run.md.

python studies/real_model/results.py --collect outputs/llm      # results/seed-N.json, from every seed in the folder
python studies/real_model/results.py [--check]                  # docs/figures/first_run.svg, the parts of the page
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "docs/figures"), str(ROOT / "studies/atlas")]

import drawing  # noqa: E402
from learn import cells, figures  # noqa: E402
from markdown_table import filled, table  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from words import KINDS  # noqa: E402

from dgpo.files import read_json, write_json_atomic  # noqa: E402
from dgpo.runs.metrics import read_metrics  # noqa: E402

RESULTS = HERE / "results"
PAGE = ROOT / "docs/first-run.md"
FIGURE = drawing.FOLDER / "first_run.svg"
CURVES = {
    "reward": "mean reward of a generation",
    "completions/mean_length": "mean length, tokens",
    "entropy": "entropy, nats per token",
    "frac_reward_zero_std": "groups without spread",
}
"""Metric -> title of its panel."""
SHOWN = 10
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def collect(out: Path) -> None:
    """Write results/seed-N.json for every finished seed under `out`.

    Raises:
        ValueError: no seed has finished there.
    """
    summaries = sorted(out.glob("seed-*/summary.json"))
    if not summaries:
        raise ValueError(f"{out} has no seed-N/summary.json; run studies/real_model/learn.py first")
    before = greedy(out / "before")
    for path in summaries:
        lines = [line for line in read_metrics(path.parent / "record" / "metrics.jsonl") if "step" in line]
        curves = {name: [[line["step"], round(line[name], 4)] for line in lines if name in line] for name in CURVES}
        after = greedy(path.parent / "after")
        answers = [
            {"problem": row["prompt"][-1]["content"], "answer": row["answer"], **sides(row, after[identity])}
            for identity, row in list(before.items())[:SHOWN]
        ]
        kinds = {
            side: by_kind(folder) for side, folder in (("before", out / "before"), ("after", path.parent / "after"))
        }
        found = read_json(path) | figures(out, path.parent) | {"kinds": kinds, "curves": curves, "answers": answers}
        write_json_atomic(RESULTS / f"{path.parent.name}.json", found)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The graded completions of an evaluation."""
    with (folder / "generations.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def by_kind(folder: Path) -> dict[str, float]:
    """Accuracy of the sampled completions by kind of problem, in percent."""
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for row in rows_of(folder):
        if row["kind"] == "sample":
            scores[row["id"].split("-")[1]].append(row["score"])
    return {kind: round(100 * sum(found) / len(found), 1) for kind, found in scores.items()}


def greedy(folder: Path) -> dict[str, dict[str, Any]]:
    """The greedy completions of an evaluation by id, in the order of the problems."""
    kept = sorted((row for row in rows_of(folder) if row["kind"] == "greedy"), key=lambda row: row["index"])
    return {row["id"]: row for row in kept}


def sides(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Text and score of the two completions of one problem."""
    return {
        f"{side}{what}": row[key]
        for side, row in (("before", before), ("after", after))
        for what, key in (("", "completion"), ("_score", "score"))
    }


def curves(seeds: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel per metric, one line per seed."""
    figure = drawing.blank(8.2, 2.3)
    for place, (name, title) in enumerate(CURVES.items()):
        axes = figure.add_subplot(1, len(CURVES), place + 1)
        for seed, colour in zip(seeds, COLOURS, strict=False):
            steps, values = zip(*seed["curves"][name], strict=True)
            axes.plot(steps, values, color=colour, linewidth=1.2, label=f"seed {seed['seed']}")
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("update")
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def accuracy(seeds: Sequence[Mapping[str, Any]], task: str) -> str:
    """Rows: seed and metric; before, after, difference with its interval."""
    rows = []
    for seed in (seed for seed in seeds if task in seed):
        for metric, row in seed[task].items():
            if metric == "problems":
                continue
            rows.append([str(seed["seed"]), metric, *cells(row)])
    return table(["seed", "%", "before", "after", "difference (95 % interval)"], rows)


def kinds(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Rows: kind of problem with an example; accuracy before, and after with every seed."""
    rows = [
        [KINDS[kind].format(a="Ann", b="Ben", o="books", x=3, y=4, z=5, sum=7, product=12), f"{before:.0f}"]
        + [f"{seed['kinds']['after'][kind]:.0f}" for seed in seeds]
        for kind, before in seeds[0]["kinds"]["before"].items()
    ]
    return table(["kind", "before", *(f"after, seed {seed['seed']}" for seed in seeds)], rows)


def answers(seed: Mapping[str, Any]) -> str:
    """Rows: problem, right answer, greedy completion before and after with its score."""
    rows = [
        [
            row["problem"],
            row["answer"],
            *(f"{cell(row[side])} {mark(row[side + '_score'])}" for side in ("before", "after")),
        ]
        for row in seed["answers"]
    ]
    return table(["problem", "answer", "before", "after"], rows)


def cell(text: str) -> str:
    """A completion as code in one cell of a table."""
    return "`" + text.replace("\n", "⏎").replace("`", "'").replace("|", "\\|") + "`"


def mark(score: float | None) -> str:
    """Whether it was right."""
    return "✓" if score == 1 else "✗"


def cost(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Rows: seed; minutes of its stages."""
    names = ("before", "training", "after")
    rows = [
        [str(seed["seed"]), seed["hardware"], *(f"{seed['seconds'][name] / 60:.1f}" for name in names)]
        for seed in seeds
    ]
    return table(["seed", "hardware", "evaluation before, min", "training, min", "evaluation after, min"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Collect, or write the figure and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="folder of studies/real_model/learn.py")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    arguments = parser.parse_args(argv)
    if arguments.collect is not None:
        collect(arguments.collect)
    seeds = [read_json(path) for path in sorted(RESULTS.glob("seed-*.json"))]
    parts = {
        "accuracy": accuracy(seeds, "words"),
        "kinds": kinds(seeds),
        "answers": answers(seeds[0]),
        "cost": cost(seeds),
    }
    if any("gsm8k" in seed for seed in seeds):
        parts["gsm8k"] = accuracy(seeds, "gsm8k")
    files = {
        FIGURE: drawing.svg(lambda: curves(seeds)),
        PAGE: filled(PAGE.read_text(encoding="utf-8"), parts, "real model").encode(),
    }
    return drawing.write(files, check=arguments.check, command="python studies/real_model/results.py")


if __name__ == "__main__":
    raise SystemExit(main())
