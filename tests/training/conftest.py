"""A tiny random model on disk, and the settings that make TRL's trainer deterministic and quick on a CPU."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dgpo.tasks import Addition
from dgpo.training import DGPOConfig
from dgpo.training.starter import character_tokenizer, tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, hidden=32, layers=2, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def additions():
    """Made once: it takes as long as a small run."""
    return Addition().dataset("train")


@pytest.fixture
def prompts(additions):
    return additions.select(range(64))


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


@pytest.fixture(scope="session")
def tiny_pair(tiny_folder):
    """Model and tokenizer of that folder, to be copied: reading them takes as long as making a trainer of TRL."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def build(tiny_pair, prompts, quick, digit_reward, tmp_path):
    """A trainer of either kind on the tiny model; model, reward, data and arguments of the trainer may be given."""

    def sampler(prompts, trainer):
        raise AssertionError("a trainer whose micro-batches are made by hand has generated")

    def build(trainer_class, model=None, reward=digit_reward, data=prompts, trainer_options=None, **options):
        if options.get("correction") is not None:
            trainer_options = {"rollout_func": sampler, **(trainer_options or {})}
        config_class = GRPOConfig if trainer_class is GRPOTrainer else DGPOConfig
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trainer_class(
                model or copy.deepcopy(tiny_pair[0]),
                reward,
                config_class(output_dir=str(tmp_path / "run"), **{**quick, **options}),
                train_dataset=data,
                processing_class=copy.deepcopy(tiny_pair[1]),
                **(trainer_options or {}),
            )

    return build


@pytest.fixture
def micro_batch():
    """Makes one micro-batch of 4 ragged, off-policy completions, padded on both sides, with all TRL may add to it."""

    def micro_batch(trainer, seed=0):
        generator = torch.Generator().manual_seed(seed)
        vocabulary = trainer.model.config.get_text_config().vocab_size
        lengths = torch.tensor([[6], [3], [5], [1]])
        batch = {
            "prompt_ids": torch.randint(3, vocabulary, (4, 5), generator=generator),
            "prompt_mask": (torch.arange(5) >= 5 - torch.tensor([[2], [4], [3], [1]])).long(),
            "completion_ids": torch.randint(3, vocabulary, (4, 8), generator=generator),
            "completion_mask": (torch.arange(8) < lengths).long(),
            "advantages": torch.tensor([1.2, -0.7, 0.4, -1.5]),
            "num_items_in_batch": lengths.sum(),
        }
        with torch.no_grad():
            logprob, _, _ = trainer._forward(trainer.model, batch)
        noise = lambda scale: scale * torch.randn(4, 8, generator=generator)  # noqa: E731
        batch["old_per_token_logps"] = logprob + noise(0.4)
        batch["sampling_per_token_logps"] = batch["old_per_token_logps"] + noise(0.3)
        batch["ref_per_token_logps"] = logprob + noise(0.5)
        batch["importance_sampling_ratio"] = noise(0.3).exp()
        return batch

    return micro_batch


@pytest.fixture
def gradient_of():
    """Runs one micro-batch as an optimiser step of its own: the loss, and the gradient of all parameters."""

    def gradient_of(trainer, inputs):
        trainer.current_gradient_accumulation_steps = 1
        trainer._buffered_inputs, trainer._totals = [inputs] * 4, None
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        return loss.item(), torch.cat([p.grad.flatten() for p in parameters])

    return gradient_of
