"""What DGPOTrainer keeps of TRL beside the loss, measured against stock GRPOTrainer on the very same inputs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import GRPOConfig, GRPOTrainer

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.aggregation import StepTotals
from dgpo.training import DGPOTrainer


def scripted(prompts, trainer):
    """Different, ragged completions that do not depend on any random numbers."""
    texts = [("31+4=" * 2)[i % 5 : i % 5 + 1 + i % 6] for i in range(len(prompts))]
    tokenizer = trainer.processing_class
    return {
        "prompt_ids": [tokenizer(p)["input_ids"] for p in prompts],
        "completion_ids": [tokenizer(t)["input_ids"] for t in texts],
        "logprobs": None,
    }


def inputs_for(trainer, seed=0):
    """One micro-batch of 4 ragged completions whose old log-probs are well off the policy's."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (4, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)).long()
    batch = {
        "prompt_ids": torch.randint(3, 50, (4, 5), generator=generator),
        "prompt_mask": torch.ones(4, 5, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.5]),
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        logprob, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], ids], 1),
            torch.cat([batch["prompt_mask"], mask], 1),
            6,
        )
    noise = lambda scale: scale * torch.randn(4, 6, generator=generator)  # noqa: E731
    batch["old_per_token_logps"] = logprob + noise(0.4)
    batch["sampling_per_token_logps"] = batch["old_per_token_logps"] + noise(0.3)
    batch["ref_per_token_logps"] = logprob + noise(0.5)
    batch["importance_sampling_ratio"] = noise(0.3).exp()
    return batch


def loss_and_gradient(trainer, inputs):
    trainer.current_gradient_accumulation_steps = 1
    trainer._buffered_inputs = [inputs] * 4
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), gradient


AS_STOCK = {"objective": "grpo", "aggregation": "seq-mean-token-sum-norm"}


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, {}),
        ({"beta": 0.2}, {}),
        ({"beta": 0.2, "use_bias_correction_kl": False}, {}),
        ({"off_policy_mask_threshold": 0.05}, {}),
        ({"top_entropy_quantile": 0.5}, {}),
        ({"epsilon": 0.05, "epsilon_high": 0.3}, {}),
        ({}, {"use_vllm": True}),
        ({"off_policy_mask_threshold": 0.05, "top_entropy_quantile": 0.6, "beta": 0.1}, {"use_vllm": True}),
    ],
    ids=["plain", "kl-ratio", "kl-k3", "off-policy-mask", "entropy-mask", "epsilons", "vllm-correction", "all"],
)
def test_what_stands_beside_the_loss_acts_as_in_trl(build, options, flags):
    """The sampler correction, both masks and both KL terms, against TRL's own loss on the same tensors."""
    stock, ours = build(GRPOTrainer, loss_type="dr_grpo", **options), build(DGPOTrainer, **AS_STOCK, **options)
    for trainer in (stock, ours):  # vLLM is not installed: its log-probs and ratios come with the inputs
        for name, value in flags.items():
            setattr(trainer, name, value)
    expected = loss_and_gradient(stock, inputs_for(stock))
    loss, gradient = loss_and_gradient(ours, inputs_for(ours))
    assert loss == pytest.approx(expected[0], abs=1e-6)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3


def test_tool_results_are_not_trained_on(build):
    """A token that a tool wrote must not matter, whatever its log-probs are."""
    trainer = build(DGPOTrainer)
    inputs = inputs_for(trainer)
    shorter = {**inputs, "tool_mask": torch.ones_like(inputs["completion_mask"])}
    shorter["tool_mask"][0, 2:4] = 0
    first = loss_and_gradient(trainer, shorter)
    changed = {**shorter, "old_per_token_logps": shorter["old_per_token_logps"].clone()}
    changed["old_per_token_logps"][0, 2:4] = -50.0
    second = loss_and_gradient(trainer, changed)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert first[0] != pytest.approx(loss_and_gradient(trainer, inputs)[0])


def test_our_correction_takes_the_place_of_trls(build):
    """ρ = min(π_old/μ, cap) from the sampler's log-probs; NaN (not scored by the sampler) counts as no mismatch."""
    trainer = build(DGPOTrainer, correction={"name": "truncate", "cap": 1.1})
    inputs = inputs_for(trainer)
    inputs["sampling_per_token_logps"][0, 1] = math.nan
    loss, _ = loss_and_gradient(trainer, inputs)
    mismatch = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]).exp().nan_to_num(nan=1.0)
    with torch.no_grad():
        logprob, _, _ = trainer._forward(trainer.model, inputs)
    out = policy_loss(logprob, inputs["old_per_token_logps"], inputs["advantages"], inputs["completion_mask"])
    phi = objectives.DGPO().potential
    tokens = TokenBatch(logprob, inputs["old_per_token_logps"], inputs["advantages"], inputs["completion_mask"].bool())
    per_token = -mismatch.clamp(max=1.1) * inputs["advantages"].unsqueeze(1) * phi(tokens)
    expected = (per_token * inputs["completion_mask"]).sum() / inputs["completion_mask"].sum()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    assert loss != pytest.approx(out.value.item(), abs=1e-4)


def test_a_correction_without_sampler_log_probs_says_so(build):
    with pytest.raises(ValueError, match="needs the sampler's log-probs: set use_vllm = True, or pass a rollout_func"):
        build(DGPOTrainer, correction="truncate", trainer_options={"rollout_func": None})
    trainer = build(DGPOTrainer, correction="truncate")
    inputs = inputs_for(trainer)
    del inputs["sampling_per_token_logps"]
    with pytest.raises(ValueError, match="needs the sampler's log-probs: set use_vllm = True, or pass a rollout_func"):
        loss_and_gradient(trainer, inputs)


def test_a_nan_is_an_error_that_names_its_place(build):
    trainer = build(DGPOTrainer)
    inputs = inputs_for(trainer)
    inputs["old_per_token_logps"][2, 3] = math.nan
    # of the rows of the forward pass, the longest first
    with pytest.raises(ValueError, match=r"old_logprob\[1, 3\] = nan at a valid position"):
        loss_and_gradient(trainer, inputs)
    inputs["old_per_token_logps"][2, 3] = -1.0
    inputs["old_per_token_logps"][3, 4] = math.nan  # behind the end of a completion
    assert math.isfinite(loss_and_gradient(trainer, inputs)[0])


def test_accumulation_does_not_change_the_update(build, tiny_folder):
    """The same 16 responses as 1, 2 or 4 micro-batches: the same parameters after 3 off-policy updates."""
    trained = {}
    for accumulation in (1, 2, 4):
        trainer = build(
            DGPOTrainer,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            num_iterations=3,
            max_steps=3,
            optim="sgd",
            learning_rate=0.2,
            max_grad_norm=1e9,
            reward=lambda completions, **kwargs: [((7 * i) % 5) / 4 for i in range(len(completions))],
            trainer_options={"rollout_func": scripted},
        )
        trainer.train()
        trained[accumulation] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    start = torch.cat([p.detach().flatten() for p in AutoModelForCausalLM.from_pretrained(tiny_folder).parameters()])
    assert (trained[1] - start).abs().max() > 1e-3
    torch.testing.assert_close(trained[2], trained[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(trained[4], trained[1], rtol=0, atol=1e-6)


def test_totals_cover_the_optimiser_step(build):
    trainer = build(DGPOTrainer, gradient_accumulation_steps=2, steps_per_generation=4)
    batches = [inputs_for(trainer, seed) for seed in range(4)]
    batches[1]["completion_mask"][3] = 0
    trainer._buffered_inputs, trainer.current_gradient_accumulation_steps = batches, 2
    trainer.model.train()
    for step, (tokens, sequences) in enumerate([(29, 7), (29, 7), (30, 8), (30, 8)]):
        trainer._step = step
        totals = trainer._step_totals(batches[step])
        assert (float(totals.tokens), float(totals.sequences)) == (tokens, sequences)
    trainer.model.eval()
    assert trainer._step_totals(batches[1]) == StepTotals(tokens=torch.tensor(14.0), sequences=torch.tensor(3.0))


@pytest.mark.parametrize("advantage", ["std", "none", "leave_one_out"])
def test_our_advantages_from_trls_rewards(build, advantage):
    trainer = build(DGPOTrainer, advantage=advantage)
    seen = {}
    original = trainer._generate_once

    def spy(inputs):
        output, scores = original(inputs)
        seen.update(rewards=scores.total.float(), advantages=output["advantages"])
        return output, scores

    trainer._generate_once = spy
    trainer.args.max_steps = 1
    trainer.train()
    for r, a in zip(seen["rewards"].view(-1, 4), seen["advantages"].view(-1, 4), strict=True):
        centred = r - r.mean()
        scale = {"std": 1 / (r.std() + 1e-6), "none": 1.0, "leave_one_out": 4 / 3}[advantage]
        torch.testing.assert_close(a, torch.where(r.max() == r.min(), torch.zeros(4), centred * scale))
    assert seen["advantages"].abs().max() > 0


def test_the_adaptive_entropy_controller_is_trls(build):
    """Same coefficients, step by step, although the bonus itself is normalised over the optimiser step."""
    options = {"use_adaptive_entropy": True, "entropy_target": 4.6, "entropy_coef_delta": 0.001, "max_steps": 8}
    options |= {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "learning_rate": 1e-4}
    coefficients = []
    for trainer in (build(GRPOTrainer, loss_type="dr_grpo", **options), build(DGPOTrainer, **AS_STOCK, **options)):
        trainer.train()
        coefficients.append(trainer.entropy_coef)
    assert coefficients[0] == coefficients[1] > 0


def test_entropy_bonus_raises_entropy(build):
    inputs = inputs_for(trainer := build(DGPOTrainer, entropy_coef=0.5))
    inputs["advantages"] = torch.zeros(4)
    loss, gradient = loss_and_gradient(trainer, inputs)
    with torch.no_grad():
        _, entropy, _ = trainer._forward(trainer.model, inputs)
    mask = inputs["completion_mask"]
    assert loss == pytest.approx(-0.5 * ((entropy * mask).sum() / mask.sum()).item(), abs=1e-6)
    assert gradient.abs().max() > 1e-4


def test_mixture_of_experts_auxiliary_loss(build):
    def experts():
        torch.manual_seed(0)
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                vocab_size=101,
                hidden_size=32,
                intermediate_size=32,
                moe_intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                num_experts=4,
                num_experts_per_tok=2,
                output_router_logits=True,
                router_aux_loss_coef=0.1,
                pad_token_id=0,
                eos_token_id=1,
            )
        )

    stock = build(GRPOTrainer, model=experts(), loss_type="dr_grpo")
    ours = build(DGPOTrainer, model=experts(), **AS_STOCK)
    assert ours.aux_loss_enabled
    expected = loss_and_gradient(stock, inputs_for(stock))
    loss, gradient = loss_and_gradient(ours, inputs_for(ours))
    assert loss == pytest.approx(expected[0], abs=1e-6)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-7)
    assert ours._metrics["train"]["aux_loss"] == pytest.approx(stock._metrics["train"]["aux_loss"])


def test_lora_trains_the_adapter_alone(build, tiny_folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(DGPOTrainer, max_steps=4, beta=0.05, trainer_options={"peft_config": config})
    trainer.train()
    before = dict(AutoModelForCausalLM.from_pretrained(tiny_folder).named_parameters())
    moved = set()
    for name, value in trainer.model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in before:
            assert torch.equal(value, before[plain])
        elif "lora_B" in name and value.abs().max() > 0:
            moved.add(name)
    assert len(moved) == 4
    assert [row["kl"] for row in trainer.state.log_history if "kl" in row][-1] > 0


def test_evaluation_during_training(build, prompts):
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2, "per_device_eval_batch_size": 8}
    trainer = build(DGPOTrainer, trainer_options={"eval_dataset": prompts.select(range(4))}, **options)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert math.isfinite(row["eval_loss"])
    assert row["eval_objective/fraction/inside"] == 1.0


def test_metrics_are_those_of_the_loss(build):
    trainer = build(DGPOTrainer, max_steps=4)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    keys = {key for key in rows[-1] if key.startswith("objective/")}
    assert {"objective/mass/left", "objective/weight/ess", "objective/kl/old"} <= keys
    assert rows[0]["objective/kl/old"] == 0.0
    assert rows[-1]["objective/kl/old"] > 0
    parts = ("inside", "left", "right", "reverse_left", "reverse_right")
    assert sum(rows[-1][f"objective/fraction/{part}"] for part in parts) == pytest.approx(1.0)


def test_a_patched_loss_is_found_out(build, monkeypatch):
    def hijacked(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return sum(p.sum() for p in model.parameters()) * 0.0

    monkeypatch.setattr(GRPOTrainer, "compute_loss", hijacked)
    with pytest.raises(RuntimeError, match="_compute_loss was not called during the first optimiser step.*hijacked"):
        build(DGPOTrainer).train()


def test_a_plain_config_is_refused(build, tmp_path, quick):
    with pytest.raises(TypeError, match=r"args is a GRPOConfig; expected a dgpo.training.DGPOConfig"):
        DGPOTrainer("unused", None, GRPOConfig(str(tmp_path), **quick))


def test_checkpoint_resume_and_model_card(build, tmp_path):
    trainer = build(DGPOTrainer, max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "https://arxiv.org/abs/2603.14389" in card
    resumed = build(DGPOTrainer, max_steps=6, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.state.global_step == 6
    assert [row["step"] for row in resumed.state.log_history if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert Path(tmp_path / "run" / "checkpoint-6").is_dir()


def test_a_nan_of_the_reference_model_is_an_error_too(build):
    trainer = build(DGPOTrainer, beta=0.1)
    inputs = inputs_for(trainer)
    inputs["ref_per_token_logps"][0, 1] = math.nan
    with pytest.raises(ValueError, match=r"ref_logprob\[0, 1\] = nan at a valid position"):
        loss_and_gradient(trainer, inputs)


def test_data_for_less_than_one_generation_is_refused(build, prompts):
    with pytest.raises(ValueError, match="the data has 3 prompts, but one generation takes 4"):
        build(DGPOTrainer, data=prompts.select(range(3)))


def test_the_table_of_completions_shows_the_advantages_that_were_used(build):
    trainer = build(DGPOTrainer, advantage="none", max_steps=1)
    trainer.train()
    used = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs])
    assert sorted(trainer._logs["advantages"]) == pytest.approx(sorted(used.tolist()))


def test_training_again_after_an_interruption_inside_a_step(build):
    """The windows begin anew: each update's totals are those of its own two micro-batches."""
    schedule = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 4}
    # all different: no response is left out
    trainer = build(DGPOTrainer, reward=lambda completions, **_: list(range(len(completions))), **schedule)
    original, calls, seen = trainer._compute_loss, [], []

    def interrupted(model, inputs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        loss = original(model, inputs)
        seen.append((float(trainer._step_totals(inputs).tokens), int(inputs["completion_mask"].sum())))
        return loss

    trainer._compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    seen.clear()
    trainer.train()
    assert len(seen) == 8
    for (first, tokens), (second, more) in zip(seen[::2], seen[1::2], strict=True):
        assert first == second == tokens + more


class HeadCasts(TorchDispatchMode):
    """Counts how often a tensor of the head's shape is cast to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.count += args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_autocast_casts_the_weights_once_per_generation(build):
    """And not once per token; the samples are those of TRL."""

    def generated(generate):
        trainer = build(DGPOTrainer, bf16=True, max_steps=1, temperature=0.7)
        casts, found = HeadCasts(trainer.model.get_output_embeddings().weight.shape), []

        def watched(*args, **kwargs):
            with casts:
                found.append(generate(trainer, *args, **kwargs))
            return found[-1]

        trainer._generate_single_turn = watched
        trainer.train()
        return casts.count, found

    ours, theirs = generated(DGPOTrainer._generate_single_turn), generated(GRPOTrainer._generate_single_turn)
    assert ours[1] == theirs[1]
    longest = max(len(ids) for ids in ours[1][0][0])
    assert longest > 1
    assert (ours[0], theirs[0]) == (1, longest)
