"""The advantages that a loss or a history forms: shaped by entropy in every update, smoothed over checkpoints."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.advantages import ADVANTAGES, SCALES, entropy_shaped, group_advantage, make, smooth_advantage
from dgpo.training import DGPOConfig, DGPOTrainer, step_loss
from dgpo.training import trainer as module


@pytest.fixture
def build(tiny_folder, prompts, quick, digit_reward, tmp_path):
    """A trainer on four prompts, all of which are in every generation."""

    def build(folder="run", reward=digit_reward, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = DGPOConfig(output_dir=str(tmp_path / folder), **{**quick, "max_steps": 8, **options})
        return DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            reward,
            config,
            train_dataset=prompts.select(range(4)),
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
        )

    return build


@pytest.fixture
def generations(monkeypatch):
    """What every generation of training gave: prompts of the groups, rewards and advantages."""
    seen = []
    original = DGPOTrainer._generate_once

    def watched(self, inputs):
        output, scores = original(self, inputs)
        if self.model.training:
            prompts = [json.dumps(row["prompt"]) for row in inputs][:: self.num_generations]
            seen.append((prompts, scores.total, output["advantages"]))
        return output, scores

    monkeypatch.setattr(DGPOTrainer, "_generate_once", watched)
    return seen


@pytest.fixture
def updates(monkeypatch):
    """The advantages and entropies that entered every loss, and the advantages that the batch came with."""
    seen = []
    original_compute = DGPOTrainer._compute_loss

    def watched_compute(self, model, inputs):
        seen.append({"given": inputs["advantages"].clone()})
        return original_compute(self, model, inputs)

    of_tokens, of_hidden = step_loss.loss_of, step_loss.linear_loss_of

    def watched_tokens(spec, tokens, **options):
        seen[-1].update(advantage=tokens.advantage, entropy=options["entropy"].detach(), mask=tokens.mask)
        return of_tokens(spec, tokens, **options)

    def watched_hidden(spec, **options):
        if torch.is_grad_enabled():  # not for the old policy's log-probs
            seen[-1].update(advantage=options["advantage"], entropy=None, mask=options["mask"])
        return of_hidden(spec, **options)

    monkeypatch.setattr(step_loss, "loss_of", watched_tokens)
    monkeypatch.setattr(step_loss, "linear_loss_of", watched_hidden)
    monkeypatch.setattr(DGPOTrainer, "_compute_loss", watched_compute)
    return seen


# --- shaped by entropy ------------------------------------------------------------------------------------------------


def test_entropy_shaped_is_formed_in_every_update_from_the_current_entropy(build, updates, generations):
    trainer = build(advantage="entropy_shaped", advantage_kwargs={"alpha": 0.05, "kappa": 3})
    trainer.train()
    assert len(updates) == 8
    for update in updates:
        assert not update["advantage"].requires_grad
        expected = entropy_shaped(update["given"], update["entropy"], 0.05, 3)
        assert update["advantage"].shape == update["entropy"].shape
        assert torch.equal(update["advantage"], torch.where(update["mask"], expected, 0.0))
    for _, rewards, advantages in generations:
        torch.testing.assert_close(advantages, group_advantage(rewards, 4).float(), rtol=0, atol=0)
    bonus = updates[0]["advantage"] - updates[0]["given"].unsqueeze(1)
    assert bonus[updates[0]["mask"]].max() > 1e-2
    # the entropy that was recorded in the log is the one that shaped
    logged = [row["entropy"] for row in trainer.state.log_history if "loss" in row]
    recorded = [(u["entropy"] * u["mask"]).sum() / u["mask"].sum() for u in updates]
    assert logged == pytest.approx([float(value) for value in recorded], rel=1e-5)


def test_entropy_shaped_leaves_an_advantage_of_zero_alone(build, updates):
    trainer = build(advantage="entropy_shaped", reward=lambda completions, **_: [0.5] * len(completions), max_steps=4)
    trainer.train()
    assert all((update["advantage"] == 0).all() for update in updates)
    assert all(row["grad_norm"] == 0 for row in trainer.state.log_history if "loss" in row)


def test_other_advantages_enter_as_they_came(build, updates):
    build(advantage="std", max_steps=4).train()
    assert len(updates) == 4
    for update in updates:
        taught = update["given"] != 0  # the others are left out
        assert torch.equal(update["advantage"], update["given"][taught])


# --- of rewards alone ------------------------------------------------------------------------------------------------

FIELDS = {"pass_at_k": {"k": 2}, "nsr": {"positive": 0.5}}


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {*SCALES, "entropy_shaped", "smooth", "distill"}))
def test_every_advantage_trains(build, generations, name):
    """Four updates: every generation has the advantages of the function, and some update a gradient."""

    def reward(completions, **_):
        # groups with a single best response are rare with two values
        return [float(sum(map(ord, text)) % (7 if name == "grpo_passk" else 2)) for text in completions]

    options = FIELDS.get(name)
    trainer = build(reward=reward, advantage=name, advantage_kwargs=options, max_steps=4)
    trainer.train()
    ((_, rewards, found),) = generations
    expected = make(name, **(options or {})).of_groups(rewards, 4, [], {}).float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 4
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)


# --- smoothed over the steps of a prompt ------------------------------------------------------------------------------


def test_smooth_advantages_from_the_history_of_the_prompt(build, generations):
    trainer = build(advantage="smooth", max_steps=12)
    trainer.train()
    assert len(generations) == 3
    history = {}
    for prompts, rewards, advantages in generations:
        torch.testing.assert_close(advantages, smooth_advantage(rewards, 4, prompts, history).float(), rtol=0, atol=0)
    assert trainer._scoring.history == history
    assert {steps for steps, _, _ in history.values()} == {3}
    assert any(not torch.allclose(a, group_advantage(r, 4).float(), atol=1e-3) for _, r, a in generations[1:])


def test_the_history_is_in_the_checkpoint_and_resuming_continues_it(build, generations, tmp_path):
    saving = {"advantage": "smooth", "save_strategy": "steps", "save_steps": 4}
    whole = build(**saving)
    whole.train()
    first, second = (
        json.loads((tmp_path / "run" / f"checkpoint-{n}" / module.HISTORY_FILE).read_text()) for n in (4, 8)
    )
    assert [steps for steps, _, _ in first.values()] == [1] * 4
    assert [steps for steps, _, _ in second.values()] == [2] * 4
    assert second == whole._scoring.history

    generations.clear()
    resumed = build("again", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    ((prompts, rewards, advantages),) = generations
    expected = smooth_advantage(rewards, 4, prompts, first).float()
    torch.testing.assert_close(advantages, expected, rtol=0, atol=0)
    assert resumed._scoring.history == first  # updated in place, from what the checkpoint held
    assert [steps for steps, _, _ in resumed._scoring.history.values()] == [2] * 4


def test_without_a_history_there_is_no_file(build, tmp_path):
    build(advantage="std", max_steps=4, save_strategy="steps", save_steps=4).train()
    folder = tmp_path / "run" / "checkpoint-4"
    assert folder.is_dir()
    assert not (folder / module.HISTORY_FILE).exists()


def test_evaluation_reads_the_history_and_does_not_write_to_it(build):
    trainer = build(advantage="smooth", max_steps=4, per_device_eval_batch_size=8)
    trainer.train()
    before = {prompt: list(values) for prompt, values in trainer._scoring.history.items()}
    logged = trainer.evaluate(trainer.train_dataset)
    assert math.isfinite(logged["eval_loss"])
    assert trainer._scoring.history == before


def test_resuming_without_a_history_says_so(build, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    build("run", advantage="std", **saving).train()
    resumed = build("again", advantage="smooth", **{**saving, "max_steps": 8})
    with pytest.raises(ValueError, match="reward_history.json: it was trained with another advantage"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
