"""The plan's arithmetic against real models: counts, bytes, FLOPs, and what autograd saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from dgpo.objectives import OBJECTIVES, make
from dgpo.training import DGPOConfig
from dgpo.training.machines import GPUS, World
from dgpo.training.model_shapes import PROJECTIONS, SHAPES, ModelShape, lora_targets, shape_of
from dgpo.training.plan import Plan, make_plan, why_no_fused_loss
from dgpo.training.plan_memory import (
    GIB,
    MemorySetting,
    layer_bytes,
    logits_not_held,
    loss_terms,
    memory_terms,
    model_terms,
    total,
)
from dgpo.training.plan_weights import RATIOS, weight_table

R1 = "deepseek-ai/DeepSeek-R1-Distill-Qwen"
SIZES: dict[str, dict[str, Any]] = {
    # hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
    "Qwen/Qwen2.5-0.5B-Instruct": {"sizes": (896, 4864, 24, 14, 2, 151936, True), "parameters": 494_032_768},
    "Qwen/Qwen2.5-1.5B": {"sizes": (1536, 8960, 28, 12, 2, 151936, True), "parameters": 1_543_714_304},
    f"{R1}-1.5B": {"sizes": (1536, 8960, 28, 12, 2, 151936, False), "parameters": 1_777_088_000},
    f"{R1}-7B": {"sizes": (3584, 18944, 28, 28, 4, 152064, False), "parameters": 7_615_616_512},
    f"{R1}-14B": {"sizes": (5120, 13824, 48, 40, 8, 152064, False), "parameters": 14_770_033_664},
}


def config_of(sizes: tuple[Any, ...], cls: type = Qwen2Config, **more: Any) -> Any:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    )
    return cls(**dict(zip(names, sizes, strict=True)), **more)


TINY = config_of((64, 160, 2, 4, 2, 300, False), attn_implementation="sdpa")


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_the_models_that_recipes_name(name: str) -> None:
    """Of the table, of the config, of the model that transformers makes, and as published with the weights."""
    config = config_of(SIZES[name]["sizes"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert SHAPES[name] == ModelShape.of(config)
    assert SHAPES[name].parameters == count(model) == SIZES[name]["parameters"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cls", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_parameters_of_a_family(cls: type, tied: bool) -> None:
    config = config_of((64, 160, 3, 4, 2, 300, tied), cls)
    with torch.device("meta"):
        assert ModelShape.of(config).parameters == count(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(("given", "targets"), [(None, None), (["all-linear"], "all-linear"), (["o_proj"], ["o_proj"])])
def test_parameters_of_adapters(given: Any, targets: Any) -> None:
    with torch.device("meta"):
        model = get_peft_model(
            AutoModelForCausalLM.from_config(TINY), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert ModelShape.of(TINY).lora_parameters(4, lora_targets(given)) == trained


def test_lora_targets() -> None:
    assert lora_targets("all-linear") == PROJECTIONS
    with pytest.raises(ValueError, match="'lm_head' is not counted here"):
        lora_targets(["q_proj", "lm_head"])


def test_shape_of(tmp_path: Any) -> None:
    TINY.save_pretrained(tmp_path)
    assert shape_of(str(tmp_path)) == ModelShape.of(TINY)
    assert shape_of("nobody/nothing") is None
    with pytest.raises(ValueError, match=r"no config\.json"):
        shape_of(str(tmp_path.parent))
    other = replace_model_type(tmp_path)
    with pytest.raises(ValueError, match="model_type = 'gpt2' is not estimated; known: llama"):
        shape_of(other)


def replace_model_type(folder: Any) -> str:
    from transformers import GPT2Config

    GPT2Config(n_layer=1).save_pretrained(folder / "gpt2")
    return str(folder / "gpt2")


def test_flops_of_a_forward_pass() -> None:
    """torch counts all pairs of positions; a causal model needs half of them."""
    shape, length = ModelShape.of(TINY), 48
    model = AutoModelForCausalLM.from_config(TINY, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(2, length, dtype=torch.long), use_cache=False)
    attention = 2 * shape.layers * shape.attention * length
    assert counter.get_total_flops() == 2 * length * (shape.forward_flops(length) + attention)


# --- bytes ------------------------------------------------------------------------------------------------------------


def setting(**changes: Any) -> MemorySetting:
    given: dict[str, Any] = {
        "shape": ModelShape.of(TINY),
        "processes": 1,
        "sharding": "one process",
        "weight_bytes": 4,
        "autocast": False,
        "adapters": None,
        "moments": 2,
        "reference": False,
        "rows": 2,
        "length": 64,
        "completion": 48,
        "checkpointing": False,
        "attention": "sdpa",
        "fused": True,
    }
    return MemorySetting(**{**given, **changes})


def sizes(terms: Any) -> dict[str, float]:
    return {term.name: term.bytes for term in terms}


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
    assert chunk < 2.5 * GIB < logits_not_held(long) == 4 * 8192 * shape.vocabulary * 14
    assert loss_terms(replace(long, adapters=100))[0].bytes == loss.bytes - 4 * shape.head
    assert "TRL's tile" in loss_terms(replace(long, fused=False))[0].how


def test_phases() -> None:
    """vLLM's share is there in both unless it sleeps; the cache of transformers only while it generates."""
    held, asleep = setting(vllm_bytes=1e9), setting(vllm_bytes=1e9, vllm_sleeps=True)
    without = total(memory_terms(setting()), "update")
    assert total(memory_terms(held), "update") == without + 1e9
    assert total(memory_terms(asleep), "update") == without
    assert total(memory_terms(held), "generation") == total(memory_terms(asleep), "generation")
    cached = memory_terms(setting(generated_rows=8, processes=2, sharding="FSDP2"))
    assert {"key-value cache", "gathered model"} <= {term.name for term in cached if term.phase == "generation"}


# --- the plan -------------------------------------------------------------------------------------------------------


def config(**changes: Any) -> DGPOConfig:
    given = {
        "output_dir": "unused",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 8,
        "num_generations": 4,
        "max_completion_length": 32,
    }
    return DGPOConfig(**{**given, **changes})


def plan(config: DGPOConfig, **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "model": "tiny",
        "shape": ModelShape.of(TINY),
        "world": World(processes=1, sharding="one process", source="test"),
    }
    return make_plan(config, **{**given, **changes})


def test_counts() -> None:
    found = plan(config(num_train_epochs=2), data_rows=100)
    assert (found.prompts, found.completions, found.completions_per_update) == (16, 64, 16)
    assert (found.updates_per_generation, found.tokens_per_generation, found.tokens_per_update) == (4, 2048, 512)
    assert (found.generations, found.updates) == (12, 48)
    assert plan(config()).updates is None
    assert plan(config(max_steps=10)).updates == 10
    assert found.trained == ModelShape.of(TINY).parameters


def test_time_is_flops_over_the_assumed_rate() -> None:
    shape, length = ModelShape.of(TINY), 512 + 32
    tokens = 64 * length
    found = plan(config(gradient_checkpointing=True), gpu=GPUS["h100"])
    assert found.update_flops == 5 * tokens * shape.forward_flops(length)
    assert found.update_seconds == pytest.approx(found.update_flops / 989e12 / 0.35 / 4)
    assert found.sampling_seconds is None
    with_vllm = plan(config(gradient_checkpointing=False, use_vllm=True, beta=0.1), gpu=GPUS["h100"])
    assert with_vllm.update_flops == 5 * tokens * shape.forward_flops(length)
    assert with_vllm.sampling_seconds == pytest.approx(tokens * shape.forward_flops(length) / 989e12 / 0.10)
    assert sizes(with_vllm.memory)["vLLM"] == pytest.approx(0.3 * 79 * GIB)
    assert plan(config(gradient_checkpointing=False), lora=(4, ("q_proj",))).update_flops == pytest.approx(
        3 * tokens * shape.forward_flops(length)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"fused_loss": False}, "fused_loss is off"),
        ({"positive_nll_coef": 0.1}, "positive_nll_coef"),
        ({"advantage": "entropy_shaped"}, "the advantage reads the current entropies"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold"),
    ],
)
def test_what_rules_the_fused_loss_out(changes: dict[str, Any], reason: str | None) -> None:
    found = plan(config(**changes))
    assert found.fused == (reason is None)
    assert any(str(reason) in note for note in found.notes) == (reason is not None)
    assert why_no_fused_loss(config(), "ZeRO-3", False) == "ZeRO-3 trains the output head"
    assert why_no_fused_loss(config(), "ZeRO-3", True) is None


def test_notes() -> None:
    assert any("every ratio is 1" in note for note in plan(config(steps_per_generation=2)).notes)
    unknown = plan(config(), shape=None)
    assert (unknown.memory, unknown.update_flops, unknown.trained) == ((), None, None)
    assert any("unknown model" in note for note in unknown.notes)
    assert any("name the GPU" in note for note in plan(config(use_vllm=True)).notes)
    assert any("GPUs of its own" in note for note in plan(config(use_vllm=True, vllm_mode="server")).notes)
    assert any("sgd" in note for note in plan(config(optim="sgd")).notes)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_of_every_objective(name: str) -> None:
    rows = weight_table(make(name))
    assert tuple(row.ratio for row in rows) == RATIOS
    values = torch.tensor([[row.negative, row.positive] for row in rows])
    assert values.isfinite().all()
    if make(name).properties().unit_on_policy:
        assert values[RATIOS.index(1.0)].tolist() == [1.0, 1.0]


def test_weights_by_region() -> None:
    rows = {row.ratio: row for row in weight_table(make("dgpo", n=2, m=2))}
    assert rows[0.5].negative == pytest.approx(0.5**3 / 0.8**2)
    assert rows[4.0].positive == pytest.approx(4**0.5 * 1.2**0.5)
    assert (rows[0.5].negative_region, rows[0.5].positive_region) == ("left", "reverse_left")
    assert (rows[2.0].negative_region, rows[2.0].positive_region) == ("reverse_right", "right")
    assert {rows[1.1].negative_region, rows[1.1].positive_region} == {"inside"}
    wide = {row.ratio: row for row in weight_table(make("dgpo", eps_high=0.28))}
    assert wide[1.25].positive_region == "inside"
