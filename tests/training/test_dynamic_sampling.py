"""Dynamic sampling: what is trained on has a reward spread, and a hard data set ends in words, not in a hang."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.dynamic_sampling import DynamicSampler


def scripted(prompts, trainer):
    """Six-token answers; `easy` prompts get one answer only, the others a different one each time."""
    tokenizer = trainer.processing_class
    texts = ["000000"[: 1 + i % 6] if not p.startswith("easy") else "000" for i, p in enumerate(prompts)]
    return {
        "prompt_ids": [tokenizer(p)["input_ids"] for p in prompts],
        "completion_ids": [tokenizer(t)["input_ids"] for t in texts],
        "logprobs": None,
    }


def length_reward(completions, **kwargs):
    return [float(len(text)) for text in completions]


@pytest.fixture
def build(tiny_folder, quick, tmp_path):
    def build(data, **options):
        config = DGPOConfig(output_dir=str(tmp_path), dynamic_sampling=True, **{**quick, "max_steps": 4, **options})
        return DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            length_reward,
            config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            rollout_func=scripted,
        )

    return build


def prompts(easy, hard):
    names = [f"easy {i}=" for i in range(easy)] + [f"h{'x' * (i % 7)}{i}=" for i in range(hard)]
    return Dataset.from_dict({"prompt": names})


def record(trainer):
    batches = []
    original = trainer._dynamic_sampler.generate

    def spy(inputs):
        batches.append(original(inputs))
        return batches[-1]

    trainer._dynamic_sampler.generate = spy
    return batches


def test_groups_without_spread_are_replaced(build):
    trainer = build(prompts(easy=24, hard=8), max_num_gen_batches=50)
    batches = record(trainer)
    trainer.train()
    (batch,) = batches
    tokenizer = trainer.processing_class
    assert batch["prompt_ids"].shape[0] == batch["completion_ids"].shape[0] == 16
    for group in range(4):
        rows = slice(4 * group, 4 * group + 4)
        texts = tokenizer.batch_decode(batch["prompt_ids"][rows], skip_special_tokens=True)
        assert len(set(texts)) == 1  # whole groups, re-padded on the left without harm
        assert not texts[0].startswith("easy")
        assert batch["advantages"][rows].abs().min() > 0
    lengths = batch["completion_mask"].sum(1)
    decoded = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    assert lengths.tolist() == [len(text) for text in decoded]
    assert batch["old_per_token_logps"].shape == batch["completion_ids"].shape
    assert batch["num_items_in_batch"] == lengths.sum()
    metrics = [row for row in trainer.state.log_history if "dynamic_sampling/generation_batches" in row]
    assert metrics[0]["dynamic_sampling/generation_batches"] > 1
    assert metrics[0]["dynamic_sampling/groups_without_spread"] == 0


def test_recomputed_log_probs_match_the_assembled_rows(build):
    """Rows from different generations were padded differently; the policy still sees each as it was."""
    trainer = build(prompts(easy=24, hard=8), max_num_gen_batches=50, max_steps=1)
    batches = record(trainer)
    trainer.args.learning_rate = 0.0
    trainer.train()
    (batch,) = batches
    with torch.no_grad():
        logprob, _, _ = trainer._forward(trainer.model, batch)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(logprob[mask], batch["old_per_token_logps"][mask], rtol=1e-4, atol=1e-4)


def test_a_batch_that_needs_nothing_is_generated_once(build):
    trainer = build(prompts(easy=0, hard=16))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "dynamic_sampling/generation_batches" in row]
    assert {row["dynamic_sampling/generation_batches"] for row in rows} == {1.0}


def test_nothing_but_easy_prompts_ends_with_a_warning(build):
    trainer = build(prompts(easy=16, hard=0), max_num_gen_batches=3)
    with pytest.warns(UserWarning, match=r"after 3 generation batches .* 4 of 4 groups of this rank"):
        trainer.train()
    row = next(row for row in trainer.state.log_history if "dynamic_sampling/groups_without_spread" in row)
    assert row["dynamic_sampling/groups_without_spread"] == 4
    assert row["objective/advantage/zero_fraction"] == 1.0
    assert row["grad_norm"] == 0.0


def test_what_rounding_leaves_of_a_constant_reward_is_not_trained_on(build):
    """TRL's advantage of eight equal rewards of 100.1 is 0.07: a rounded mean, divided by 1e-4."""
    trainer = build(prompts(easy=16, hard=0), max_num_gen_batches=1)
    trainer.reward_funcs[0] = lambda completions, **kwargs: [100.1] * len(completions)
    with pytest.warns(UserWarning, match="4 of 4 groups"):
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert {row["grad_norm"] for row in rows} == {0.0}


def test_drawn_prompts_depend_on_the_step_and_not_on_chance(build):
    trainer = build(prompts(easy=24, hard=8))
    sampler = trainer._dynamic_sampler
    first, again, next_one = sampler._draw(1), sampler._draw(1), sampler._draw(2)
    assert first == again != next_one
    trainer.state.global_step = 4
    assert sampler._draw(1) != first


def test_what_it_cannot_do_it_says(build):
    trainer = build(prompts(0, 16))
    trainer.args.num_generations = 5  # as if groups were spread over ranks: 16 completions of this one
    with pytest.raises(ValueError, match="the 16 completions of a rank .* hold no whole number of groups"):
        DynamicSampler(trainer)
    with pytest.raises(ValueError, match="streaming train_dataset"):
        build(prompts(0, 16).to_iterable_dataset())
