"""Seconds per optimiser update: DGPOTrainer against stock GRPOTrainer, interleaved in one process.

    python benchmarks/trainer_step.py            # or: make bench

A randomly initialised model of the starter's size (about a million parameters), the demo's batch sizes, and two lengths
of completions. All trainers start every round from the same weights and draw the same samples; their order rotates.
Generation, rewards and logging are in the measured time, as they are in a run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

import dgpo
from dgpo.files import write_json_atomic
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.demo import SETTINGS
from dgpo.training.starter import character_tokenizer, one_thread, tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_fast

RESULTS = Path(__file__).parent / "results" / "trainer_step.json"
STOCK = "GRPOTrainer (TRL)"


def digits(completions: list[str], **_: Any) -> list[float]:
    """Share of digits: a random model's completions differ in it, so that gradients are not zero."""
    return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in completions]


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Seconds of a clock from the end of update `skip` to the end of the last."""

    def __init__(self, skip: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.skip, self._clock = skip, clock
        self.start = self.end = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end = self._clock()
        if state.global_step == self.skip:
            self.start = self.end


def settings(length: int, updates: int, folder: str) -> dict[str, Any]:
    """What all trainers share."""
    return {
        **SETTINGS,
        "output_dir": folder,
        "max_completion_length": length,
        # no end token: every completion is of this length, and all trainers have the same work
        "generation_kwargs": {"min_new_tokens": length},
        "max_steps": updates,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def trainers(length: int, updates: int, folder: str) -> dict[str, Callable[[], GRPOTrainer]]:
    """Name -> how to make it; every call starts from the same weights."""
    tokenizer = character_tokenizer()
    data = Addition().dataset("train").select(range(2048))
    shared = settings(length, updates, folder)

    def stock() -> GRPOTrainer:
        return GRPOTrainer(
            tiny_model(tokenizer), digits, GRPOConfig(**shared), train_dataset=data, processing_class=tokenizer
        )

    def ours(objective: str) -> GRPOTrainer:
        config = DGPOConfig(objective=objective, **shared)
        return DGPOTrainer(tiny_model(tokenizer), digits, config, train_dataset=data, processing_class=tokenizer)

    return {
        STOCK: stock,
        "DGPOTrainer, grpo": lambda: ours("grpo"),
        "DGPOTrainer, dgpo": lambda: ours("dgpo"),
    }


def train_silently(trainer: GRPOTrainer, watch: TrainerCallback) -> None:
    """Train under a callback, without a line or a bar."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(watch)
    trainer.train()


def seconds_per_update(
    make: Callable[[], GRPOTrainer], skip: int, updates: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of one run, its first `skip` updates left out."""
    watch = Stopwatch(skip, clock)
    train_silently(make(), watch)
    return (watch.end - watch.start) / (updates - skip)


def measure(length: int, rounds: int, updates: int, skip: int) -> dict[str, list[float]]:
    """Seconds per update of every round, by trainer."""
    with tempfile.TemporaryDirectory() as folder:
        makers = trainers(length, updates, folder)
        names = list(makers)
        times: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(rounds):
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                times[name].append(seconds_per_update(makers[name], skip, updates))
    return times


def summarise(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median, minimum and maximum of the seconds, and how many times as fast as stock TRL."""
    return {
        name: {
            "seconds": {"median": ratio.seconds, "min": min(times[name]), "max": max(times[name])},
            "speedup": {"times": ratio.times, "min": ratio.low, "max": ratio.high},
            "rounds": times[name],
        }
        for name, ratio in times_as_fast(times, STOCK).items()
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "dgpo": dgpo.__version__,
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def table(length: int, rows: dict[str, dict[str, Any]]) -> Table:
    """One row per trainer, milliseconds and ratios."""
    view = Table(
        title=f"completions of {length} tokens",
        caption="medians over rounds and their quotients; ranges within a round",
    )
    view.add_column("trainer", min_width=18)
    for column in ("ms/update", "min .. max", "x TRL", "min .. max"):
        view.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        seconds, speedup = row["seconds"], row["speedup"]
        view.add_row(
            name,
            f"{1000 * seconds['median']:.1f}",
            f"{1000 * seconds['min']:.1f} .. {1000 * seconds['max']:.1f}",
            f"{speedup['times']:.2f}",
            f"{speedup['min']:.2f} .. {speedup['max']:.2f}",
        )
    return view


@one_thread()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[Addition.max_new_tokens, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=12, help="of each trainer in each round")
    parser.add_argument("--skip", type=int, default=4, help="first updates that are not counted: one generation")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not 0 < args.skip < args.updates:
        parser.error(f"--skip {args.skip} --updates {args.updates}; expected 0 < skip < updates")

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    facts, console = machine(), Console()
    results = {}
    for length in args.lengths:
        results[str(length)] = summarise(measure(length, args.rounds, args.updates, args.skip))
        console.print(table(length, results[str(length)]))
    setting = {
        "parameters": tiny_model(character_tokenizer()).num_parameters(),
        "completions_per_update": SETTINGS["per_device_train_batch_size"],
        "updates_per_generation": SETTINGS["steps_per_generation"],
        "rounds": args.rounds,
        "updates": args.updates,
        "skipped": args.skip,
    }
    document = {"machine": facts, "setting": setting, "by_completion_length": results}
    print(write_json_atomic(args.out, document))


if __name__ == "__main__":
    main()
