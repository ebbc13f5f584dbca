"""The loss from hidden states trains what the loss from log-probs trains, and says when it cannot."""

from __future__ import annotations

import copy
import logging
import math
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from dgpo.training import DGPOTrainer
from dgpo.training import step_loss as step_loss_module

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def causal(config_class, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_class(**{**SMALL, **changes}))


@pytest.fixture
def fused_calls(monkeypatch):
    """How often the fused operator was called."""
    calls = []
    original = step_loss_module.linear_loss_of

    def counted(*args, **kwargs):
        calls.append(kwargs["statistics"])
        return original(*args, **kwargs)

    monkeypatch.setattr(step_loss_module, "linear_loss_of", counted)
    return calls


def both(build, micro_batch, gradient_of, calls, model=None, flags=None, change=None, **options):
    """Loss, gradient and metrics, straight from hidden states and from log-probs."""
    found = []
    for fused in (True, False):
        trainer = build(DGPOTrainer, model=None if model is None else model(), fused_loss=fused, **options)
        for name, value in (flags or {}).items():
            setattr(trainer, name, value)
        inputs = micro_batch(trainer)
        if change is not None:
            inputs = change(inputs)
        calls.clear()
        result = gradient_of(trainer, inputs)
        assert len(calls) == int(fused)
        found.append((*result, {name: values[-1] for name, values in trainer._metrics["train"].items()}))
    return found


def agree(found, tolerance=1e-6):
    (loss, gradient, metrics), (expected_loss, expected, expected_metrics) = found
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert expected.abs().max() > 1e-4
    assert (gradient - expected).norm() <= tolerance * expected.norm()
    assert metrics.keys() == expected_metrics.keys()
    # the fused loss needs no padding
    for name in metrics.keys() - {"objective/padding"}:
        value = metrics[name]
        assert value == pytest.approx(expected_metrics[name], rel=1e-5, abs=1e-5), name


def without(*keys):
    return lambda inputs: {key: value for key, value in inputs.items() if key not in keys}


def unscored(inputs):
    inputs["sampling_per_token_logps"][0, 1] = math.nan
    return inputs


OPTIONS = {
    "plain": {},
    "kl-ratio": {"beta": 0.2},
    "kl-k3": {"beta": 0.2, "use_bias_correction_kl": False},
    "entropy": {"entropy_coef": 0.05},
    "adaptive-entropy": {"use_adaptive_entropy": True, "entropy_target": 4.0, "entropy_coef": 0.01},
    "correction": {"correction": {"name": "truncate", "cap": 1.1}, "change": unscored},
    "sequence-correction": {"correction": {"name": "band", "level": "sequence"}},
    "vllm": {"flags": {"use_vllm": True}},
    "vllm-sequence": {
        "flags": {"use_vllm": True},
        "change": lambda inputs: {**inputs, "importance_sampling_ratio": torch.tensor([[1.1], [0.0], [0.7], [2.0]])},
    },
    "tools": {
        "change": lambda inputs: {**inputs, "tool_mask": (torch.arange(8) != 1).long().expand(4, 8)},
    },
    "sequence-mean": {"aggregation": "seq-mean-token-mean"},
    "fixed-length": {"aggregation": "seq-mean-token-sum-norm"},
    "temperature": {"temperature": 0.7},
    "on-policy": {"change": without("old_per_token_logps", "sampling_per_token_logps")},
    "all": {
        "beta": 0.1,
        "entropy_coef": 0.02,
        "temperature": 1.3,
        "aggregation": "seq-mean-token-mean",
        "correction": "truncate",
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("objective", ["dgpo", "gspo"])
def test_every_option(build, micro_batch, gradient_of, fused_calls, objective, options):
    agree(both(build, micro_batch, gradient_of, fused_calls, objective=objective, **options))


@pytest.mark.parametrize("objective", ["grpo", "gmpo", "vespo", "bapo", "drpo", "aspo", "maspo"])
def test_other_objectives(build, micro_batch, gradient_of, fused_calls, objective):
    agree(both(build, micro_batch, gradient_of, fused_calls, objective=objective, beta=0.1, entropy_coef=0.02))


def test_an_objective_that_reads_entropies(build, micro_batch, gradient_of, fused_calls):
    options = {"objective": "aspo", "objective_kwargs": {"entropy_quantile": 0.5}}
    agree(both(build, micro_batch, gradient_of, fused_calls, **options))


@pytest.mark.parametrize(
    ("config", "changes", "options"),
    [
        (Qwen3Config, {"tie_word_embeddings": False}, {}),
        (Gemma2Config, {"final_logit_softcapping": 0.5, "initializer_range": 0.3}, {"temperature": 0.8}),
        (GraniteConfig, {"logits_scaling": 4.0, "initializer_range": 0.2}, {"temperature": 0.8}),
        (PhiConfig, {"initializer_range": 0.2}, {}),  # its head has a bias
        (Qwen3Config, {"tie_word_embeddings": False}, {"cast_lm_head_to_fp32": True}),
    ],
    ids=["untied", "softcap", "scale", "bias", "float32-head"],
)
def test_other_heads(build, micro_batch, gradient_of, fused_calls, config, changes, options):
    def model():
        made = causal(config, **changes)
        if made.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(made.get_output_embeddings().bias, std=0.5)
        return made

    # a scale of the logits multiplies the rounding of attention in one sequence
    agree(both(build, micro_batch, gradient_of, fused_calls, model=model, **options), tolerance=5e-6)


def test_lora_on_the_body(build, micro_batch, gradient_of, fused_calls):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)

    def options():
        torch.manual_seed(0)
        return {"peft_config": adapter}

    found = []
    for fused in (True, False):
        trainer = build(DGPOTrainer, fused_loss=fused, trainer_options=options())
        fused_calls.clear()
        found.append((*gradient_of(trainer, micro_batch(trainer)), {}))
        assert len(fused_calls) == int(fused)
        assert all("lora_" in name for name, p in trainer.model.named_parameters() if p.grad is not None)
    agree(found)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_whole_runs(build, accumulation):
    """Off-policy, with several passes over the same tokens: the same losses, norms and metrics, step by step."""
    rows = []
    for fused in (True, False):
        trainer = build(
            DGPOTrainer,
            fused_loss=fused,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=8 // accumulation,
            steps_per_generation=2 * accumulation,
            num_iterations=2,
            max_steps=8,
            learning_rate=1e-3,
            optim="sgd",
        )
        trainer.train()
        rows.append([row for row in trainer.state.log_history if "loss" in row])
    for ours, theirs in zip(*rows, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"step_time", "objective/padding"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert rows[0][-1]["objective/kl/old"] > 0


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["autocast", "checkpointing"]
)
def test_runs_under_autocast_and_with_checkpointing(build, fused_calls, options):
    rows = []
    for fused in (True, False):
        trainer = build(DGPOTrainer, fused_loss=fused, max_steps=4, learning_rate=1e-3, **options)
        fused_calls.clear()
        trainer.train()
        assert (len(fused_calls) > 0) == fused
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        rows.append([row for row in trainer.state.log_history if "loss" in row])
    for ours, theirs in zip(*rows, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.03)
        assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=0.01)


def test_evaluation_is_fused_too(build, prompts, fused_calls):
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2, "per_device_eval_batch_size": 8}
    trainer = build(DGPOTrainer, trainer_options={"eval_dataset": prompts.select(range(4))}, **options)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert row["eval_objective/rows_dropped"] == 0.0
    assert math.isfinite(row["eval_entropy"])


def test_generation_and_plain_calls_are_unchanged(build, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids, labels=ids)
    settings = {"max_new_tokens": 4, "do_sample": False}
    text = model.generate(ids, **settings)
    build(DGPOTrainer, model=model)
    after = model(input_ids=ids, labels=ids)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(text, model.generate(ids, **settings))


# --- where it cannot be -----------------------------------------------------------------------------------------------


def experts():
    return causal(
        Qwen3MoeConfig,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.1,
    )


def odd_head():
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = causal(Qwen3Config, tie_word_embeddings=False)
    model.set_output_embeddings(Scaled(32, 101, bias=False))
    return model


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"positive_nll_coef": 0.1}, "positive_nll_coef differentiates the log-probs by itself"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold masks by the current log-probs"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile masks by the current entropies"),
        ({"advantage": "entropy_shaped"}, "advantage = 'entropy_shaped' reads the current entropies"),
        ({"model": experts}, "the auxiliary loss of a mixture of experts"),
        ({"model": odd_head}, "the output head is a Scaled, not a torch.nn.Linear"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_it_says_why_not(build, micro_batch, gradient_of, fused_calls, caplog, options, reason):
    options = dict(options)
    model = options.pop("model", None)
    with caplog.at_level(logging.WARNING, logger="dgpo"):
        trainer = build(DGPOTrainer, model=model and model(), **options)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("dgpo")]
    assert line.startswith("fused_loss is off, log-probs are computed first: ")
    assert re.search(reason, line), line
    inputs = micro_batch(trainer)
    inputs["correct"] = torch.ones(4).bool()
    _, gradient = gradient_of(trainer, inputs)
    assert gradient.isfinite().all()
    assert not fused_calls


def test_it_is_silent_otherwise(build, caplog):
    with caplog.at_level(logging.WARNING, logger="dgpo"):
        build(DGPOTrainer)
        build(DGPOTrainer, fused_loss=False, positive_nll_coef=0.1)
    assert not [record for record in caplog.records if record.name.startswith("dgpo")]


def test_prompt_learning_is_not_fused(build, tiny_folder, caplog):
    peft = pytest.importorskip("peft")
    adapter = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with caplog.at_level(logging.WARNING, logger="dgpo"):
        build(DGPOTrainer, trainer_options={"peft_config": adapter})
    assert "prompt-learning adapters lengthen the sequence" in caplog.text


def test_a_token_that_the_sampler_could_not_score_on_policy(build, micro_batch, gradient_of, fused_calls):
    """Its log μ is the log π_θ of this very pass, which the fused loss knows too late."""
    options = {"correction": "truncate", "change": lambda inputs: without("old_per_token_logps")(unscored(inputs))}
    found = []
    for fused in (True, False):
        trainer = build(DGPOTrainer, fused_loss=fused, correction="truncate")
        fused_calls.clear()
        found.append(gradient_of(trainer, options["change"](micro_batch(trainer))))
        assert not fused_calls
    assert torch.equal(found[0][1], found[1][1])


def test_a_nan_is_an_error_on_both_ways(build, micro_batch, gradient_of):
    for fused in (True, False):
        trainer = build(DGPOTrainer, fused_loss=fused)
        inputs = micro_batch(trainer)
        inputs["old_per_token_logps"][2, 3] = math.nan
        # of the rows of the forward pass, the longest first
        with pytest.raises(ValueError, match=r"old_logprob\[1, 3\] = nan at a valid position"):
            gradient_of(trainer, inputs)


def test_a_deep_copy_runs_its_own_weights(build):
    """As far as TRL's own head goes: its plain logits are those of the original."""
    model = build(DGPOTrainer).model
    copied = copy.deepcopy(model)
    ids = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)

        def of(which):
            return which(ids, labels=ids.clone(), fused_lm_head=True).log_probs

        assert (of(copied) - of(model)).abs().max() > 1e-2
