"""Whole optimiser steps: DGPOTrainer, straight from hidden states and from log-probs, against stock GRPOTrainer.

    python benchmarks/fused_step.py

Two models: the demo's (a million parameters, 99 tokens), and a small body under a real vocabulary (151,936 tokens).
Completions are scripted, so that generation costs nothing and all trainers see the same batches; a share of the groups
has equal rewards, and so no advantage. All trainers start every round from the same weights; their order rotates.
The time is that of the process on one thread, from the end of one generation's updates to the end of the last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer

from dgpo.files import write_json_atomic
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.demo import SETTINGS
from dgpo.training.starter import character_tokenizer, one_thread, tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_fast
from scripted import rewards, rollout
from trainer_step import STOCK, machine, seconds_per_update

RESULTS = Path(__file__).parent / "results" / "fused_step.json"
TOKENIZER = character_tokenizer()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, and the batches that it is trained on."""

    vocabulary: int
    hidden: int
    layers: int
    completions: int
    length: int

    def model(self) -> PreTrainedModel:
        """The same random weights at every call."""
        if self.vocabulary == len(TOKENIZER):
            return tiny_model(TOKENIZER, hidden=self.hidden, layers=self.layers)
        set_seed(0)
        config = Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=4 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=self.hidden // 4,
            tie_word_embeddings=True,
            pad_token_id=TOKENIZER.pad_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            bos_token_id=None,
            dtype=torch.float32,
        )
        return Qwen3ForCausalLM(config)


CASES = {
    "demo": Case(vocabulary=len(TOKENIZER), hidden=128, layers=4, completions=64, length=Addition.max_new_tokens),
    "V=151,936": Case(vocabulary=151_936, hidden=256, layers=2, completions=16, length=32),
}


def trainers(case: Case, without_spread: float, updates: int, folder: str) -> dict[str, Callable[[], GRPOTrainer]]:
    """Name -> how to make it."""
    shared = {
        **SETTINGS,
        "output_dir": folder,
        "per_device_train_batch_size": case.completions,
        "max_completion_length": case.length,
        "max_steps": updates,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    given = {
        "reward_funcs": rewards(shared["num_generations"], lambda _: without_spread),
        "train_dataset": Addition().dataset("train").select(range(2048)),
        "processing_class": TOKENIZER,
        "rollout_func": rollout(TOKENIZER, case.vocabulary, lambda count, _: [case.length] * count),
    }
    return {
        STOCK: lambda: GRPOTrainer(case.model(), args=GRPOConfig(**shared), **given),
        "DGPOTrainer, fused_loss=False": lambda: DGPOTrainer(
            case.model(), args=DGPOConfig(objective="grpo", fused_loss=False, **shared), **given
        ),
        "DGPOTrainer": lambda: DGPOTrainer(case.model(), args=DGPOConfig(objective="grpo", **shared), **given),
    }


def measure(case: Case, without_spread: float, rounds: int, updates: int, skip: int) -> dict[str, dict[str, Any]]:
    """Seconds of every round by trainer, and how many times as fast as stock TRL."""
    with tempfile.TemporaryDirectory() as folder:
        makers = trainers(case, without_spread, updates, folder)
        names = list(makers)
        times: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(rounds):
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                times[name].append(seconds_per_update(makers[name], skip, updates, time.process_time))
    return {
        name: {
            "seconds": ratio.seconds,
            "speedup": {"times": ratio.times, "min": ratio.low, "max": ratio.high},
            "rounds": times[name],
        }
        for name, ratio in times_as_fast(times, STOCK).items()
    }


def table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """One row per trainer."""
    view = Table(title=title, caption="medians over rounds and their quotients; ranges of the quotients within a round")
    view.add_column("trainer", min_width=18)
    for column in ("ms/update", "x TRL", "min .. max"):
        view.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        speedup = row["speedup"]
        view.add_row(
            name,
            f"{1000 * row['seconds']:.1f}",
            f"{speedup['times']:.2f}",
            f"{speedup['min']:.2f} .. {speedup['max']:.2f}",
        )
    return view


@one_thread()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--without-spread", type=float, nargs="+", choices=(0.0, 0.5), default=[0.0, 0.5])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=12, help="of each trainer in each round")
    parser.add_argument("--skip", type=int, default=4, help="first updates that are not counted: one generation")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not 0 < args.skip < args.updates:
        parser.error(f"--skip {args.skip} --updates {args.updates}; expected 0 < skip < updates")

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    # what was measured before stays in the file, case by case: with one thread the whole takes a while
    document = json.loads(args.out.read_text()) if args.out.is_file() else {"cases": {}}
    for name in args.cases:
        for share in args.without_spread:
            case, facts = CASES[name], machine()
            rows = measure(case, share, args.rounds, args.updates, args.skip)
            title = f"{name}, {share:.0%} of groups without spread"
            Console().print(table(title, rows))
            document["cases"][title] = {
                "machine": facts,
                "parameters": case.model().num_parameters(),
                "completions_per_update": case.completions,
                "tokens_per_completion": case.length,
                "updates_per_generation": SETTINGS["steps_per_generation"],
                "updates": args.updates,
                "skipped": args.skip,
                "trainers": rows,
            }
            write_json_atomic(args.out, document)
    print(args.out)


if __name__ == "__main__":
    main()
