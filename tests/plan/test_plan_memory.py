"""The plan's memory against real models: bytes of weights and of what autograd saves, and how shardings split them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from plan_models import TINY, config_of, sizes
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from dgpo.plan.memory import (
    GIB,
    MemorySetting,
    layer_bytes,
    loss_terms,
    memory_terms,
    model_terms,
    naive_logits,
    total,
)
from dgpo.plan.model_shapes import SHAPES, ModelShape


def setting(**changes: Any) -> MemorySetting:
    given: dict[str, Any] = {
        "shape": ModelShape.of(TINY),
        "processes": 1,
        "sharding": "one process",
        "weight_bytes": 4,
        "autocast": False,
        "adapters": None,
        "reference": False,
        "rows": 2,
        "length": 64,
        "completion": 48,
        "checkpointing": False,
        "attention": "sdpa",
        "fused": True,
    }
    return MemorySetting(**{**given, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_gradients_and_adam(dtype: torch.dtype) -> None:
    """Of a real model after a step of AdamW; its step counters are left out."""
    model = AutoModelForCausalLM.from_config(TINY, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 8, dtype=torch.long), labels=torch.zeros(1, 8, dtype=torch.long)).loss.backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    terms = sizes(model_terms(setting(weight_bytes=dtype.itemsize)))
    assert terms == {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "optimiser": sum(moment.nbytes for moment in moments),
    }


def saved_per_layer(dtype: torch.dtype, autocast: bool, rows: int, length: int) -> float:
    """Bytes that autograd holds for one more layer, copies of weights not counted."""
    held = []
    for layers in (1, 2):
        config = config_of((64, 160, layers, 4, 2, 300, False), attn_implementation="sdpa")
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).model
        weights = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
        kept, bytes_of = [], {}

        def pack(
            tensor: torch.Tensor, kept: list = kept, bytes_of: dict = bytes_of, weights: set = weights
        ) -> torch.Tensor:
            if tuple(tensor.shape) not in weights:
                kept.append(tensor)  # so that no address is used twice
                storage = tensor.untyped_storage()
                bytes_of[storage.data_ptr()] = storage.nbytes()
            return tensor

        mask = torch.ones(rows, length, dtype=torch.long)
        mask[:, :3] = 0  # padding on the left, as prompts have: sdpa then takes a mask
        with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(input_ids=torch.zeros(rows, length, dtype=torch.long), attention_mask=mask, use_cache=False)
        held.append(sum(bytes_of.values()))
    return held[1] - held[0]


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_what_autograd_saves_for_a_layer(dtype: torch.dtype, autocast: bool) -> None:
    rows, length = 3, 40
    planned = layer_bytes(setting(rows=rows, length=length, weight_bytes=dtype.itemsize, autocast=autocast))
    assert saved_per_layer(dtype, autocast, rows, length) == planned * rows * length


def test_checkpointing_keeps_one_input_per_layer() -> None:
    terms = sizes(memory_terms(setting(checkpointing=True)))
    shape = ModelShape.of(TINY)
    assert terms["checkpoints"] == 2 * 64 * shape.layers * shape.hidden * 4
    assert terms["activations"] < sizes(memory_terms(setting()))["activations"]


@pytest.mark.parametrize(
    ("sharding", "autocast", "weights", "gradients", "optimiser"),
    [
        ("DDP", True, 4, 4, 8),
        ("FSDP2", True, 1, 1, 2),
        ("ZeRO-1", True, 2, 2, 3),
        ("ZeRO-2", True, 2, 0.5, 3),
        ("ZeRO-3", True, 0.5, 0.5, 3),
        ("ZeRO-3", False, 1, 1, 2),
    ],
)
def test_sharding_over_four(sharding: Any, autocast: bool, weights: float, gradients: float, optimiser: float) -> None:
    """Bytes per parameter of one of four ranks; ZeRO's as in arXiv 1910.02054, figure 1, with K = 12."""
    n = ModelShape.of(TINY).parameters
    terms = sizes(model_terms(setting(sharding=sharding, processes=4, autocast=autocast)))
    assert (terms["weights"] / n, terms["gradients"] / n, terms["optimiser"] / n) == (weights, gradients, optimiser)
    assert ("DDP buckets" in terms) == (sharding == "DDP")
    assert ("autocast copies" in terms) == (sharding == "DDP")
    assert ("gathered layers" in terms) == (sharding in ("FSDP2", "ZeRO-3"))


def test_casts_of_the_weights_are_kept_while_generating() -> None:
    """Where transformers generates with weights that are trained: autocast keeps no casts of frozen ones."""

    def phase(**changes: Any) -> str:
        terms = model_terms(setting(autocast=True, **changes))
        return next(term.phase for term in terms if term.name == "autocast copies")

    assert phase(generated_rows=64) == "both"
    assert phase(generated_rows=0) == "update"  # vLLM has weights of its own
    assert phase(generated_rows=64, adapters=100) == "update"


def test_adapters_and_reference_model() -> None:
    n = ModelShape.of(TINY).parameters
    terms = sizes(model_terms(setting(adapters=100, weight_bytes=2)))
    assert terms == {"weights": 2 * n + 400, "gradients": 400, "optimiser": 800}
    assert sizes(model_terms(setting(reference=True)))["reference model"] == 4 * n
    assert sizes(model_terms(setting(reference=True, processes=4, sharding="FSDP2")))["reference model"] == n


def test_the_loss_holds_a_chunk_of_logits_and_not_all() -> None:
    """4,096 rows of 152 thousand float32 logits are the budget on a GPU (docs/fused.md)."""
    shape = SHAPES["Qwen/Qwen2.5-1.5B"]
    long = setting(shape=shape, weight_bytes=2, autocast=True, rows=4, length=8192, completion=8192)
    (loss,) = loss_terms(long)
    chunk = 4416 * shape.vocabulary * 4
    assert loss.bytes == chunk + 4 * shape.head + 4 * 8192 * shape.hidden * 2
    assert chunk < 2.5 * GIB < naive_logits(long).value == 4 * 8192 * shape.vocabulary * 14
    assert loss_terms(replace(long, adapters=100))[0].bytes == loss.bytes - 4 * shape.head
    assert "TRL's tile" in loss_terms(replace(long, fused=False))[0].how


def test_phases() -> None:
    """vLLM's share is there in both unless it sleeps; the cache of transformers only while it generates."""
    share = {"vllm_share": 0.25, "vllm_gib": 80.0}
    held, asleep = setting(**share), setting(**share, vllm_sleeps=True)
    without = total(memory_terms(setting()), "update")
    assert total(memory_terms(held), "update") == without + 20 * GIB
    assert total(memory_terms(asleep), "update") == without
    assert total(memory_terms(held), "generation") == total(memory_terms(asleep), "generation")
    cached = memory_terms(setting(generated_rows=8, processes=2, sharding="FSDP2"))
    assert {"key-value cache", "gathered model"} <= {term.name for term in cached if term.phase == "generation"}
