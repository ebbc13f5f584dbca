"""Whole updates on responses of very different lengths: ours with and without each of its parts, before, and stock TRL.

    python benchmarks/ragged_step.py                      # every case, about 35 minutes of one core
    python benchmarks/ragged_step.py --cases "2 layers"   # one of them; the file keeps the others

The shapes are those of SmolLM2-135M with random weights, with 30 layers and with 2. Completions are scripted, so that
generation costs nothing and all trainers see the same batches, 64 completions in 16 micro-batches of 4; a round is one
update on a batch of its own, from the same weights. "Before" is this repository at the commit before updates were made
fast on such lengths. Every trainer is a process of its own, they take turns, and their order rotates.

Seconds are process time on one thread. Peak memory is VmHWM of the first round above what the process holds when
training begins, the model included: gradients, the states of AdamW and everything else. The objective is `grpo`, whose
gradient all of them compute, and a round in which batches or norms of gradients differ is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dgpo.files import write_json_atomic

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_fast
from trainer_step import STOCK, machine
from updates import BUDGET, DEMO, OURS, THEN, TRAINERS, VERL, VERL_ACTOR, WITHOUT, Case, Processes, share, summary
from workers import ROOT, add_before, checkout_of, commit_of

RESULTS = Path(__file__).parent / "results" / "ragged_step.json"
ARRANGED = [name for name in WITHOUT if "shared" not in name]
LONG = {"mean": 500.0, "longest": 2048}
CASES = {
    "2 layers": Case(layers=2, mean=64, longest=256, rounds=2),
    "2 layers, half of the groups without spread": Case(
        layers=2, mean=64, longest=256, without_spread=0.5, trainers=(THEN, OURS), rounds=2
    ),
    "30 layers": Case(layers=30, mean=64, longest=256, trainers=(STOCK, THEN, OURS, VERL_ACTOR)),
    "2 layers, long": Case(layers=2, **LONG, trainers=(STOCK, THEN, OURS, *ARRANGED, *BUDGET), stock_micro_batches=1),
    "2 layers, long, prompts of 500": Case(
        layers=2, **LONG, prompt=500, trainers=(OURS, "DGPOTrainer, shared_prompts=False")
    ),
    "30 layers, prompts of 64": Case(
        layers=30, mean=64, longest=256, prompt=64, trainers=(OURS, "DGPOTrainer, shared_prompts=False")
    ),
    "demo, equal lengths, groups of 2": replace(DEMO, group=2, rounds=7, trainers=(STOCK, THEN, OURS)),
}


def table(title: str, rows: dict[str, dict[str, Any]], baseline: str) -> Table:
    """One row per trainer."""
    view = Table(title=title)
    view.add_column("trainer", min_width=18)
    for column in ("s/update", f"x {baseline}", "min .. max", "positions", "padding", "MiB", "without state"):
        view.add_column(column, justify="right", no_wrap=True)
    for name, ratio in times_as_fast({name: row["rounds"] for name, row in rows.items()}, baseline).items():
        row = rows[name]
        view.add_row(
            name,
            f"{ratio.seconds:.3f}",
            f"{ratio.times:.2f}",
            f"{ratio.low:.2f} .. {ratio.high:.2f}",
            f"{row['positions']:,}",
            share(row["padding"]),
            f"{row['peak_mib']:,.0f}",
            f"{row['peak_mib'] - row['state_mib']:,.0f}",
        )
    return view


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, metavar="TRAINER", help="default: those of the case")
    parser.add_argument("--rounds", type=int, help="default: those of the case")
    parser.add_argument("--verl", type=Path, default=ROOT / ".venv-verl" / "bin" / "python", metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    add_before(parser)
    args = parser.parse_args()
    available = {name for name in TRAINERS if name not in VERL or args.verl.is_file()}
    if len(available) < len(TRAINERS):
        print(f"{args.verl} does not exist, so verl is left out: make .venv-verl/.ready, or --verl PYTHON")
    document = json.loads(args.out.read_text()) if args.out.is_file() else {"cases": {}}
    with checkout_of(args.before) as (before, commit):
        for name in args.cases:
            case, facts = CASES[name], machine()
            chosen = [trainer for trainer in args.trainers or case.trainers if trainer in available]
            with Processes(chosen, before, args.verl) as processes:
                found = processes.measure(name, case, args.rounds or case.rounds)
            rows = {trainer: summary(rounds) for trainer, rounds in found.items()}
            baseline = next(trainer for trainer in (STOCK, THEN, *rows) if trainer in rows)
            Console(width=140).print(table(name, rows, baseline))
            document["cases"][name] = {
                "machine": facts,
                "commit": commit_of(ROOT),
                "before": commit,
                "case": asdict(case),
                "trainers": rows,
            }
            write_json_atomic(args.out, document)
    print(args.out)


if __name__ == "__main__":
    main()
