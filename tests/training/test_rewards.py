"""Rewards in a run: what they log, truncated completions, weights."""

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.rewards import MathReward, build
from dgpo.training import DGPOConfig, DGPOTrainer

ANSWERS = ["A:1", "A:2", "123456", ""]


def scripted(prompts, trainer):
    """Of every four completions: two that end, one that fills the budget of 6 tokens, one that ends at once."""
    tokenizer = trainer.processing_class
    ids = [tokenizer(ANSWERS[i % 4])["input_ids"] for i in range(len(prompts))]
    return {
        "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": [row if len(row) == 6 else [*row, tokenizer.eos_token_id] for row in ids],
        "logprobs": None,
    }


@pytest.fixture
def trained(tiny_folder, quick, tmp_path):
    def trained(rewards, **options):
        config = DGPOConfig(output_dir=str(tmp_path), **{**quick, "max_steps": 4, **options})
        trainer = DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            rewards,
            config,
            train_dataset=Dataset.from_dict({"prompt": ["one=", "two=", "six=", "ten="], "answer": ["1"] * 4}),
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            rollout_func=scripted,
        )
        trainer.train()
        return trainer

    return trained


def test_a_run_logs_the_reasons_of_the_grader(trained):
    reward = MathReward(answer_marker="A:", deadline=10.0)
    trainer = trained(reward)
    row = next(row for row in trainer.state.log_history if "math_reward/match" in row)
    assert row["rewards/math_reward/mean"] == pytest.approx(0.25)
    assert row["math_reward/match"] == row["math_reward/mismatch"] == pytest.approx(0.25)
    assert row["math_reward/no_answer"] == pytest.approx(0.5)
    assert row["math_reward/truncated"] == pytest.approx(0.25)
    assert row["math_reward/timeout"] == 0.0
    assert set(trainer._logs["extra"]["reason"]) == {"match", "mismatch", "no_answer"}
    reward.close()


def test_every_reward_is_told_what_was_truncated(trained):
    seen = []

    def watch(completions, truncated, **columns):
        seen.extend(zip(completions, truncated, strict=True))
        return [float(len(text)) for text in completions]

    trained(watch)
    assert set(seen) == {("A:1", False), ("A:2", False), ("123456", True), ("", False)}


def test_weights_and_soft_overlong_in_one_run(trained):
    rewards, weights = build(
        ["format_reward", {"name": "soft_overlong_reward", "buffer": 4, "weight": 0.5}], max_completion_length=6
    )
    trainer = trained(rewards, reward_weights=weights)
    row = next(row for row in trainer.state.log_history if "reward" in row)
    # lengths 4, 4, 6, 1 with L = 6 and a buffer of 4
    assert row["rewards/soft_overlong_reward/mean"] == pytest.approx((-0.5 - 0.5 - 1.0 + 0.0) / 4)
    assert row["reward"] == pytest.approx(0.5 * row["rewards/soft_overlong_reward/mean"])
