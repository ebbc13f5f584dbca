"""DGPOTrainer on the stand-in of pretended_gpu.py trains what it trains on a CPU, and mixes no devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import GRPOTrainer

from dgpo.fused import backends
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.starter import character_tokenizer
from pretended_gpu import CUDA, OnGPU, pretended_gpu

TOKENIZER = character_tokenizer()
GROUP, LONGEST = 4, 8


@pytest.fixture
def everything_moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model's parameters become those of another class when it is moved."""
    monkeypatch.setattr(GRPOTrainer, "_send_telemetry", lambda self: None)  # asks for the name of the GPU
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def ragged(prompts: list[str], trainer: DGPOTrainer) -> dict:
    generator = torch.Generator().manual_seed(trainer.state.global_step)
    lengths = torch.randint(1, LONGEST + 1, (len(prompts),), generator=generator).tolist()
    return {
        "prompt_ids": [TOKENIZER(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": [torch.randint(3, len(TOKENIZER), (n,), generator=generator).tolist() for n in lengths],
        "logprobs": None,
    }


def every_second_group(completions: list[str], **_: object) -> list[float]:
    """Has spread; the others are left out."""
    return [float(i % 2) * float((i // GROUP) % 2) for i in range(len(completions))]


def train(folder: Path, **options: object) -> tuple[DGPOTrainer, torch.Tensor]:
    set_seed(0)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        pad_token_id=TOKENIZER.pad_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        bos_token_id=None,
    )
    settings = DGPOConfig(
        output_dir=str(folder / "model"),
        record=str(folder / "record"),
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        steps_per_generation=2,
        max_steps=4,
        max_completion_length=LONGEST,
        learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        # a mask that is a subclass of Tensor cannot be made of the stand-in's tensors
        padding_free=False,
        **options,
    )
    trainer = DGPOTrainer(
        Qwen3ForCausalLM(config),
        every_second_group,
        settings,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(8)]}),
        processing_class=TOKENIZER,
        rollout_func=ragged,
    )
    trainer.train()
    return trainer, torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "dgpo", "advantage": "std", "record_sum_pi_squared": True, "entropy_coef": 0.01},
        pytest.param({"objective": "bapo", "num_iterations": 2}, marks=pytest.mark.soak),
        pytest.param({"objective": "gspo", "fused_loss": False}, marks=pytest.mark.soak),
        pytest.param({"objective": "dgpo", "dynamic_sampling": True}, marks=pytest.mark.soak),
    ],
    ids=lambda options: ", ".join(f"{name} {value}" for name, value in options.items()),
)
def test_it_trains_what_a_cpu_trains(tmp_path: Path, everything_moves: None, options: dict) -> None:
    expected, weights = train(tmp_path / "cpu", **options)
    with (
        pretended_gpu(),
        patch.object(DGPOConfig, "device", property(lambda self: (self._setup_devices, CUDA)[1])),
        patch.object(Accelerator, "device", property(lambda self: CUDA)),
        # the stand-in has no kernels
        patch.object(backends.kernels, "unavailable", lambda device: "pretended"),
    ):
        found, moved = train(tmp_path / "gpu", **options)
        assert isinstance(moved, OnGPU)
        moved = moved.cpu()
    torch.testing.assert_close(moved, weights)
    assert not torch.equal(weights, torch.zeros_like(weights))
    for ours, theirs in zip(found.state.log_history, expected.state.log_history, strict=True):
        for name, value in theirs.items():
            if isinstance(value, float) and not name.endswith(("time", "second", "runtime")):
                assert ours[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name
    recorded = sorted(path.name for path in (tmp_path / "gpu" / "record").rglob("*.parquet"))
    assert recorded == sorted(path.name for path in (tmp_path / "cpu" / "record").rglob("*.parquet")) != []
