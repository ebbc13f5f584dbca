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
import hashlib
import json
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

import dgpo
from dgpo.files import write_json_atomic
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.demo import SETTINGS
from dgpo.training.starter import character_tokenizer, tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_fast
from scripted import rewards, rollout
from trainer_step import STOCK, machine, train_silently
from workers import ROOT, Worker, checkout, commit_of, reset_peak, serve, status

RESULTS = Path(__file__).parent / "results" / "ragged_step.json"
BEFORE = "85b1cffbed9d"
"""The last commit before."""
TOKENIZER = character_tokenizer()
SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
"""Of SmolLM2-135M, which has 30 layers."""
AGREE = 1e-4
"""Largest relative difference between norms of gradients in float32."""

OURS, THEN = "DGPOTrainer", "DGPOTrainer, before"
WITHOUT = {
    "DGPOTrainer, sort_by_length=False": {"sort_by_length": False},
    "DGPOTrainer, shared_prompts=False": {"shared_prompts": False},
    "DGPOTrainer, padding_free=False": {"padding_free": False},
}
KNOWN = {known.name for known in fields(DGPOConfig)}
TRAINERS: dict[str, dict[str, Any]] = {
    name: options for name, options in {STOCK: {}, THEN: {}, OURS: {}, **WITHOUT}.items() if options.keys() <= KNOWN
}
"""Name -> options of ours."""
EVERY = tuple(TRAINERS)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its batches, and who is measured how often."""

    layers: int
    """Of SmolLM2's shapes; 0: the demo's model."""
    mean: float
    """Of the log-normal lengths, before they are cut at `longest`."""
    sigma: float = 0.8
    longest: int
    prompt: int = 32
    group: int = 8
    rows: int = 4
    """Completions of a micro-batch."""
    accumulation: int = 16
    updates_per_generation: int = 1
    updates: int = 1
    """Of a round."""
    skip: int = 0
    """First updates of a round that are not counted."""
    without_spread: float = 0.0
    """Share of the groups whose rewards are equal."""
    rounds: int = 1
    trainers: tuple[str, ...] = EVERY
    stock_micro_batches: int | None = None
    """Stock TRL is measured on so many micro-batches of the update only: all of its are padded to the same length."""

    def model(self) -> PreTrainedModel:
        """The same random weights at every call."""
        if not self.layers:
            return tiny_model(TOKENIZER)
        set_seed(0)
        config = LlamaConfig(
            **SMOLLM2,
            num_hidden_layers=self.layers,
            pad_token_id=TOKENIZER.pad_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            bos_token_id=None,
            dtype=torch.float32,
        )
        return LlamaForCausalLM(config)

    def lengths(self, count: int, generator: torch.Generator) -> list[int]:
        """Log-normal, at least 1 and at most `longest`."""
        drawn = torch.randn(count, generator=generator).mul(self.sigma).exp().mul(self.mean * exp(-(self.sigma**2) / 2))
        return drawn.round().clamp(1, self.longest).long().tolist()

    def settings(self, folder: str) -> dict[str, Any]:
        """What all trainers share."""
        return {
            **SETTINGS,
            "output_dir": folder,
            "per_device_train_batch_size": self.rows,
            "gradient_accumulation_steps": self.accumulation,
            "steps_per_generation": self.accumulation * self.updates_per_generation,
            "num_generations": self.group,
            "max_completion_length": self.longest,
            "max_steps": self.updates,
            "logging_steps": 1 if self.layers else self.updates_per_generation,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "seed": 0,
        }


LONG = {"mean": 500.0, "longest": 2048}
CASES = {
    "2 layers": Case(layers=2, mean=64, longest=256, rounds=2),
    "2 layers, half of the groups without spread": Case(
        layers=2, mean=64, longest=256, without_spread=0.5, trainers=(THEN, OURS), rounds=2
    ),
    "30 layers": Case(layers=30, mean=64, longest=256, trainers=(STOCK, THEN, OURS)),
    "2 layers, long": Case(layers=2, **LONG, trainers=(STOCK, THEN, OURS, *WITHOUT), stock_micro_batches=2),
    "2 layers, long, prompts of 500": Case(
        layers=2, **LONG, prompt=500, trainers=(THEN, OURS, "DGPOTrainer, shared_prompts=False")
    ),
    "30 layers, prompts of 64": Case(
        layers=30, mean=64, longest=256, prompt=64, trainers=(THEN, OURS, "DGPOTrainer, shared_prompts=False")
    ),
    "demo, equal lengths, groups of 2": Case(
        layers=0,
        mean=Addition.max_new_tokens,
        sigma=0.0,
        longest=Addition.max_new_tokens,
        prompt=8,
        group=2,
        rows=64,
        accumulation=1,
        updates_per_generation=4,
        updates=12,
        skip=4,
        rounds=7,
        trainers=(STOCK, THEN, OURS),
    ),
}


class Enough(Exception):
    """As many micro-batches as were asked for are done."""


class Meter(TrainerCallback):  # type: ignore[misc]
    """Clocks, positions and peak memory of the updates after the first `skip`; norms of gradients; our own padding.

    Args:
        skip: updates that are not counted.
        only: stop after so many micro-batches of the first update.
    """

    def __init__(self, skip: int, only: int | None) -> None:
        self._skip, self._only = skip, only
        self._began = (0.0, 0.0)
        self._held = 0
        self._substeps = 0
        self._positions = 0
        self.norms: list[float] = []
        self.padding: list[float] = []
        self.found: dict[str, float] = {}

    def _count(self, _module: Any, given: tuple[Any, ...], _output: Any) -> None:
        if torch.is_grad_enabled():
            self._positions += given[0].numel()

    def _start(self) -> None:
        self._began, self._positions = (time.process_time(), time.perf_counter()), 0

    def _stop(self) -> None:
        self.found = {
            "seconds": time.process_time() - self._began[0],
            "wall": time.perf_counter() - self._began[1],
            "positions": self._positions,
            "peak_mib": (status("VmHWM") - self._held) / 1024,
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.get_input_embeddings().register_forward_hook(self._count)
        reset_peak()
        self._held = status("VmRSS")
        self._start()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._substeps += 1
        if self._substeps == self._only:
            self._stop()
            raise Enough

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        if state.global_step == self._skip:
            self._start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.norms += [float(logs["grad_norm"])] if "grad_norm" in logs else []
        self.padding += [float(logs["objective/padding"])] if "objective/padding" in logs else []


def train(case: Case, name: str, round_: int) -> dict[str, Any]:
    """One round of one trainer, in this process.

    Returns:
        `seconds`, `wall` and `positions` (that the model computes with a gradient) per update; `peak_mib`; `norms` of
        the gradients that were logged; `padding`, our own metric, if there is one; `tokens` of prompts and completions
        per update, and `batches`, a hash of them; `share` of the update that was measured; `source`, our package.
    """
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    model = case.model()
    digest, lengths = hashlib.sha256(), [0]
    scripted = rollout(TOKENIZER, model.config.vocab_size, case.lengths, case.prompt, first=1000 * round_)

    def watched(prompts: list[str], trainer: Any) -> dict[str, Any]:
        found = scripted(prompts, trainer)
        digest.update(json.dumps([found["prompt_ids"], found["completion_ids"]]).encode())
        lengths[0] += sum(map(len, found["prompt_ids"])) + sum(map(len, found["completion_ids"]))
        return found

    completions = case.rows * case.accumulation * case.updates_per_generation
    given = {
        "reward_funcs": rewards(case.group, lambda _: case.without_spread),
        "train_dataset": Dataset.from_dict({"prompt": [f"{i}" for i in range(completions * case.updates)]}),
        "processing_class": TOKENIZER,
        "rollout_func": watched,
    }
    only = case.stock_micro_batches if name == STOCK else None
    meter = Meter(case.skip, only)
    with tempfile.TemporaryDirectory() as folder:
        shared = case.settings(folder)
        if name == STOCK:
            trainer = GRPOTrainer(model, args=GRPOConfig(**shared), **given)
        else:
            trainer = DGPOTrainer(model, args=DGPOConfig(objective="grpo", **TRAINERS[name], **shared), **given)
        with suppress(Enough):
            train_silently(trainer, meter)
    share = 1.0 if only is None else only / case.accumulation
    counted = (case.updates - case.skip) * share
    return {
        **{key: meter.found[key] / counted for key in ("seconds", "wall", "positions")},
        "peak_mib": meter.found["peak_mib"],
        "norms": meter.norms,
        "padding": meter.padding,
        "tokens": lengths[0] / case.updates,
        "batches": digest.hexdigest()[:16],
        "share": share,
        "parameters": model.num_parameters(),
        "source": dgpo.__file__,
    }


def check(name: str, found: dict[str, dict[str, Any]], sources: dict[str, Path]) -> None:
    """That a round compares the same thing: one batch, one gradient, and each trainer from its own checkout.

    Args:
        name: of the case.
        found: trainer -> what `train` returned.
        sources: trainer -> the checkout that it should have imported.

    Raises:
        RuntimeError: if not; says which trainer differs.
    """
    reference_name, reference = next((name, row) for name, row in found.items() if row["norms"])
    for trainer, row in found.items():
        if not Path(row["source"]).is_relative_to(sources[trainer]):
            raise RuntimeError(f"{name}: {trainer} imported {row['source']}; expected {sources[trainer]}")
        if row["batches"] != reference["batches"]:
            raise RuntimeError(f"{name}: {trainer} and {reference_name} have trained on different batches")
        if row["norms"]:
            one, other = row["norms"][0], reference["norms"][0]
            if not abs(one - other) <= AGREE * abs(other):
                raise RuntimeError(
                    f"{name}: the first gradient of {trainer} has the norm {one:.7g}, that of {reference_name} "
                    f"{other:.7g}; expected a relative difference of at most {AGREE}"
                )


def measure(name: str, trainers: list[str], sources: dict[str, Path], rounds: int) -> dict[str, Any]:
    """All rounds of a case: trainer -> its row of the result file."""
    found: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in trainers}
    with ExitStack() as stack:
        processes = {
            trainer: stack.enter_context(Worker(Path(__file__), ["--serve"], sources[trainer])) for trainer in trainers
        }
        for round_ in range(rounds):
            turn = round_ % len(trainers)
            for trainer in trainers[turn:] + trainers[:turn]:
                found[trainer].append(processes[trainer].ask(case=name, trainer=trainer, round=round_))
                print(f"{name}, round {round_ + 1}, {trainer}: {found[trainer][-1]['seconds']:.2f} s", flush=True)
            check(name, {trainer: rows[-1] for trainer, rows in found.items()}, sources)
    return {trainer: summary(rows) for trainer, rows in found.items()}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a trainer's rounds: every round's seconds; positions and padding as means; memory of the first round."""
    first = rounds[0]
    positions = fmean(row["positions"] for row in rounds)
    logged = [share for row in rounds for share in row["padding"]]
    # without our metric, nothing is shared or packed: what is no token is padding
    padding = fmean(logged) if logged else 1 - fmean(row["tokens"] for row in rounds) / positions
    return {
        "rounds": [row["seconds"] for row in rounds],
        "wall": [row["wall"] for row in rounds],
        "positions": round(positions),
        "tokens": round(fmean(row["tokens"] for row in rounds)),
        "padding": padding,
        "peak_mib": first["peak_mib"],
        # gradients and AdamW's two moments, which every trainer holds
        "state_mib": 3 * 4 * first["parameters"] / 2**20,
        "norms": [row["norms"][:1] for row in rounds],
        "share": first["share"],
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
            f"{row['padding']:.1%}",
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
    parser.add_argument("--before", type=Path, metavar="FOLDER", help=f"a checkout; default: commit {BEFORE}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(lambda request: train(CASES[request["case"]], request["trainer"], request["round"]))
        return
    with tempfile.TemporaryDirectory() as folder:
        before = args.before.resolve() if args.before else checkout(BEFORE, Path(folder))
        sources = {name: before if name == THEN else ROOT for name in TRAINERS}
        document = json.loads(args.out.read_text()) if args.out.is_file() else {"cases": {}}
        for name in args.cases:
            case = CASES[name]
            facts = machine()
            rows = measure(
                name,
                [trainer for trainer in args.trainers or case.trainers if trainer in TRAINERS],
                sources,
                args.rounds or case.rounds,
            )
            Console(width=140).print(
                table(name, rows, STOCK if STOCK in rows else THEN if THEN in rows else next(iter(rows)))
            )
            document["cases"][name] = {
                "machine": facts,
                "commit": commit_of(ROOT),
                "before": commit_of(before) if args.before else BEFORE,
                "case": asdict(case),
                "trainers": rows,
            }
            write_json_atomic(args.out, document)
    print(args.out)


if __name__ == "__main__":
    main()
