"""A starter model: a small language model that solves a task now and then, so that RL has something to improve.

Reinforcement learning from a random model gets no reward to learn from. With no model hub at hand, this makes one: a
Qwen3-architecture model of about a million parameters with a character tokenizer, warmed up by supervised fine-tuning
(TRL's SFTTrainer) until it solves 45 % of a validation split, and saved as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import string
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProgressCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from dgpo.evaluation.sampling import generate
from dgpo.files import FolderLock, move_files, write_json_atomic
from dgpo.tasks import Procedural

TARGET_ACCURACY = 0.45
SUMMARY = "starter.json"


class NotReached(RuntimeError):
    """The model did not get to `TARGET_ACCURACY` within the steps allowed."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline; everything else is `<unk>`."""
    special = ["<pad>", "<eos>", "<unk>"]
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    # every character is a token, newlines included, which `.` would not match
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    # without it decoding puts spaces between tokens
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int = 128, layers: int = 4, seed: int = 0
) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 model for this tokenizer, float32, tied embeddings."""
    set_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden // 4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread: for a million parameters, waiting for others costs more than they save.

    On a busy machine it is the difference between 0.1 and 5 seconds a step.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def make_starter(task: Procedural, out: str | Path, *, seed: int = 0, max_steps: int = 3000) -> dict[str, Any]:
    """Train and save a starter model.

    Args:
        task: its `train` split is fine-tuned on, its `validation` split decides when to stop; `test` is not touched.
        out: folder for the model, its tokenizer and `starter.json`.
        seed: of the initialisation and the data order.
        max_steps: upper bound on optimiser steps of 128 examples.

    Returns:
        What `starter.json` holds: task, seed, steps, validation accuracy, parameters, seconds.

    Raises:
        NotReached: the validation accuracy did not reach 45 % within `max_steps`.
        FolderInUse: another process makes one there.
        ValueError: the folder holds another model.
    """
    with FolderLock(out, "making a starter in"):
        require_own(out)
        return _make(task, Path(out), seed, max_steps)


def require_own(out: str | Path) -> None:
    """Raise ValueError for a folder with a model that no `make_starter` made, before anything is loaded."""
    out = Path(out)
    models = sorted(path.name for path in [out / "config.json", *out.glob("*.safetensors")] if path.exists())
    if models and not (out / SUMMARY).exists():
        raise ValueError(f"{str(out)!r} holds a model ({models[0]}) that is not a starter model; give another folder")


def _make(task: Procedural, out: Path, seed: int, max_steps: int) -> dict[str, Any]:
    started = time.perf_counter()
    tokenizer = character_tokenizer()
    model = tiny_model(tokenizer, seed=seed)
    stop = _StopWhenGoodEnough(task)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=max_steps,
                per_device_train_batch_size=128,
                learning_rate=1e-3,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=20,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                logging_steps=50,
                save_strategy="no",
                report_to=[],
                seed=seed,
                max_length=None,
                dataloader_pin_memory=False,
            ),
            train_dataset=_tokenized(task, tokenizer),
            processing_class=tokenizer,
            callbacks=[stop],
        )
        # their bar counts to max_steps, far beyond where the training stops
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        steps = trainer.state.global_step
    if stop.accuracy < TARGET_ACCURACY:
        raise NotReached(
            f"the starter model reached {stop.accuracy:.1%} on the validation split of {task.name!r} after {steps} "
            f"steps; expected at least {TARGET_ACCURACY:.0%} within max_steps = {max_steps}"
        )
    summary = {
        "task": task.name,
        "seed": seed,
        "steps": steps,
        "validation_accuracy": stop.accuracy,
        "parameters": model.num_parameters(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    # inside `out`, so that moving the files is a rename within one file system
    with tempfile.TemporaryDirectory(prefix="_saving", dir=out) as staged:
        trainer.save_model(staged)
        # gone while the weights change: a kill in between leaves a folder that does not look complete
        (out / SUMMARY).unlink(missing_ok=True)
        move_files(Path(staged), out)
    write_json_atomic(out / SUMMARY, summary)  # last, so that its presence means a complete folder
    return summary


def _tokenized(task: Procedural, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Token ids of prompt, answer and end, with labels for the last two.

    SFTTrainer would make the same of the texts, in four passes over single rows, which take seconds.
    """
    problems = task.problems("train")
    prompts = tokenizer([problem["prompt"] for problem in problems])["input_ids"]
    whole = tokenizer([problem["prompt"] + problem["answer"] + tokenizer.eos_token for problem in problems])[
        "input_ids"
    ]
    labels = [[-100] * len(prompt) + ids[len(prompt) :] for prompt, ids in zip(prompts, whole, strict=True)]
    return Dataset.from_dict({"input_ids": whole, "labels": labels})


class _StopWhenGoodEnough(TrainerCallback):
    """Stops at 45 % greedy accuracy. Once it rises, it can rise by 30 points in 50 steps, hence the finer stretch."""

    def __init__(self, task: Procedural) -> None:
        self.task = task
        self.problems = task.problems("validation")
        self.accuracy = 0.0
        self._bar = tqdm(
            desc="starter",
            total=100 * TARGET_ACCURACY,
            bar_format="{desc}: {n:.0f} % of {total:.0f} % right |{bar}| {elapsed}{postfix}",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = 10 if self.accuracy > 0.02 else 50
        if state.global_step % every == 0:
            self.accuracy = self._measure(kwargs["model"], kwargs["processing_class"])
            self._bar.n = min(100 * self.accuracy, self._bar.total)
            self._bar.set_postfix(step=state.global_step)
            control.should_training_stop = self.accuracy >= TARGET_ACCURACY

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()

    def _measure(self, model: Any, tokenizer: Any) -> float:
        completions = generate(
            model,
            tokenizer,
            [problem["prompt"] for problem in self.problems],
            samples=1,
            temperature=0.0,
            max_new_tokens=self.task.max_new_tokens,
            batch_size=len(self.problems),
            progress=False,
        )
        right = [self.task.grade(c[0].text, p["answer"]) for c, p in zip(completions, self.problems, strict=True)]
        return sum(right) / len(right)
