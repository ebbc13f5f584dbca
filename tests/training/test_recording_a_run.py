"""`DGPOConfig(record=...)` on the real trainer: what is in the files is what was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo import policy_loss
from dgpo.diagnostics import Recorder, load
from dgpo.fused.head import Head
from dgpo.redaction import without_secrets
from dgpo.runs.earlier import recorded_updates
from dgpo.training import DGPOTrainer
from dgpo.training.recording import _git, data_of, sum_pi_squared


@pytest.fixture
def recorded(build, tmp_path):
    """A run of 8 updates in 2 generations, two micro-batches each."""

    def run(folder, **options):
        options = {"max_steps": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 8, **options}
        trainer = build(DGPOTrainer, record=str(folder), **options)
        trainer.train()
        return trainer, load(folder)

    def recorded(**options):
        return run(tmp_path / "record", **options)

    recorded.again = lambda **options: run(tmp_path / "again", **options)
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
            objective=trainer._factors.spec.objective,
            aggregation=trainer._factors.spec.aggregation,
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
    # Σπ² of the distribution whose entropy is recorded beside it: exp(-H) <= Σπ² by Jensen
    assert (found.sum_pi_squared + 1e-6 >= (-tokens.entropy).exp())[tokens.mask].all()
    assert (found.sum_pi_squared <= 1)[tokens.mask].all()


def test_sum_pi_squared():
    torch.manual_seed(0)
    hidden, head, bias = torch.randn(3, 5, 8), torch.randn(11, 8), torch.randn(11)
    found = sum_pi_squared(hidden, head, bias, Head(temperature=0.7, softcap=5.0), chunk=4)
    logits = hidden @ head.T + bias
    expected = (5 * (logits / 5).tanh() / 0.7).softmax(-1).square().sum(-1)
    torch.testing.assert_close(found, expected)


def test_run_json(recorded):
    trainer, run = recorded(max_steps=1)
    info = run.info
    assert info["schema"] == "dgpo.run/1"
    assert info["objective"] == {"name": "dgpo", **dataclasses.asdict(trainer._factors.spec.objective)}
    assert info["config"]["learning_rate"] == trainer.args.learning_rate
    assert info["updates_per_generation"] == 4
    assert info["data"]["rows"] == info["data"]["rows_hashed"] == 64
    assert len(info["data"]["sha256"]) == 64
    assert info["model"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    # a build for CUDA from an index has no +cu132 in its metadata
    assert info["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    json.dumps(info, allow_nan=False)


def test_recording_changes_nothing(build, tmp_path):
    """The same parameters to the last bit."""
    ends = []
    for record in (None, str(tmp_path / "record")):
        trainer = build(DGPOTrainer, record=record, record_sum_pi_squared=record is not None, max_steps=4)
        trainer.train()
        ends.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_the_model_wrote(recorded):
    """The completions of two prompts per generation are those of the token files, with their rewards."""
    trainer, run = recorded(record_completions=2, learning_rate=5e-3)
    tokenizer = AutoTokenizer.from_pretrained(run.folder / run.info["tokenizer"])
    found = run.completions
    assert sorted({one.update for one in found}) == [1, 5]
    assert len({(one.update, one.prompt_id) for one in found}) == 4
    assert len(found) == 16
    prompts = {row["prompt"]: row["answer"] for row in trainer.train_dataset}
    trained = [
        (tuple(part.token_ids[row][mask].tolist()), part.tokens.advantage[row][mask])
        for part in run.recorded(range(1, 9))
        for row, mask in enumerate(part.tokens.mask)
    ]
    matched = 0
    for one in found:
        assert one.completion == tokenizer.decode(one.token_ids)
        assert prompts[one.prompt] == one.gold
        text = tokenizer.decode(one.token_ids, skip_special_tokens=True)
        digits = sum(character.isdigit() for character in text) / max(len(text), 1)
        assert one.rewards == {"digits": pytest.approx(digits)}
        assert one.ended == ("stop" if one.token_ids[-1] == tokenizer.eos_token_id else "limit")
        # by equal ids; other completions may have the same text and another advantage
        same = [advantage for ids, advantage in trained if ids == one.token_ids]
        if one.advantage != 0:
            matched += any(torch.allclose(a, torch.tensor(one.advantage), atol=1e-6) for a in same)
    assert matched == sum(one.advantage != 0 for one in found) > 0


def test_no_completions_where_none_are_wanted(recorded):
    _, run = recorded(record_completions=0, max_steps=1)
    assert run.completions == []
    assert not (run.folder / "completions.jsonl").exists()


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


def test_prompts_are_told_apart(build, tmp_path, prompts):
    """4 prompts of 4 completions each; the same prompt in two micro-batches is one group."""
    trainer = build(
        DGPOTrainer,
        record=str(tmp_path / "record"),
        max_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        steps_per_generation=2,
    )
    seen = []
    trainer._recording.recorder.add = lambda tokens, **more: seen.append(more["group"])
    trainer.train()
    groups = torch.cat(seen)
    assert len(seen) == 2
    assert len(groups) > len(groups.unique())
    assert len(groups.unique()) <= 4
    assert max((groups == group).sum() for group in groups.unique()) <= 4


def test_squares_are_at_the_temperature_of_the_loss(recorded):
    """At temperature 0.5 the distribution is sharper: Σπ² is that of the entropies recorded beside it."""
    _, run = recorded(record_sum_pi_squared=True, max_steps=1, temperature=0.5)
    found = run.tokens(1)
    mask = found.tokens.mask
    # a distribution with Σπ² = s has an entropy of at most that of s's two-level one, and at least -log s
    assert (found.tokens.entropy[mask] + 1e-5 >= -found.sum_pi_squared[mask].log()).all()
    _, flat = recorded.again(record_sum_pi_squared=True, max_steps=1, temperature=1.0)
    assert flat.tokens(1).sum_pi_squared[flat.tokens(1).tokens.mask].mean() < found.sum_pi_squared[mask].mean()


def test_an_evaluation_is_not_recorded(build, tmp_path, prompts):
    options = {"trainer_options": {"eval_dataset": prompts.select(range(4))}, "per_device_eval_batch_size": 4}
    trainer = build(
        DGPOTrainer, record=str(tmp_path / "record"), max_steps=2, eval_strategy="steps", eval_steps=1, **options
    )
    trainer.evaluate()  # before there is a run to belong to
    trainer.train()
    run = load(tmp_path / "record")
    assert run.updates == [1, 2]
    assert run.metrics[0]["event"] == "begin"
    assert all(run.tokens(update).tokens.mask.shape[0] <= 4 for update in run.updates)


def test_a_limit_that_one_generation_exceeds(recorded, caplog):
    with caplog.at_level("WARNING", logger="dgpo.training.recording"):
        _, run = recorded(record_limit_mb=0.001)
    assert [record.message for record in caplog.records if "takes more than" in record.message]
    assert run.updates == [1]
    assert len([row for row in run.metrics if "loss" in row]) == 8


def test_another_run_is_not_continued_here(build, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    build(DGPOTrainer, record=str(tmp_path / "record"), **options).train()
    build(DGPOTrainer, record=str(tmp_path / "other"), **options).train()  # its checkpoint takes the other's place
    trainer = build(DGPOTrainer, record=str(tmp_path / "record"), max_steps=8)
    with pytest.raises(ValueError, match="holds another run than the checkpoint at update 4"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_a_resumed_run_forgets_the_way_it_did_not_take(build, tmp_path, caplog):
    options = {"record": str(tmp_path / "record"), "save_strategy": "steps", "save_steps": 4}
    build(DGPOTrainer, max_steps=8, **options).train()
    with caplog.at_level("WARNING", logger="dgpo.training.recording"):
        allowed = {"resume_allow_changed": ["objective"]}
        trainer = build(DGPOTrainer, max_steps=6, objective="grpo", **options, **allowed)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert "continues from update 4 with another configuration: " in caplog.text
    run = load(tmp_path / "record")
    assert run.updates == [1, 2, 3, 4, 5, 6]
    assert run.info["objective"]["name"] == "grpo"
    begin = next(row for row in run.metrics if row.get("event") == "begin" and row["step"] == 4)
    assert begin["changed"]["objective"] == ["dgpo", "grpo"]


def test_what_a_configuration_may_hold(build, tmp_path):
    """Infinities come back; secrets do not get in."""
    trainer = build(
        DGPOTrainer,
        record=str(tmp_path / "record"),
        max_steps=1,
        objective_kwargs={"m": math.inf},
        hub_token="hf_" + "s" * 20,
        model_init_kwargs=None,
    )
    trainer.train()
    run = load(tmp_path / "record")
    assert run.info["objective"]["m"] == math.inf
    assert "ssssssss" not in (tmp_path / "record" / "run.json").read_text()
    shown = without_secrets(
        {
            "model_init_kwargs": {"token": "abc", "revision": "main"},
            "vllm_server_base_url": "http://user:pw@host:8000/x",
            "eos_token": "<eos>",
            "api_key": "k",
            "lists": ["hf_" + "a" * 30],
            "num_tokens": 3,
        }
    )
    assert shown == {
        "model_init_kwargs": {"token": "***", "revision": "main"},
        "vllm_server_base_url": "http://***@host:8000/x",
        "eos_token": "<eos>",
        "api_key": "***",
        "lists": ["***"],
        "num_tokens": 3,
    }


def test_the_hash_of_the_data_is_of_its_content():
    rows = [{"prompt": "1+1="}, {"prompt": "2+2="}]
    found = data_of(Dataset.from_list(rows))
    digest = hashlib.sha256(b"".join(json.dumps(row).encode() + b"\n" for row in rows)).hexdigest()
    assert found == {"rows": 2, "sha256": digest, "rows_hashed": 2}
    nested = [{"prompt": [{"role": "user", "content": str(i)}], "n": i / 3, "none": None} for i in range(250)]
    assert data_of(Dataset.from_list(nested)) == data_of(nested)
    views = Dataset.from_list(nested).select(range(200)).shuffle(seed=0), Dataset.from_list(nested).with_format("numpy")
    assert [data_of(one)["sha256"] for one in views] == [data_of(list(one))["sha256"] for one in views]
    assert data_of([{"a": object()}])["sha256"] == data_of([{"a": object()}])["sha256"]
    assert data_of(iter(rows)) == {"rows": None, "sha256": None, "rows_hashed": 0}


def test_the_commit_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _git() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    clean = _git()
    (tmp_path / "file").write_text("")
    assert len(clean["commit"]) == 40
    assert (clean["dirty"], _git()["dirty"]) == (False, True)


def test_ranks_record_an_update_together_or_not_at_all(build, tmp_path, monkeypatch):
    """Σπ² is one more forward pass, which no rank may run alone."""
    trainer = build(DGPOTrainer, record=str(tmp_path / "record"))
    recording, others = trainer._recording, [[1, 1, 0]]
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda mine: torch.cat([mine, torch.tensor(others)]))
    assert recording._agree(1)
    others[:] = [[1, 2, 0]]  # the other has thinned
    assert not recording._agree(5)
    assert recording._agree(9)
    others[:] = [[0, 2, 0]]  # the other's disk is full
    assert not recording._agree(9)
    others[:] = [[1, 2, 0]]
    assert not recording._agree(17)


def test_an_unwritable_folder_is_one_warning(build, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trainer = build(DGPOTrainer, record=str(tmp_path / "file" / "record"), max_steps=2)
    with caplog.at_level("WARNING", logger="dgpo.training.recording"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert len([record for record in caplog.records if "training continues" in record.message]) == 1


def test_two_runs_do_not_mix(recorded, build, tmp_path):
    trainer, run = recorded(max_steps=1)
    trainer.train()  # the same trainer may go on
    ways_out = r"already holds a run of 1 update; replace it with .*record_overwrite=True\), or give another folder"
    # at construction, where no checkpoint is that a training could continue from
    with pytest.raises(ValueError, match=ways_out):
        build(DGPOTrainer, record=str(run.folder), max_steps=1)


def test_with_a_checkpoint_training_is_refused_unless_it_continues(build, tmp_path):
    options = {"record": str(tmp_path / "record"), "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    build(DGPOTrainer, **options).train()
    with pytest.raises(ValueError, match=r"a run of 1 update; continue it with .*train\(resume_from_checkpoint=True\)"):
        build(DGPOTrainer, **options).train()
    build(DGPOTrainer, **{**options, "max_steps": 2}).train(resume_from_checkpoint=True)
    assert load(tmp_path / "record").updates == [1, 2]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_replaced_if_asked_and_nothing_else_is_deleted(recorded, build):
    _, run = recorded(max_steps=2, seed=1)
    for mine in ("notes.txt", "tokens/notes.txt", "tokens/update-1.parquet.bak"):
        (run.folder / mine).write_text("mine")
    recorded(max_steps=1, record_overwrite=True)
    again = load(run.folder)
    assert (again.updates, again.info["config"]["seed"]) == ([1], 7)
    assert [row["step"] for row in again.metrics] == [0, 1, 1, 1]
    assert {row.update for row in again.completions} == {1}
    assert sum(content == b"mine" for content in files_of(run.folder).values()) == 3


def test_a_run_that_failed_before_its_first_update_can_be_repeated(build, tmp_path, digit_reward):
    def fails(completions, **kwargs):
        raise RuntimeError("mine")

    options = {"record": str(tmp_path / "record"), "max_steps": 1}
    with pytest.raises(RuntimeError, match="mine"):
        build(DGPOTrainer, reward=fails, **options).train()
    assert recorded_updates(tmp_path / "record") == 0
    assert (tmp_path / "record" / "run.json").exists()
    build(DGPOTrainer, **options).train()
    run = load(tmp_path / "record")
    assert run.updates == [1]
    assert [row["event"] for row in run.metrics if "event" in row] == ["begin", "end"]


def test_tokens_that_another_loop_recorded_are_not_lost(recorded, build, tmp_path):
    """A folder without `run.json`, and one whose log alone has an update."""
    _, run = recorded(max_steps=1)
    (run.folder / "run.json").unlink()
    before = files_of(run.folder)
    with pytest.raises(ValueError, match="already holds a run of 1 update"):
        build(DGPOTrainer, record=str(run.folder))
    assert files_of(run.folder) == before
    for path in (run.folder / "tokens").iterdir():
        path.unlink()
    assert recorded_updates(run.folder) == 1
    (run.folder / "metrics.jsonl").write_bytes(b"\xff")
    assert recorded_updates(run.folder) == 1


def test_a_resumed_run_goes_on_in_the_same_folder(build, tmp_path):
    options = {"record": str(tmp_path / "record"), "save_strategy": "steps", "save_steps": 4}
    build(DGPOTrainer, max_steps=6, **options).train()
    trainer = build(DGPOTrainer, max_steps=8, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    run = load(tmp_path / "record")
    assert run.updates == list(range(1, 9))
    places = [(found.generation, found.index) for found in run.recorded()]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    steps = [row["step"] for row in run.metrics if "loss" in row]
    assert steps == list(range(1, 9))
    assert [(row["event"], row["step"]) for row in run.metrics if "event" in row] == [
        ("begin", 0), ("end", 6), ("begin", 4), ("end", 8)
    ]  # fmt: skip


def test_a_generation_that_was_cut_begins_anew(build, tmp_path):
    """TRL keeps no completions in a checkpoint: after it they are sampled again, and the ratio is 1 again."""
    options = {"record": str(tmp_path / "record"), "save_strategy": "steps", "save_steps": 6}
    build(DGPOTrainer, max_steps=6, **options).train()
    trainer = build(DGPOTrainer, max_steps=12, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    places, away = {}, {}
    for found in load(tmp_path / "record").recorded():
        places[found.update] = (found.generation, found.index)
        away[found.update] = found.tokens.log_ratio.abs().max().item()
    assert places == {
        **{1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (0, 3), 5: (1, 0), 6: (1, 1)},
        **{7: (2, 0), 8: (2, 1), 9: (2, 2), 10: (2, 3), 11: (3, 0), 12: (3, 1)},
    }
    assert {update for update, (_, index) in places.items() if index == 0} == {u for u, far in away.items() if far == 0}
    # and once more: no generation is counted twice
    recorder = Recorder(tmp_path / "record", updates_per_generation=4)
    recorder.begin(11)
    assert [recorder.generation(update) for update in (12, 15, 16)] == [4, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record_every": 0, "record": "x"}, "record_every = 0"),
        ({"record_completions": -1, "record": "x"}, "record_completions = -1"),
        ({"record_limit_mb": 0, "record": "x"}, "record_limit_mb"),
        ({"record_sum_pi_squared": True}, "needs record"),
        ({"record_sum_pi_squared": True, "record": "x", "fused_loss": False}, "needs the fused loss"),
    ],
)
def test_bad_options(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(DGPOTrainer, **options)
