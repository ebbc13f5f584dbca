"""One round of updates of one trainer, on scripted completions, in a process of its own.

What `ragged_step.py`, `growth.py` and `whole_loop.py` share: a case, a trainer of it, clocks, positions and peak
memory, and the check that all trainers of a case do the same work. As a script it answers requests (`workers.serve`).
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

import dgpo
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.demo import SETTINGS
from dgpo.training.starter import character_tokenizer, tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from scripted import rewards, rollout
from trainer_step import STOCK, train_silently
from workers import ROOT, Worker, reset_peak, serve, status

HERE = Path(__file__).parent
TOKENIZER = character_tokenizer()
SHAPES: dict[str, dict[str, Any]] = {
    # which has 30 layers
    "SmolLM2-135M": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "small": {
        "vocab_size": 8192,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Of a Llama."""
AGREE = 1e-4
"""Largest relative difference between norms of gradients in float32."""

OURS, THEN = "DGPOTrainer", "DGPOTrainer, before"
VERL_ACTOR = "verl's actor"
VERL = {VERL_ACTOR: False, f"{VERL_ACTOR}, fused head": True}
"""Peer in an environment of its own -> whether with its fused head, which on a CPU is the slower one."""
WITHOUT = {
    "DGPOTrainer, sort_by_length=False": {"sort_by_length": False},
    "DGPOTrainer, shared_prompts=False": {"shared_prompts": False},
    "DGPOTrainer, padding_free=False": {"padding_free": False},
}
BUDGET = {"DGPOTrainer, max_tokens_per_micro_batch=2048": {"max_tokens_per_micro_batch": 2048}}
OPTIONS: dict[str, dict[str, Any]] = {STOCK: {}, THEN: {}, OURS: {}, **WITHOUT, **BUDGET}
"""Trainer -> options of ours."""
TRAINERS = (*OPTIONS, *VERL)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its batches, and who is measured how often."""

    layers: int
    """0: the demo's model."""
    shape: str = "SmolLM2-135M"
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
    trainers: tuple[str, ...] = (STOCK, THEN, OURS, *WITHOUT, VERL_ACTOR)
    stock_micro_batches: int | None = None
    """Stock TRL is measured on so many micro-batches of the update only: all of its are padded to the same length."""

    def model(self) -> PreTrainedModel:
        """The same random weights at every call."""
        if not self.layers:
            return tiny_model(TOKENIZER)
        set_seed(0)
        config = LlamaConfig(
            **SHAPES[self.shape],
            num_hidden_layers=self.layers,
            max_position_embeddings=8192,
            rope_theta=100_000.0,
            tie_word_embeddings=True,
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

    def rollout(self, model: PreTrainedModel, round_: int) -> Callable[..., dict[str, Any]]:
        """The completions of a round."""
        return rollout(TOKENIZER, model.config.vocab_size, self.lengths, self.prompt, first=1000 * round_)

    def rewards(self) -> Callable[..., list[float]]:
        """Of every completion."""
        return rewards(self.group, lambda _: self.without_spread)

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


class Enough(Exception):
    """As many micro-batches as were asked for are done."""


DEMO = Case(
    layers=0,
    mean=Addition.max_new_tokens,
    sigma=0.0,
    longest=Addition.max_new_tokens,
    prompt=8,
    rows=64,
    accumulation=1,
    updates_per_generation=4,
    updates=12,
    skip=4,
)
"""The demo's model and batches: four updates on each generation, the first generation not counted."""


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


def quietly() -> None:
    """One thread, and no progress bars."""
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)


def trainer_of(name: str, model: PreTrainedModel, settings: dict[str, Any], **given: Any) -> GRPOTrainer:
    """Stock TRL's trainer, or ours with the objective whose gradient TRL computes."""
    if name == STOCK:
        return GRPOTrainer(model, args=GRPOConfig(**settings), **given)
    return DGPOTrainer(model, args=DGPOConfig(objective="grpo", **OPTIONS[name], **settings), **given)


def train(case: Case, name: str, round_: int) -> dict[str, Any]:
    """One round of one trainer, in this process.

    Returns:
        `seconds`, `wall` and `positions` (that the model computes with a gradient) per update; `peak_mib`; `norms` of
        the gradients that were logged; `padding`, our own metric, if there is one; `tokens` of prompts and completions
        per update, and `batches`, a hash of them; `share` of the update that was measured; `source`, our package.
    """
    quietly()
    model = case.model()
    digest, lengths = hashlib.sha256(), [0]
    scripted = case.rollout(model, round_)

    def watched(prompts: list[str], trainer: Any) -> dict[str, Any]:
        found = scripted(prompts, trainer)
        digest.update(json.dumps([found["prompt_ids"], found["completion_ids"]]).encode())
        lengths[0] += sum(map(len, found["prompt_ids"])) + sum(map(len, found["completion_ids"]))
        return found

    completions = case.rows * case.accumulation * case.updates_per_generation
    given = {
        "reward_funcs": case.rewards(),
        "train_dataset": Dataset.from_dict({"prompt": [f"{i}" for i in range(completions * case.updates)]}),
        "processing_class": TOKENIZER,
        "rollout_func": watched,
    }
    only = case.stock_micro_batches if name == STOCK else None
    meter = Meter(case.skip, only)
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        train_silently(trainer_of(name, model, case.settings(folder), **given), meter)
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


def write_batch(case: Case, model: PreTrainedModel, round_: int, file: Path) -> None:
    """The batch of a round for a peer that takes no `rollout_func`: tokens, and TRL's advantages."""
    count = case.rows * case.accumulation
    state = SimpleNamespace(global_step=0)
    prompts = [str(row // case.group) for row in range(count)]
    batch = case.rollout(model, round_)(prompts, SimpleNamespace(state=state))
    scores = torch.tensor(case.rewards()([""] * count, state)).view(-1, case.group)
    advantages = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    file.write_text(json.dumps({**batch, "advantages": advantages.flatten().tolist()}))


def share(padding: float | None) -> str:
    """In percent; a dash where it is unknown."""
    return "-" if padding is None else f"{padding:.1%}"


def check(name: str, found: dict[str, dict[str, Any]], sources: dict[str, Path]) -> None:
    """That a round compares the same thing: one batch, one gradient, and each trainer from its own checkout.

    Args:
        name: of the case.
        found: trainer -> what `train` returned.
        sources: trainer -> the checkout that it should have imported, if it runs in our environment.

    Raises:
        RuntimeError: if not; says which trainer differs.
    """
    reference_name, reference = next((name, row) for name, row in found.items() if row["norms"])
    for trainer, row in found.items():
        if trainer in sources and not Path(row["source"]).is_relative_to(sources[trainer]):
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


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a trainer's rounds: every round's seconds; positions and padding as means; memory of the first round."""
    first = rounds[0]
    positions = fmean(row["positions"] for row in rounds)
    logged = [share for row in rounds for share in row["padding"]]
    # without our metric, nothing is shared or packed: what is no token is padding. Where responses were left out as
    # well, the two cannot be told apart
    rest = 1 - fmean(row["tokens"] for row in rounds) / positions
    padding = fmean(logged) if logged else rest if rest >= 0 else None
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
        "source": first["source"] if first["source"].startswith("verl") else None,
    }


class Processes:
    """The processes of the trainers that are compared; use it as a context manager.

    Args:
        trainers: their names.
        before: the checkout of `THEN`.
        verl: the interpreter of verl's environment.
    """

    def __init__(self, trainers: Sequence[str], before: Path, verl: Path | None = None) -> None:
        self.trainers = list(trainers)
        self._sources = {name: before if name == THEN else ROOT for name in OPTIONS}
        self._verl = verl
        self._stack = ExitStack()
        self._running: dict[str, Worker] = {}
        self._folder = Path(".")

    def __enter__(self) -> Processes:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        for name in self.trainers:
            process = (
                Worker(HERE / "verl_update.py", [], python=str(self._verl))
                if name in VERL
                else Worker(Path(__file__), [], self._sources[name])
            )
            self._running[name] = self._stack.enter_context(process)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def measure(self, title: str, case: Case, rounds: int) -> dict[str, list[dict[str, Any]]]:
        """Trainer -> what `train` returned in every round. They take turns, in an order that rotates.

        Raises:
            RuntimeError: they did not do the same work (`check`).
        """
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.trainers}
        model = case.model() if any(name in VERL for name in self.trainers) else None
        if model is not None:
            model.save_pretrained(self._folder / "model")
        for round_ in range(rounds):
            turn = round_ % len(self.trainers)
            for name in self.trainers[turn:] + self.trainers[:turn]:
                request: dict[str, Any] = {"case": asdict(case), "trainer": name, "round": round_}
                if model is not None and name in VERL:
                    batch = self._folder / "batch.json"
                    write_batch(case, model, round_, batch)
                    request = {"model": str(self._folder / "model"), "batch": str(batch), "rows": case.rows}
                    request["fused"] = VERL[name]
                row = self._running[name].ask(**request)
                found[name].append(row)
                print(f"{title}, round {round_ + 1}, {name}: {row['seconds']:.3f} s", flush=True)
            check(title, {name: rows[-1] for name, rows in found.items()}, self._sources)
        return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A round of a trainer, as `Processes` asks for it."""
    return train(Case(**request["case"]), request["trainer"], request["round"])


if __name__ == "__main__":
    serve(answer)
