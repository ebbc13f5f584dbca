"""DGPOTrainer with the hard clip against stock GRPOTrainer: the same losses and gradient norms, off-policy."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dgpo.training import DGPOConfig, DGPOTrainer


def history(trainer_class, config, folder, prompts, reward):
    trainer = trainer_class(
        AutoModelForCausalLM.from_pretrained(folder),
        reward,
        config,
        train_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def compare(stock, ours):
    assert len(stock) == len(ours) == 16
    for theirs, mine in zip(stock, ours, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5, abs=1e-6)
    # the comparison is empty unless tokens were clipped on both sides and gradients flowed
    assert max(row["objective/fraction/left"] for row in ours) > 0.02
    assert max(row["objective/fraction/right"] for row in ours) > 0.02
    assert min(row["grad_norm"] for row in ours) > 1e-3


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_dr_grpo_of_trl_is_grpo_with_a_fixed_length(
    tiny_folder, prompts, quick, digit_reward, tmp_path, accumulation, beta
):
    """Ragged lengths; with gradient accumulation; with TRL's ratio-weighted KL term."""
    quick |= {"gradient_accumulation_steps": accumulation, "beta": beta}
    quick |= {"steps_per_generation": 4 * accumulation}
    stock = GRPOConfig(tmp_path / "stock", loss_type="dr_grpo", **quick)
    ours = DGPOConfig(tmp_path / "ours", objective="grpo", aggregation="seq-mean-token-sum-norm", **quick)
    theirs = history(GRPOTrainer, stock, tiny_folder, prompts, digit_reward)
    mine = history(DGPOTrainer, ours, tiny_folder, prompts, digit_reward)
    compare(theirs, mine)
    lengths = {(row["completions/min_length"], row["completions/max_length"]) for row in mine if "reward" in row}
    assert any(shortest < longest for shortest, longest in lengths)


def test_dapo_of_trl_is_token_mean_at_one_fixed_length(tiny_folder, prompts, quick, digit_reward, tmp_path):
    """TRL divides by the generation batch's tokens, we by the optimiser step's: the same when all lengths are."""
    quick |= {"generation_kwargs": {"min_new_tokens": quick["max_completion_length"]}}
    theirs = history(
        GRPOTrainer, GRPOConfig(tmp_path / "stock", loss_type="dapo", **quick), tiny_folder, prompts, digit_reward
    )
    mine = history(
        DGPOTrainer, DGPOConfig(tmp_path / "ours", objective="grpo", **quick), tiny_folder, prompts, digit_reward
    )
    compare(theirs, mine)


def test_token_mean_differs_from_dapo_of_trl_at_ragged_lengths(tiny_folder, prompts, quick, digit_reward, tmp_path):
    """On purpose, and by the ratio of the two token counts (docs/normalisation.md)."""
    quick |= {"max_steps": 4}
    theirs = history(
        GRPOTrainer, GRPOConfig(tmp_path / "stock", loss_type="dapo", **quick), tiny_folder, prompts, digit_reward
    )
    mine = history(
        DGPOTrainer, DGPOConfig(tmp_path / "ours", objective="grpo", **quick), tiny_folder, prompts, digit_reward
    )
    assert mine[0]["loss"] != pytest.approx(theirs[0]["loss"], abs=1e-5)
