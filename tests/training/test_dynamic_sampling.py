"""Dynamic sampling: what is trained on has a reward spread, and a hard data set ends in words, not in a hang."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from dgpo.rewards import format_reward, shaping_term, soft_overlong_reward
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


def right_if_hard(completions, prompts, **kwargs):
    """Wrong for `easy` prompts, whatever the length; for the others right if the answer is long."""
    return [
        float(len(text) > 3 and not prompt.startswith("easy"))
        for text, prompt in zip(completions, prompts, strict=True)
    ]


async def right_if_hard_async(**kwargs):
    return right_if_hard(**kwargs)


def wrong(completions, **kwargs):
    return [0.0] * len(completions)


@pytest.fixture
def build(tiny_folder, quick, tmp_path):
    def build(data, rewards=length_reward, rollout=scripted, trainer_options=None, **options):
        settings = {**quick, "max_steps": 4, "dynamic_sampling": True, **options}
        config = DGPOConfig(output_dir=str(tmp_path), **settings)
        return DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            rewards,
            config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            rollout_func=rollout,
            **(trainer_options or {}),
        )

    return build


def prompts(easy, hard):
    names = [f"easy {i}=" for i in range(easy)] + [f"h{'x' * (i % 7)}{i}=" for i in range(hard)]
    return Dataset.from_dict({"prompt": names})


def record(trainer):
    batches = []
    original = trainer._dynamic_sampler.generate

    def spy(inputs, update):
        found = original(inputs, update)
        batches.append(found[0])
        return found

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
    first, again, next_one = sampler._draw(0, 1), sampler._draw(0, 1), sampler._draw(0, 2)
    assert first == again != next_one
    assert sampler._draw(4, 1) != first


def test_what_it_cannot_do_it_says(build):
    trainer = build(prompts(0, 16))
    trainer.args.num_generations = 5  # as if groups were spread over ranks: 16 completions of this one
    with pytest.raises(ValueError, match="the 16 completions of a rank .* are not a whole number of groups"):
        DynamicSampler(trainer.args, trainer.train_dataset, trainer._generate_once, trainer.accelerator, 0)
    with pytest.raises(ValueError, match="streaming train_dataset"):
        build(prompts(0, 16).to_iterable_dataset())


# --- which rewards decide ---------------------------------------------------------------------------------------------


def lengths_differ(prompts, trainer):
    """Six different lengths for every prompt."""
    tokenizer = trainer.processing_class
    return {
        "prompt_ids": [tokenizer(p)["input_ids"] for p in prompts],
        "completion_ids": [tokenizer("000000"[: 1 + i % 6])["input_ids"] for i in range(len(prompts))],
        "logprobs": None,
    }


def overlong():
    return soft_overlong_reward(max_completion_length=6, buffer=5)


def taught(batch, trainer):
    """The prompts of the groups that are trained on."""
    texts = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    return {text for text, advantage in zip(texts, batch["advantages"].tolist(), strict=True) if advantage != 0}


def test_wrong_answers_of_different_lengths_give_no_gradient(build):
    trainer = build(prompts(0, 16), [wrong, overlong()], lengths_differ, max_num_gen_batches=2)
    batches = record(trainer)
    with pytest.warns(UserWarning, match="the rewards in 4 of 4 groups of this rank are still all equal"):
        trainer.train()
    (batch,) = batches
    assert batch["advantages"].abs().max() == 0
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert {row["grad_norm"] for row in rows} == {0.0}
    assert max(row["reward_std"] for row in rows if "reward_std" in row) > 0.3  # the lengths did differ


@pytest.mark.parametrize("accuracy", [right_if_hard, right_if_hard_async], ids=["function", "async"])
def test_groups_stay_by_their_answers_whatever_their_lengths(build, accuracy):
    rewards = [overlong(), accuracy]
    trainer = build(prompts(easy=8, hard=8), rewards, lengths_differ, max_num_gen_batches=50, reward_weights=[0.5, 1.0])
    batches = record(trainer)
    trainer.train()
    kept = taught(batches[0], trainer)
    assert len(kept) > 1
    assert not [prompt for prompt in kept if prompt.startswith("easy")]
    # what they are trained on is the advantage of the whole reward
    lengths = batches[0]["completion_mask"].sum(1).float()
    total = 0.5 * (1 - lengths).clamp(-5, 0) / 5 + (lengths > 3)
    groups = total.view(4, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(batches[0]["advantages"], expected.flatten(), rtol=0, atol=1e-5)


def test_a_reward_model_may_decide_and_may_be_a_shaping_term(build, tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    policy = AutoModelForCausalLM.from_pretrained(tiny_folder).config
    model = Qwen3ForSequenceClassification(Qwen3Config(**{**policy.to_dict(), "num_labels": 1}))
    model.config._name_or_path = "judge"
    options = {"trainer_options": {"reward_processing_classes": [None, tokenizer]}}
    trainer = build(prompts(0, 16), [wrong, model], lengths_differ, **options)
    batches = record(trainer)
    trainer.train()
    assert len(taught(batches[0], trainer)) == 4
    chosen = build(prompts(0, 16), [wrong, model], dynamic_sampling_rewards=["judge"], **options)
    assert chosen._scoring._deciding == [1]
    model.shaping = True
    assert build(prompts(0, 16), [wrong, model], **options)._scoring._deciding == [0]


@pytest.mark.parametrize(
    ("chosen", "weights", "stay"),
    [
        (None, [1.0, 1.0], 0),
        (["wrong"], [1.0, 1.0], 0),
        (["soft_overlong_reward"], [1.0, 1.0], 4),
        (["wrong", "soft_overlong_reward"], [1.0, 1.0], 4),
        # the choice of a reward that is not trained on: groups have spread in it, and none in the total
        (["soft_overlong_reward"], [1.0, 0.0], 0),
    ],
)
def test_the_choice(build, chosen, weights, stay):
    options = {"reward_weights": weights, "dynamic_sampling_rewards": chosen, "max_num_gen_batches": 1, "max_steps": 1}
    trainer = build(prompts(0, 16), [wrong, overlong()], lengths_differ, **options)
    batches = record(trainer)
    if stay:
        trainer.train()
    else:
        with pytest.warns(UserWarning, match="are still all equal"):
            trainer.train()
    assert len(taught(batches[0], trainer)) == stay


def test_a_reward_of_weight_zero_may_decide(build):
    """Trained on lengths, and on those groups only whose answers differ."""
    options = {"reward_weights": [0.0, 1.0], "dynamic_sampling_rewards": ["right_if_hard"], "max_num_gen_batches": 50}
    trainer = build(prompts(easy=8, hard=8), [right_if_hard, overlong()], lengths_differ, **options)
    batches = record(trainer)
    trainer.train()
    kept = taught(batches[0], trainer)
    assert len(kept) > 1
    assert not [prompt for prompt in kept if prompt.startswith("easy")]


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ([wrong, overlong()], {"dynamic_sampling_rewards": ["rong"]}, "unknown reward 'rong', did you mean 'wrong'"),
        ([overlong(), format_reward], {}, "soft_overlong_reward, format_reward are shaping terms .* or have weight 0"),
        ([wrong, overlong()], {"reward_weights": [0.0, 1.0]}, "no reward to select groups by"),
        (
            [overlong()],
            {"dynamic_sampling": False, "positive_nll_coef": 0.1},
            "needs a reward that measures correctness",
        ),
    ],
)
def test_no_reward_that_decides_is_an_error_at_construction(build, rewards, options, message):
    with pytest.raises(ValueError, match=message):
        build(prompts(0, 16), rewards, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_sampling_rewards": []}, "dynamic_sampling_rewards = \\[\\]; expected a list of names"),
        ({"dynamic_sampling_rewards": "wrong"}, "dynamic_sampling_rewards = 'wrong'; expected a list of names"),
        ({"dynamic_sampling_rewards": ["a"], "dynamic_sampling": False}, "needs dynamic_sampling = True"),
    ],
)
def test_a_choice_that_is_none(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(prompts(0, 16), **options)


def test_correct_are_right_answers_and_not_short_ones(build):
    options = {"dynamic_sampling": False, "positive_nll_coef": 0.1, "max_steps": 1}
    trainer = build(prompts(8, 8), [right_if_hard, length_reward], lengths_differ, **options)
    data = [{"prompt": p} for p in ("easy 1=", "h1=") for _ in range(8)]
    assert trainer._generate_once(data)[0]["correct"].all()
    shaping_term(marked := partial(length_reward))
    trainer = build(prompts(8, 8), [right_if_hard, marked], lengths_differ, **options)
    lengths = [1 + i % 6 for i in range(16)]
    expected = [i >= 8 and lengths[i] > 3 for i in range(16)]
    assert trainer._generate_once(data)[0]["correct"].tolist() == expected


def test_a_group_whose_rewards_are_none_for_some_has_spread(build):
    """Constant and None: no spread in either reward alone, and in their sum."""

    def some(completions, **kwargs):
        return [2.0 if i % 4 < 2 else None for i in range(len(completions))]

    def one(completions, **kwargs):
        return [1.0] * len(completions)

    trainer = build(prompts(0, 16), [one, some], lengths_differ, max_steps=1)
    batches = record(trainer)
    trainer.train()
    assert batches[0]["advantages"].tolist() == pytest.approx([0.866, 0.866, -0.866, -0.866] * 4, abs=1e-3)
    (row,) = (row for row in trainer.state.log_history if "loss" in row)
    assert row["dynamic_sampling/generation_batches"] == 1
    assert row["frac_reward_zero_std"] == 0
    assert row["objective/advantage/zero_fraction"] == 0
    assert row["grad_norm"] > 0
