"""A small random model, and a trainer of it, for the pieces that ask whether the trainer is right on this device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import datasets
import torch
import transformers
from scripted import Lengths, rollout
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.starter import character_tokenizer
from gpu.piece import REHEARSAL, pick

TOKENIZER = character_tokenizer()
GROUP = 4
VOCABULARY = pick(32_000, 211)
LENGTH = pick(48, 8)
"""Tokens of the longest completion."""


def model(vocabulary: int = len(TOKENIZER), attention: str = "sdpa", layers: int = pick(4, 2)) -> PreTrainedModel:
    """Qwen2 with random weights in float32; the same at every call."""
    hidden = pick(512, 32)
    set_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=pick(8, 2),
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=TOKENIZER.pad_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        bos_token_id=None,
        dtype=torch.float32,
    )
    config._attn_implementation = attention
    # of standard deviation 0.02 by default, with which every distribution over the tokens is uniform
    return widened(Qwen2ForCausalLM(config))


def widened(network: PreTrainedModel) -> PreTrainedModel:
    """With an output layer whose logits differ."""
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(4)
    return network


def digits(completions: list[str], **_: Any) -> list[float]:
    """Share of digits: spread for any random model, and easy to learn."""
    return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in completions]


def trainer(
    network: PreTrainedModel,
    folder: str,
    *,
    reward: Any = digits,
    rollout_func: Callable[..., dict[str, Any]] | None = None,
    peft_config: Any = None,
    **options: Any,
) -> DGPOTrainer:
    """A `DGPOTrainer` on this device: 2 groups of 4 completions an update, 2 updates a generation."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": 2 * GROUP,
        "num_generations": GROUP,
        "steps_per_generation": 2,
        "max_completion_length": LENGTH,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": REHEARSAL,
        "dataloader_pin_memory": False,
        "seed": 0,
        **options,
    }
    made = DGPOTrainer(
        network,
        reward,
        DGPOConfig(**settings),
        train_dataset=Addition().dataset("train").select(range(512)),
        processing_class=TOKENIZER,
        rollout_func=rollout_func,
        peft_config=peft_config,
    )
    for callback in (PrinterCallback, ProgressCallback):
        made.remove_callback(callback)
    return made


class Gradients(TrainerCallback):  # type: ignore[misc]
    """The gradient of every update, as one vector of float64 on the CPU."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
        self.found.append(torch.cat(gradients).double().cpu())


def ragged(count: int, random: torch.Generator) -> list[int]:
    """Lengths of completions, from one token on."""
    return torch.randint(1, LENGTH + 1, (count,), generator=random).tolist()


def gradients(network: PreTrainedModel, lengths: Lengths = ragged, **options: Any) -> tuple[list[Tensor], DGPOTrainer]:
    """Of two updates on one generation of scripted completions: on-policy, and off-policy after a large step.

    By gradient descent: Adam's first steps have the size of the learning rate however small a gradient is, so that
    differences of rounding become as large as the gradient itself.
    """
    seen = Gradients()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        made = trainer(
            network,
            folder,
            reward=spread,
            rollout_func=rollout(TOKENIZER, VOCABULARY, lengths),
            **{"max_steps": 2, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1.0, **options},
        )
        made.add_callback(seen)
        made.train()
    return seen.found, made


def spread(completions: list[str], **_: Any) -> list[float]:
    """Different within every group."""
    return [float(i % GROUP) for i in range(len(completions))]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative (L2)."""
    return ((found - expected).norm() / expected.norm()).item()
