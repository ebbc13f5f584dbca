"""A tiny random model on disk, and the settings that make TRL's trainer deterministic and quick on a CPU."""

from __future__ import annotations

import pytest

from dgpo.tasks import Addition
from dgpo.training.starter import character_tokenizer, tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, hidden=32, layers=2, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts():
    return Addition().dataset("train").select(range(64))


@pytest.fixture
def quick():
    """Off-policy settings: 4 prompts x 4 completions a generation, 4 updates of 4."""
    return {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "steps_per_generation": 4,
        "max_completion_length": 6,
        # larger steps amplify the rounding of two equal gradients beyond what a comparison can ask
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_steps": 16,
        "seed": 7,
    }


@pytest.fixture(scope="session")
def digit_reward():
    """Share of digits among the characters: spread for any random model, at any length."""

    def digits(completions, **kwargs):
        return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in completions]

    return digits
