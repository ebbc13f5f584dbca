"""TRL's extra forward pass for log π_old is left out where the pass of the loss gives the same, and nowhere else."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, Qwen3Config
from trl import GRPOTrainer

from dgpo.training import DGPOTrainer
from dgpo.training.old_logprob import KEY, draws_at_random


def reward(completions, **kwargs):
    return [((7 * i) % 5) / 4 for i in range(len(completions))]


def scripted(prompts, trainer):
    texts = [("31+4=" * 2)[i % 5 : i % 5 + 1 + i % 6] for i in range(len(prompts))]
    tokenizer = trainer.processing_class
    return {
        "prompt_ids": [tokenizer(p)["input_ids"] for p in prompts],
        "completion_ids": [tokenizer(t)["input_ids"] for t in texts],
        "logprobs": [[-1.0 - 0.1 * (i % 3)] * len(t) for i, t in enumerate(texts)],
    }


@pytest.fixture
def run(build):
    """A run of 8 updates; `trls` keeps TRL's extra pass. The trainer counts the responses that its model was shown."""

    def run(*, trls=False, model=None, **options):
        trainer = build(
            DGPOTrainer,
            model=model,
            reward=reward,
            trainer_options={"rollout_func": scripted},
            **{"max_steps": 8, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e9, **options},
        )
        if trls:
            trainer._can_defer = lambda: False
        trainer.rows_seen = 0
        forward = trainer.model.forward

        def counted(self, *args, **kwargs):
            trainer.rows_seen += len(kwargs["input_ids"])
            return forward(*args, **kwargs)

        trainer.model.forward = types.MethodType(counted, trainer.model)
        trainer.train()
        return trainer

    return run


SCHEDULES = {
    "4 steps": {"steps_per_generation": 4},
    "4 steps, 2 passes": {"steps_per_generation": 4, "num_iterations": 2},
    "1 step, 3 passes": {"per_device_train_batch_size": 16, "steps_per_generation": 1, "num_iterations": 3},
    "2 steps of 2": {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "1 step of 4, 2 passes": {"steps_per_generation": 4, "gradient_accumulation_steps": 4, "num_iterations": 2},
    "step longer than a pass": {
        "per_device_train_batch_size": 16,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 2,
        "num_iterations": 4,
    },
}
LEFT_OUT = {"4 steps": 1 / 4, "4 steps, 2 passes": 1 / 4, "2 steps of 2": 1 / 2}
"""Share of TRL's pass that is not needed; all of it elsewhere."""


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        *((name, {}) for name in SCHEDULES),
        ("4 steps, 2 passes", {"fused_loss": False}),
        ("4 steps, 2 passes", {"correction": "truncate", "beta": 0.1}),
    ],
)
def test_the_same_run_with_less_work(run, schedule, options):
    settings = {**SCHEDULES[schedule], **options}
    ours, trls = run(**settings), run(trls=True, **settings)
    for mine, theirs in zip(ours.model.parameters(), trls.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    rows, expected_rows = ([row for row in t.state.log_history if "loss" in row] for t in (ours, trls))
    assert len(rows) == 8
    for row, expected in zip(rows, expected_rows, strict=True):
        for name in ("loss", "grad_norm", "objective/kl/old", "objective/weight/max", "entropy"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)
    assert max(row["objective/kl/old"] for row in rows) > 2e-5
    # rows whose advantage is 0 are left out of our pass and not of TRL's; a fifth of the rewards is alike
    generations = -(
        -8
        * settings.get("gradient_accumulation_steps", 1)
        // (settings["steps_per_generation"] * settings.get("num_iterations", 1))
    )
    assert trls.rows_seen - ours.rows_seen >= LEFT_OUT.get(schedule, 1.0) * generations * 16


def test_what_is_recorded_is_what_the_pass_would_have_found(build):
    """Before the first update every micro-batch has, or gets, exactly the log-probs of the policy that sampled it."""
    trainer = build(DGPOTrainer, reward=reward, trainer_options={"rollout_func": scripted}, num_iterations=2)
    trainer.args.max_steps = 4
    first = AutoModelForCausalLM.from_pretrained(trainer.model.config._name_or_path)
    trainer.train()
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(first.state_dict())
    for inputs in trainer._buffered_inputs:
        kept = inputs["completion_mask"].bool() & (inputs["advantages"] != 0).unsqueeze(1)
        with torch.no_grad():
            expected, _, _ = trainer._forward(trainer.model, inputs)
        torch.testing.assert_close(inputs[KEY][kept], expected[kept], rtol=0, atol=2e-6)
    assert any(not torch.equal(trained[name], value) for name, value in first.state_dict().items())


def test_dropout_keeps_trls_pass(build, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, attention_dropout=0.1)
    trainer = build(DGPOTrainer, model=model, reward=reward, max_steps=1)
    trainer.train()
    assert all(KEY in inputs for inputs in trainer._buffered_inputs)


def test_the_first_step_has_none_and_the_later_ones_have(build):
    trainer = build(DGPOTrainer, reward=reward, max_steps=1)
    trainer.train()
    assert [KEY in inputs for inputs in trainer._buffered_inputs] == [False, True, True, True]


@pytest.mark.parametrize(
    ("config", "random"),
    [
        (Qwen3Config(), False),
        (Qwen3Config(attention_dropout=0.1), True),
        (GPT2Config(), True),
        (GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, summary_first_dropout=0.0), False),
        (MixtralConfig(router_jitter_noise=0.01), True),
    ],
)
def test_models_that_draw_at_random(config, random):
    config.update({"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1})
    config.update({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8})
    assert draws_at_random(AutoModelForCausalLM.from_config(config)) is random


def test_adapters_with_dropout_draw_at_random(tiny_folder):
    peft = pytest.importorskip("peft")
    for p in (0.0, 0.1):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_dropout=p)
        assert draws_at_random(peft.get_peft_model(model, adapter)) is (p > 0)


def test_trls_own_correction_keeps_its_pass(build):
    trainer = build(DGPOTrainer)
    assert trainer._can_defer()
    trainer.use_vllm = True
    assert not trainer._can_defer()


def test_trl_prepares_inputs_as_we_take_it():
    assert list(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == ["self", "generation_batch"]
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs = [" in source
    assert "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]" in source


def test_trl_computes_the_old_log_probs_first():
    """We leave out the first pass after a generation: it must be that of the old policy, and on this condition."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    calls = source.split("self._get_per_token_logps_and_entropies(")
    assert len(calls) == 4
    assert calls[0].rstrip().endswith("old_per_token_logps, _, _ =")
    assert "if self.args.gradient_accumulation_steps % generate_every != 0 or (" in calls[0]
    assert "generate_every = self.args.steps_per_generation * self.num_iterations" in calls[0]
    assert 'if old_per_token_logps is not None:\n            output["old_per_token_logps"]' in calls[3]
