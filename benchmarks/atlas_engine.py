"""CPU-seconds per seed of many runs at once: the engine of studies/atlas against DGPOTrainer, in one process.

    python benchmarks/atlas_engine.py            # or: make bench

Both train a GPT-2 of 0.1 million parameters on the task `reverse`, 64 completions per update and 16 updates per
generation, with generation, rewards, metrics and, for the engine, evaluations. They take turns; the CPU time of the
process and its children counts. Fewer updates than a run has are measured, and scaled to 512: every generation of 16
costs the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from atlas_case import OBJECTIVE, PROBLEM, SHAPE, UPDATES, K, seconds_per_seed
from datasets import Dataset
from ordinary import model_of, words
from rich.console import Console
from rich.table import Table
from trainer_step import Stopwatch, machine, train_silently

from dgpo.files import write_json_atomic
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.demo import SETTINGS
from dgpo.training.starter import one_thread

RESULTS = Path(__file__).parent / "results" / "atlas_engine.json"
ENGINE, TRAINER = "engine of studies/atlas", "DGPOTrainer"


def cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Half of all completions. Groups without spread would cost the trainer less, and the engine the same."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def of_trainer(updates: int) -> float:
    """CPU-seconds of 512 updates."""
    prompts, _ = PROBLEM.draw(2048, torch.Generator().manual_seed(0))
    rows = [" ".join(map(str, prompt)) for prompt in prompts.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        config = DGPOConfig(
            **{
                **SETTINGS,
                "output_dir": folder,
                "objective": OBJECTIVE,
                "steps_per_generation": K,
                "max_completion_length": SHAPE.response,
                "max_steps": K + updates,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "report_to": [],
                "disable_tqdm": True,
                "use_cpu": True,
                "dataloader_pin_memory": False,
            }
        )
        trainer = DGPOTrainer(
            model_of(SHAPE, SHAPE.initial([0]), 0),
            even,
            config,
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=words(),
        )
        # from the end of the first generation on
        watch = Stopwatch(K, cpu_seconds)
        train_silently(trainer, watch)
    return (watch.end - watch.start) * UPDATES / updates


@one_thread()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", type=int, default=16, help="seeds that the engine trains at once")
    parser.add_argument("--updates", type=int, default=32, help="that are measured, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.updates < K or args.updates % K:
        parser.error(f"--updates {args.updates}; expected a multiple of {K}, the updates per generation")

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    facts, loads = machine(), []
    measured: dict[str, Callable[[], float]] = {
        ENGINE: lambda: seconds_per_seed(args.members, args.updates, torch.device("cpu"), cpu_seconds),
        TRAINER: lambda: of_trainer(args.updates),
    }
    rounds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(args.rounds):
        for name, measure in measured.items():
            loads.append(round(os.getloadavg()[0], 2))
            rounds[name].append(measure())
            print(f"{name}: {rounds[name][-1]:.1f} CPU-seconds per seed, load {loads[-1]}", flush=True)
    rows = {
        name: {"cpu_seconds_per_seed": min(seconds), "rounds": [round(s, 2) for s in seconds]}
        for name, seconds in rounds.items()
    }
    ratios = [trainer / engine for trainer, engine in zip(rounds[TRAINER], rounds[ENGINE], strict=True)]
    view = Table(title=f"{UPDATES} updates of 64 completions, {SHAPE.size:,} parameters")
    for column in ("", "CPU-seconds per seed"):
        view.add_column(column)
    for name, row in rows.items():
        view.add_row(name, f"{row['cpu_seconds_per_seed']:.1f}")
    Console().print(view)
    setting = {
        "parameters": SHAPE.size,
        "task": PROBLEM.name,
        "members": args.members,
        "completions_per_update": 64,
        "updates_per_generation": K,
        "updates": UPDATES,
        "measured_updates": args.updates,
        "loads": loads,
    }
    document = {"machine": facts, "setting": setting, "rows": rows, "ratio": {"low": min(ratios), "high": max(ratios)}}
    print(write_json_atomic(args.out, document))


if __name__ == "__main__":
    main()
