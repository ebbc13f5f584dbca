"""Whole optimiser steps of a Qwen2 with random weights: DGPOTrainer, with parts off and on, against GRPOTrainer.

All train with bf16 autocast on float32 weights, gradient checkpointing and SDPA attention, their defaults, several
micro-batches per update and two updates per generation; TRL's head for log-probs is its fused one. Completions are
scripted, so generation costs nothing: their lengths are log-normal, as those of a model that reasons, and in every
second generation half of the groups have equal rewards. The first generation of a trainer is not counted. Sorting is
turned off, packing and shared prompts on, for the smaller model only, last, as far as the piece's time suffices.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from scripted import random_numbers, rewards, rollout
from trainer_step import STOCK, train_silently
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, TrainerCallback, set_seed
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from updates import BUDGET, OURS

from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.starter import character_tokenizer
from gpu.piece import Findings, NotPossible, device, free, pick, run, synchronise

TOKENIZER = character_tokenizer()
K = 2
"""Updates per generation."""
GROUP = 8
ROWS, ACCUMULATION = pick((8, 4), (4, 2))
"""Completions of a micro-batch, and micro-batches of an update."""
COMPLETIONS = ROWS * ACCUMULATION
PROMPT, MEDIAN, SIGMA, LONGEST = pick((128, 200, 0.8, 1024), (8, 8, 0.8, 32))
"""Tokens: of every prompt; median and spread of the completions before they are cut at the last."""
ROUNDS = pick(2, 1)
SHARES = (0.0, 0.5)
"""Of the groups that have no spread."""
SCHEDULE = (0.0, *SHARES * ROUNDS)
"""The share of every generation; the first one warms up."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model of the Qwen2.5 family."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int = 151_936
    kv_heads: int = 2

    def model(self, device: torch.device) -> PreTrainedModel:
        """The same random float32 weights at every call, made on the device."""
        set_seed(0)
        config = Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=TOKENIZER.pad_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            bos_token_id=None,
            dtype=torch.float32,
        )
        with device:
            return Qwen2ForCausalLM(config)


SIZES = pick(
    {
        "0.5B": Size(hidden=896, layers=24, heads=14, intermediate=4864),
        "1.5B": Size(hidden=1536, layers=28, heads=12, intermediate=8960),
    },
    {"tiny": Size(hidden=32, layers=1, heads=4, intermediate=64, vocabulary=600)},
)
PARTS: dict[str, dict[str, Any]] = {
    "DGPOTrainer, sort_by_length=False": {"sort_by_length": False},
    "DGPOTrainer, padding_free=True": {"padding_free": True},
    "DGPOTrainer, padding_free=True, shared_prompts=False": {"padding_free": True, "shared_prompts": False},
    **BUDGET,
    "DGPOTrainer, fused_loss=False": {"fused_loss": False},
}
"""Trainers with a part off, or one that a GPU has off by default on, or a budget of tokens."""


def lengths(count: int, generator: torch.Generator) -> list[int]:
    """Log-normal, at least 1 and at most `LONGEST`."""
    drawn = torch.randn(count, generator=generator).mul(SIGMA).exp().mul(MEDIAN)
    return drawn.round().clamp(1, LONGEST).long().tolist()


class Laps(TrainerCallback):  # type: ignore[misc]
    """Of every generation: seconds of its updates, and the peak of allocated memory in MiB."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_mib: list[float | None] = []
        self._start = 0.0

    def _begin(self) -> None:
        synchronise()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % K == 0:
            synchronise()
            self.seconds.append(time.perf_counter() - self._start)
            self.peak_mib.append(torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None)
            self._begin()


def settings(folder: str) -> dict[str, Any]:
    """What all trainers share; the rest is TRL's default."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": ACCUMULATION,
        "steps_per_generation": K * ACCUMULATION,
        "num_generations": GROUP,
        "max_completion_length": LONGEST,
        "max_steps": K * len(SCHEDULE),
        "learning_rate": 1e-6,
        "bf16": True,
        "use_cpu": device().type == "cpu",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def trainers(size: Size, folder: str) -> dict[str, Callable[[], GRPOTrainer]]:
    """Name -> how to make it."""
    shared = settings(folder)
    given = {
        "reward_funcs": rewards(GROUP, lambda updates: SCHEDULE[updates // K]),
        "train_dataset": Dataset.from_dict({"prompt": [f"{i}" for i in range(COMPLETIONS * K)]}),
        "processing_class": TOKENIZER,
        "rollout_func": rollout(TOKENIZER, size.vocabulary, lengths, PROMPT),
    }

    def ours(**options: Any) -> GRPOTrainer:
        return DGPOTrainer(size.model(device()), args=DGPOConfig(objective="grpo", **options, **shared), **given)

    return {
        STOCK: lambda: GRPOTrainer(size.model(device()), args=GRPOConfig(**shared), **given),
        OURS: lambda: ours(),
        **{name: partial(ours, **options) for name, options in PARTS.items()},
    }


def tokens_of(updates: int) -> int:
    """Tokens of prompts and completions in the generation that begins after that many updates."""
    count = COMPLETIONS * K
    # the lengths are the first that a rollout draws
    return sum(lengths(count, random_numbers(count, updates))) + PROMPT * count


def measure(found: Findings) -> None:
    """A row per model, trainer and share of groups without spread."""
    logging.set_verbosity_error()
    disable_progress_bars()
    smallest = next(iter(SIZES))
    # the two that are compared first, of every model; then the parts
    order = [(name, trainer) for name in SIZES for trainer in (STOCK, OURS)]
    order += [(smallest, trainer) for trainer in PARTS]
    stock: dict[str, dict[float, float]] = {name: {} for name in SIZES}
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        makers = {name: trainers(size, folder) for name, size in SIZES.items()}
        for name, trainer in order:
            with found.part(f"{name}, {trainer}"):
                # the first of a larger model takes about three times as long as the one before it
                expected = took.get(name, 3 * max(took.values(), default=0.0))
                if found.left() < expected:
                    raise NotPossible(f"out of time: {found.left():.0f} s left")
                began = time.perf_counter()
                try:
                    one_trainer(found, name, trainer, makers[name][trainer], stock[name])
                except torch.OutOfMemoryError as error:
                    if trainer == OURS:
                        raise
                    # a finding, and no fault of ours: full logits, or somebody else's
                    raise NotPossible("out of memory") from error
                took[name] = time.perf_counter() - began
            free()


def one_trainer(
    found: Findings, model: str, name: str, make: Callable[[], GRPOTrainer], stock: dict[float, float]
) -> None:
    """One training run: its first generation warms up, the others are rows by their share."""
    trainer, laps = make(), Laps()
    parameters = trainer.model.num_parameters()
    train_silently(trainer, laps)
    for share in SHARES:
        mine = [lap for lap, scheduled in enumerate(SCHEDULE) if scheduled == share and lap > 0]
        seconds = [laps.seconds[lap] / K for lap in mine]
        rates = [tokens_of(lap * K) / laps.seconds[lap] for lap in mine]
        peaks = [laps.peak_mib[lap] for lap in mine]
        if name == STOCK:
            stock[share] = statistics.median(seconds)
        times = stock[share] / statistics.median(seconds) if share in stock else None
        found.row(
            model=model,
            parameters=parameters,
            trainer=name,
            without_spread=share,
            seconds_per_update=statistics.median(seconds),
            low=min(seconds),
            high=max(seconds),
            tokens_per_second=statistics.median(rates),
            times_as_fast=times,
            peak_mib=None if None in peaks else max(peaks),
        )
        if name == OURS and times is not None:
            found.headline += f"{', ' if found.headline else 'x TRL: '}{model} at {share:.0%} {times:.2f}"
    if name.startswith("DGPOTrainer"):
        loss = trainer.state.log_history[-1].get("train_loss")
        found.check(loss is not None and abs(loss) < float("inf"), f"{model}, {name}: the loss is {loss}")


if __name__ == "__main__":
    sys.exit(run(measure))
