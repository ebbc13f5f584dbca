"""The plan's arithmetic: counts and FLOPs against real models, updates, time, and the table of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from plan_models import TINY, config_of, sizes
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from dgpo.objectives import OBJECTIVES, make
from dgpo.plan.machines import GPUS, World
from dgpo.plan.memory import GIB
from dgpo.plan.model_shapes import PROJECTIONS, SHAPES, ModelShape, lora_targets, shape_of
from dgpo.plan.plan import Plan
from dgpo.plan.weights import RATIOS, weight_table
from dgpo.training import DGPOConfig

R1 = "deepseek-ai/DeepSeek-R1-Distill-Qwen"
SIZES: dict[str, dict[str, Any]] = {
    # hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
    "Qwen/Qwen2.5-0.5B-Instruct": {"sizes": (896, 4864, 24, 14, 2, 151936, True), "parameters": 494_032_768},
    "Qwen/Qwen2.5-1.5B": {"sizes": (1536, 8960, 28, 12, 2, 151936, True), "parameters": 1_543_714_304},
    f"{R1}-1.5B": {"sizes": (1536, 8960, 28, 12, 2, 151936, False), "parameters": 1_777_088_000},
    f"{R1}-7B": {"sizes": (3584, 18944, 28, 28, 4, 152064, False), "parameters": 7_615_616_512},
    f"{R1}-14B": {"sizes": (5120, 13824, 48, 40, 8, 152064, False), "parameters": 14_770_033_664},
}


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
    return Plan(config=config, **{**given, **changes})


def test_counts() -> None:
    found = plan(config(num_train_epochs=2), data_rows=100)
    assert (found.prompts, found.config.generation_batch_size, found.completions_per_update) == (16, 64, 16)
    assert (found.config.updates_per_generation, found.tokens_per_generation, found.tokens_per_update) == (4, 2048, 512)
    assert (found.generations, found.updates) == (12, 48)
    assert plan(config()).updates is None
    assert plan(config(max_steps=10)).updates == 10
    assert found.setting is not None
    assert found.setting.trainable == ModelShape.of(TINY).parameters


def test_time_is_flops_over_the_assumed_rate() -> None:
    shape, length = ModelShape.of(TINY), 512 + 32
    tokens = 64 * length
    found = plan(config(gradient_checkpointing=True), gpu=GPUS["h100"])
    assert found.update_work is not None
    assert found.update_time is not None
    assert found.update_work.value == 5 * tokens * shape.forward_flops(length)
    assert found.update_time.value == pytest.approx(found.update_work.value / 989e12 / 0.35 / 4)
    assert found.sampling_time is None
    with_vllm = plan(config(gradient_checkpointing=False, use_vllm=True, beta=0.1), gpu=GPUS["h100"])
    assert with_vllm.update_work is not None
    assert with_vllm.sampling_time is not None
    assert with_vllm.update_work.value == 5 * tokens * shape.forward_flops(length)
    assert with_vllm.sampling_time.value == pytest.approx(tokens * shape.forward_flops(length) / 989e12 / 0.10)
    assert sizes(with_vllm.memory)["vLLM"] == pytest.approx(0.3 * 79 * GIB)
    adapters = plan(config(gradient_checkpointing=False), lora=(4, ("q_proj",))).update_work
    assert adapters is not None
    assert adapters.value == pytest.approx(3 * tokens * shape.forward_flops(length))


def test_the_time_of_a_run_is_that_of_its_updates_and_generations() -> None:
    """From times as they are shown, in four digits."""
    sampled = plan(config(use_vllm=True, num_train_epochs=3), gpu=GPUS["rtx4090"], data_rows=17_398)
    assert (sampled.updates, sampled.generations) == (3 * 1087 * 4, 3 * 1087)
    assert sampled.update_time is not None
    assert sampled.sampling_time is not None
    assert sampled.run_time is not None
    exact = sampled.updates * sampled.update_time.value + sampled.generations * sampled.sampling_time.value
    assert sampled.run_time.value == pytest.approx(exact, rel=1e-3)
    alone = plan(config(max_steps=8), gpu=GPUS["rtx4090"])
    assert alone.update_time is not None
    assert alone.run_time is not None
    assert alone.run_time.value == pytest.approx(8 * alone.update_time.value, rel=1e-3)
    assert plan(config(), gpu=GPUS["rtx4090"]).run_time is None  # nobody knows how many updates
    assert plan(config(max_steps=8)).run_time is None


def test_a_budget_of_tokens_bounds_the_rows_of_a_pass() -> None:
    length = plan(config()).prompt_tokens + 32
    for budget, rows in ((None, 8), (100 * length, 8), (3 * length + 1, 3), (1, 1)):
        found = plan(config(max_tokens_per_micro_batch=budget))
        assert found.setting is not None
        assert found.setting.rows == rows
    assert plan(config(max_tokens_per_micro_batch=length)).update_gib < plan(config()).update_gib


def test_whether_it_fits() -> None:
    assert plan(config()).fits is None
    assert plan(config(), gpu=GPUS["rtx4090"]).fits is True
    assert plan(config(), gpu=GPUS["rtx4090"], shape=None).fits is None
    large = SHAPES[f"{R1}-14B"]
    assert plan(config(), gpu=GPUS["h200"], shape=large).fits is False
    # each phase by itself: 0.95 of the GPU is for vLLM, which is there while the weights are
    assert plan(config(use_vllm=True, vllm_gpu_memory_utilization=1.0), gpu=GPUS["rtx4090"]).fits is False


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"fused_loss": False}, "fused_loss is off"),
        ({"positive_nll_coef": 0.1}, "positive_nll_coef"),
        ({"advantage": "entropy_shaped"}, "reads the current entropies"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold"),
    ],
)
def test_what_rules_the_fused_loss_out(changes: dict[str, Any], reason: str | None) -> None:
    found = plan(config(**changes))
    assert (found.why_not_fused is None) == (reason is None)
    assert any(str(reason) in note for note in found.notes) == (reason is not None)
    sharded = World(processes=2, sharding="ZeRO-3", source="test")
    assert plan(config(), world=sharded).why_not_fused == "ZeRO-3 trains the output head"
    assert plan(config(), world=sharded, lora=(4, ("q_proj",))).why_not_fused is None


def test_notes() -> None:
    assert any("every ratio is 1" in note for note in plan(config(steps_per_generation=2)).notes)
    unknown = plan(config(), shape=None)
    assert (unknown.memory, unknown.update_work, unknown.setting) == ((), None, None)
    assert any("unknown model" in note for note in unknown.notes)
    assert any("name the GPU" in note for note in plan(config(use_vllm=True)).notes)
    assert any("its own GPUs" in note for note in plan(config(use_vllm=True, vllm_mode="server")).notes)
    assert any("sgd" in note for note in plan(config(optim="sgd")).notes)
    guessed = World(processes=2, sharding="DDP", source="test", assumed=True)
    assert (
        "sharding not given: DDP assumed; use --accelerate_config FILE to change it"
        in plan(config(), world=guessed).notes
    )
    assert not any("assumed" in note for note in plan(config()).notes)


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
