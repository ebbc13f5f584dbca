"""`DGPOConfig(record=...)` on the real trainer: what is in the files is what was trained on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo import policy_loss
from dgpo.diagnostics import load
from dgpo.training import DGPOTrainer
from dgpo.training.recording import sum_pi_squared


@pytest.fixture
def recorded(build, tmp_path):
    """A run of 8 updates in 2 generations, two micro-batches each."""

    def recorded(**options):
        options = {"max_steps": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 8, **options}
        trainer = build(DGPOTrainer, record=str(tmp_path / "record"), **options)
        trainer.train()
        return trainer, load(tmp_path / "record")

    return recorded


@pytest.mark.parametrize("fused_loss", [True, False])
def test_the_logged_loss_can_be_computed_again(recorded, fused_loss):
    trainer, run = recorded(fused_loss=fused_loss, objective="maspo", aggregation="seq-mean-token-mean")
    assert run.updates == list(range(1, 9))
    assert [run.tokens(update).generation for update in run.updates] == [0] * 4 + [1] * 4
    logs = {row["step"]: row for row in run.metrics if "loss" in row}
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == [row["loss"] for row in logs.values()]
    moved = 0.0
    for update in run.updates:
        found = run.tokens(update)
        tokens = found.tokens
        out = policy_loss(
            tokens.logprob,
            tokens.old_logprob,
            tokens.advantage,
            tokens.mask,
            objective=trainer._objective,
            aggregation=trainer._aggregation,
            totals=found.totals,
        )
        row = logs[update]
        assert out.value.item() == pytest.approx(row["loss"], abs=2e-6)
        for name in ("fraction/inside", "weight/mean", "weight/max", "kl/old"):
            assert out.statistics[name].item() == pytest.approx(row[f"objective/{name}"], abs=1e-5), name
        assert tokens.entropy[tokens.mask].mean().item() == pytest.approx(row["entropy"], rel=1e-5)
        moved = max(moved, tokens.log_ratio.abs().max().item())
    assert moved > 0.1


def test_prompts_tokens_and_squares(recorded):
    _, run = recorded(record_sum_pi_squared=True, max_steps=1, learning_rate=0.0)
    found, tokenizer = run.tokens(1), AutoTokenizer.from_pretrained(run.folder / run.info["tokenizer"])
    tokens = found.tokens
    assert tokens.mask.shape == found.token_ids.shape
    assert len(tokenizer.decode(found.token_ids[0][tokens.mask[0]])) > 0
    assert len(found.group.unique()) <= 8
    # Σπ² of the distribution whose entropy is recorded beside it: exp(-H) <= Σπ² by Jensen
    assert (found.sum_pi_squared + 1e-6 >= (-tokens.entropy).exp())[tokens.mask].all()
    assert (found.sum_pi_squared <= 1)[tokens.mask].all()


def test_sum_pi_squared():
    torch.manual_seed(0)
    hidden, head, bias = torch.randn(3, 5, 8), torch.randn(11, 8), torch.randn(11)
    found = sum_pi_squared(hidden, head, bias, temperature=0.7, softcap=5.0, chunk=4)
    logits = hidden @ head.T + bias
    expected = (5 * (logits / 5).tanh() / 0.7).softmax(-1).square().sum(-1)
    torch.testing.assert_close(found, expected)


def test_run_json(recorded):
    trainer, run = recorded(max_steps=1)
    info = run.info
    assert info["schema"] == "dgpo.run/1"
    assert info["objective"] == {"name": "dgpo", **dataclasses.asdict(trainer._objective)}
    assert info["config"]["learning_rate"] == trainer.args.learning_rate
    assert info["updates_per_generation"] == 4
    assert info["data"]["rows"] == info["data"]["rows_hashed"] == 64
    assert len(info["data"]["sha256"]) == 64
    assert info["model"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert info["versions"]["torch"] == torch.__version__
    json.dumps(info, allow_nan=False)


def test_recording_changes_nothing(build, tmp_path):
    """The same parameters to the last bit."""
    ends = []
    for record in (None, str(tmp_path / "record")):
        trainer = build(DGPOTrainer, record=record, record_sum_pi_squared=record is not None, max_steps=4)
        trainer.train()
        ends.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_every_second_update(recorded):
    _, run = recorded(record_every=2)
    assert run.updates == [1, 3, 5, 7]


def test_the_token_that_ended_the_run_is_there(build, tmp_path, tiny_folder):
    """An infinity in the weights after two updates: the error names a token, and the file holds it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)

    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step >= 4:
            with torch.no_grad():
                model.get_output_embeddings().weight[3] = torch.inf
        return [float(len(text)) for text in completions]

    trainer = build(DGPOTrainer, model=model, reward=reward, record=str(tmp_path / "record"), max_steps=8)
    with pytest.raises(ValueError, match="at a valid position"):
        trainer.train()
    run = load(tmp_path / "record")
    assert run.updates == [1, 2, 3, 4, 5]
    assert not run.tokens(5).tokens.logprob.isfinite().all()
    assert run.tokens(4).tokens.logprob.isfinite().all()


def test_two_runs_do_not_mix(recorded, build, tmp_path):
    trainer, run = recorded(max_steps=1)
    with pytest.raises(ValueError, match="already holds a run"):
        build(DGPOTrainer, record=str(run.folder), max_steps=1).train()
    trainer.train()  # the same trainer may go on


def test_a_resumed_run_goes_on_in_the_same_folder(build, tmp_path):
    options = {"record": str(tmp_path / "record"), "save_strategy": "steps", "save_steps": 4}
    build(DGPOTrainer, max_steps=6, **options).train()
    trainer = build(DGPOTrainer, max_steps=8, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    run = load(tmp_path / "record")
    assert run.updates == list(range(1, 9))
    steps = [row["step"] for row in run.metrics if "loss" in row]
    assert steps == list(range(1, 9))
    assert [(row["event"], row["step"]) for row in run.metrics if "event" in row] == [
        ("begin", 0), ("end", 6), ("begin", 4), ("end", 8)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record_every": 0, "record": "x"}, "record_every = 0"),
        ({"record_limit_mb": 0, "record": "x"}, "record_limit_mb"),
        ({"record_sum_pi_squared": True}, "needs record"),
        ({"record_sum_pi_squared": True, "record": "x", "fused_loss": False}, "needs the fused loss"),
    ],
)
def test_bad_options(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(DGPOTrainer, **options)
