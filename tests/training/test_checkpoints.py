"""Checkpoints: whole or not there, found out where they are not, complete in what they hold, and of one run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_callback import TrainerState

from dgpo.training import DGPOTrainer, resumable
from dgpo.training.checkpoint_files import MANIFEST, checkpoints, damage
from dgpo.training.resumable import STAGING, CheckpointNotWritten
from dgpo.training.resuming import CheckpointError

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "steps_per_generation": 2}
STATES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "reward_history.json", "ref_model.pt"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Filled by the first test that needs it: checkpoint-2 and checkpoint-4 of a run."""
    return tmp_path_factory.mktemp("two") / "run"


@pytest.fixture
def trained(build, tmp_path, two):
    """A copy of them, and a trainer that may continue the run."""
    trainer = build(DGPOTrainer, **SAVING)
    if not two.exists():
        trainer.train()
        shutil.copytree(tmp_path / "run", two)
        return build(DGPOTrainer, **SAVING), tmp_path / "run"
    shutil.copytree(two, tmp_path / "run", dirs_exist_ok=True)
    return trainer, tmp_path / "run"


@pytest.fixture(scope="module")
def sample(tmp_path_factory, tiny_folder, digit_reward):
    """One checkpoint, of a run with as many states as there are, to be damaged in copies."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dgpo.tasks import Addition
    from dgpo.training import DGPOConfig

    folder = tmp_path_factory.mktemp("sample")
    config = DGPOConfig(
        output_dir=str(folder),
        advantage="smooth",
        beta=0.1,
        sync_ref_model=True,
        per_device_train_batch_size=4,
        num_generations=4,
        steps_per_generation=2,
        max_completion_length=4,
        max_steps=2,
        save_steps=2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    DGPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        digit_reward,
        config,
        train_dataset=Addition().dataset("train").select(range(16)),
        processing_class=AutoTokenizer.from_pretrained(tiny_folder),
    ).train()
    return folder / "checkpoint-2"


# --- damage --------------------------------------------------------------------------------------------------------

FILES = [
    *("config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"),
    *("tokenizer.json", "tokenizer_config.json", "trainer_state.json", "training_args.bin"),
    *("reward_history.json", "ref_model.pt"),
]
HARMS = {
    "cut to half": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


def test_the_sample_is_whole_and_its_list_is_complete(sample):
    assert damage(sample) is None
    assert sorted(path.name for path in sample.iterdir()) == sorted([*FILES, MANIFEST])
    assert sorted(json.loads((sample / MANIFEST).read_text())["files"]) == sorted(FILES)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(sample, tmp_path, name, harm):
    copy = Path(shutil.copytree(sample, tmp_path / sample.name))
    (copy / name).write_bytes(HARMS[harm]((sample / name).read_bytes()))
    found = damage(copy)
    assert found is not None
    assert found.startswith(name)
    # without the list, the file itself has to tell; what weights hold, and a last line feed, do not
    (copy / MANIFEST).unlink()
    line_feed = (sample / name).read_bytes().endswith(b"\n") and harm == "cut by a byte"
    if (name, harm) == ("model.safetensors", "zeros at the end") or line_feed:
        assert damage(copy) is None
    else:
        assert damage(copy).startswith(name)


@pytest.mark.parametrize("name", [name for name in FILES if name not in STATES])
def test_a_file_that_is_gone_is_named(sample, tmp_path, name):
    copy = Path(shutil.copytree(sample, tmp_path / sample.name))
    (copy / name).unlink()
    assert damage(copy) == f"{name} is missing"
    (copy / MANIFEST).unlink()
    expected = {
        "model.safetensors": "the weights of the model are missing",
        "trainer_state.json": "trainer_state.json is missing",
    }
    assert damage(copy) == expected.get(name)  # the others are not needed to continue


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_list(sample, tmp_path, harm):
    copy = Path(shutil.copytree(sample, tmp_path / sample.name))
    (copy / MANIFEST).write_bytes(HARMS[harm]((sample / MANIFEST).read_bytes()))
    assert damage(copy) == (None if harm == "cut by a byte" else f"{MANIFEST} is damaged")  # that is its line feed


def test_sharded_weights_without_the_list(sample, tmp_path):
    copy = Path(shutil.copytree(sample, tmp_path / sample.name, ignore=shutil.ignore_patterns(MANIFEST)))
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = list(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, those in shards.items():
        save_file({name: state[name] for name in those}, copy / file)
    where = {name: file for file, those in shards.items() for name in those}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert damage(copy) is None
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert damage(copy) == "model-00002-of-00002.safetensors is missing, which model.safetensors.index.json lists"


@pytest.mark.parametrize("content", ["[]", "{}", '{"global_step": 3}', "null"])
def test_a_state_that_is_not_of_this_update(sample, tmp_path, content):
    copy = Path(shutil.copytree(sample, tmp_path / sample.name, ignore=shutil.ignore_patterns(MANIFEST)))
    (copy / "trainer_state.json").write_text(content)
    assert damage(copy).startswith("trainer_state.json is ")


# --- writing -------------------------------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


STEPS = {
    "weights": (Trainer, "_save"),
    "optimiser": (Trainer, "_save_optimizer_and_scheduler"),
    "generators": (Trainer, "_save_rng_state"),
    "state": (TrainerState, "save_to_json"),
    "own state": (DGPOTrainer, "_save_own_state"),
    "list": (resumable, "seal"),
    "name": (Path, "rename"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_at_any_step_leaves_the_checkpoints_before_it(trained, monkeypatch, step):
    trainer, run = trained
    trainer.state.global_step = 5
    trainer._describe()
    trainer.create_optimizer_and_scheduler(5)
    owner, name = STEPS[step]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        with pytest.raises(CheckpointNotWritten, match=r"update 5 .*: No space left on device; .* is checkpoint-4"):
            trainer._save_checkpoint(trainer.model, None)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-4", "checkpoint-2"]
    assert not (run / STAGING).exists()
    assert trainer.find_checkpoint(True).checkpoint == str(run / "checkpoint-4")
    trainer._save_checkpoint(trainer.model, None)  # where there is room
    assert damage(run / "checkpoint-5") is None


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files")
@pytest.mark.parametrize("limit", [100_000, 200_000])
def test_a_file_that_the_system_refuses_to_write(build, tmp_path, limit):
    """Not simulated: weights are 147 kB, Adam's moments 309 kB."""
    import resource

    trainer = build(DGPOTrainer, **{**SAVING, "max_steps": 2})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointNotWritten, match="update 2 could not be written to .*; there is no checkpoint"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["README.md", "_run.lock", "log.jsonl"]


def test_what_a_killed_process_left_is_cleared(trained):
    trainer, run = trained
    left = run / STAGING
    shutil.copytree(run / "checkpoint-4", left / "checkpoint-6")
    (left / "checkpoint-6" / "trainer_state.json").unlink()
    (run / "checkpoint-4").rename(left / "replaced-checkpoint-4")  # killed between two renames
    trainer.args.max_steps = 6
    trainer.train(resume_from_checkpoint=True)
    assert not left.exists()
    assert [path.name for path in checkpoints(run)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    assert trainer.state.log_history[0]["step"] == 1


def test_a_checkpoint_is_written_again(trained):
    trainer, run = trained
    before = (run / "checkpoint-4" / "trainer_state.json").stat().st_ino
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert (run / "checkpoint-4" / "trainer_state.json").stat().st_ino != before
    assert [damage(checkpoint) for checkpoint in checkpoints(run)] == [None, None]


@pytest.mark.parametrize(("limit", "kept"), [(None, [6, 4, 2]), (1, [6]), (2, [6, 4])])
def test_rotation(trained, limit, kept):
    trainer, run = trained
    trainer.args.max_steps, trainer.args.save_total_limit = 6, limit
    trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints(run)] == [f"checkpoint-{step}" for step in kept]
    assert not (run / STAGING).exists()


def test_the_best_checkpoint_has_its_final_name(build, tmp_path, prompts, monkeypatch):
    """It is kept by the rotation, named in the state, and loaded at the end."""
    best = {**SAVING, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1}
    best |= {"load_best_model_at_end": True, "metric_for_best_model": "reward", "per_device_eval_batch_size": 4}
    trainer = build(DGPOTrainer, **best, trainer_options={"eval_dataset": prompts.select(range(1))})
    scores = iter([0.9, 0.5, 0.1, 0.0])
    monkeypatch.setattr(trainer, "_evaluate", lambda *args, **kwargs: {"eval_reward": next(scores)})
    trainer.train()
    run = tmp_path / "run"
    assert trainer.state.best_model_checkpoint == str(run / "checkpoint-2")
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]  # the last one goes when training ends
    loaded = load_file(run / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(trainer.model.state_dict()[name], value) for name, value in loaded.items())


def test_an_upload_reads_the_final_folder(build, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: seen.append((folder, damage(folder))))
    trainer = build(DGPOTrainer, **SAVING)
    trainer.args.push_to_hub = True
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)
    trainer.train()
    assert seen == [(str(tmp_path / "run" / f"checkpoint-{step}"), None) for step in (2, 4)]


def test_the_final_model_appears_file_by_file(trained, tmp_path, monkeypatch):
    trainer, run = trained
    trainer.save_model(str(run))
    assert not (run / STAGING).exists()
    expected = {"model.safetensors", "config.json", "tokenizer.json", "training_args.bin"}
    assert expected <= {path.name for path in run.iterdir()}
    before = (run / "model.safetensors").read_bytes()
    monkeypatch.setattr(Trainer, "_save", full)
    with pytest.raises(CheckpointNotWritten, match="the model could not be written to .*: No space left on device"):
        trainer.save_model(str(run))
    assert (run / "model.safetensors").read_bytes() == before


# --- resuming ------------------------------------------------------------------------------------------------------


def test_the_newest_whole_one_is_taken_and_the_others_are_named(trained, caplog):
    trainer, run = trained
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    (run / "checkpoint-notes").mkdir()
    found = trainer.find_checkpoint(True)
    assert found.checkpoint == str(run / "checkpoint-2")
    assert found.notes == ("checkpoint-4 is skipped: trainer_state.json is missing",)
    with caplog.at_level("WARNING", logger="dgpo.training.resumable"):
        trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is skipped: trainer_state.json is missing" in caplog.text
    assert trainer.state.global_step == 4
    assert damage(run / "checkpoint-4") is None


def test_nothing_whole_is_an_error_with_every_reason(trained):
    trainer, run = trained
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"")
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    message = (
        "no checkpoint in .* can be continued from: checkpoint-4: model.safetensors has 0 bytes of 146,952; "
        "checkpoint-2: it has no optimizer.pt; to start those afresh: --resume_allow_missing optimizer$"
    )
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="cannot continue from .*checkpoint-4': model.safetensors has 0 bytes"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_an_empty_folder(build):
    with pytest.raises(CheckpointError, match="no checkpoint in .* to continue from"):
        build(DGPOTrainer, **SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("file", "state"), [("optimizer.pt", "optimizer"), ("scheduler.pt", "scheduler"), ("rng_state.pth", "rng_state")]
)
def test_a_state_that_is_missing(trained, build, file, state):
    """An error, unless it is allowed to start afresh; then the others do not."""
    trainer, run = trained
    checkpoint = run / "checkpoint-2"
    (checkpoint / file).unlink()
    with pytest.raises(CheckpointError, match=f"it has no {file}; to start .*: --resume_allow_missing {state}$"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    loaded = build(DGPOTrainer, **{**SAVING, "max_steps": 3, "lr_scheduler_type": "linear"})
    loaded.args.resume_allow_missing = [state]
    loaded.args.resume_allow_changed = ["lr_scheduler_type"]
    seen = {}
    load = loaded._load_own_state

    def look(folder):
        load(folder)
        seen["optimizer"] = len(loaded.optimizer.state_dict()["state"]) > 0
        seen["scheduler"] = loaded.lr_scheduler.last_epoch
        seen["rate"] = loaded.optimizer.param_groups[0]["lr"]

    loaded._load_own_state = look
    loaded.train(resume_from_checkpoint=str(checkpoint))
    assert seen["optimizer"] == (state != "optimizer")
    assert seen["scheduler"] == (0 if state == "scheduler" else 2)
    assert seen["rate"] == 5e-3  # the saved schedule is constant


def test_checkpoints_with_the_model_only(build, tmp_path):
    build(DGPOTrainer, **SAVING, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="--resume_allow_missing optimizer scheduler rng_state$"):
        build(DGPOTrainer, **SAVING).train(resume_from_checkpoint=True)
    allowed = build(
        DGPOTrainer, **{**SAVING, "max_steps": 5}, resume_allow_missing=["optimizer", "scheduler", "rng_state"]
    )
    allowed.train(resume_from_checkpoint=True)
    assert allowed.state.global_step == 5


@pytest.mark.parametrize(
    ("options", "file", "state"),
    [
        ({"beta": 0.1, "sync_ref_model": True}, "ref_model.pt", "ref_model"),
        ({"advantage": "smooth"}, "reward_history.json", "reward_history"),
        (
            {"entropy_coef": 0.01, "use_adaptive_entropy": True},
            "entropy_ctrl_state.json",
            "entropy_controller",
        ),
    ],
)
def test_a_state_that_an_option_needs(build, tmp_path, options, file, state):
    build(DGPOTrainer, **{**SAVING, "max_steps": 2}, **options).train()
    (tmp_path / "run" / "checkpoint-2" / file).unlink()
    trainer = build(DGPOTrainer, **{**SAVING, "max_steps": 3}, **options)
    with pytest.raises(CheckpointError, match=f"{file}.*--resume_allow_missing {state}$"):
        trainer.train(resume_from_checkpoint=True)
    trainer.args.resume_allow_missing = [state]
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_a_scaler_that_is_missing(trained):
    """Half precision needs a GPU to train; what a checkpoint has to hold does not."""
    trainer, run = trained
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(CheckpointError, match=r"it has no scaler.pt.*--resume_allow_missing scaler$"):
        trainer.find_checkpoint(run / "checkpoint-4")


def test_another_number_of_ranks(trained):
    trainer, run = trained
    listed = json.loads((run / "checkpoint-4" / MANIFEST).read_text())
    listed["run"]["ranks"] = 2
    (run / "checkpoint-4" / MANIFEST).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="generator states are those of 2 ranks, and this run has 1"):
        trainer.find_checkpoint(run / "checkpoint-4")


@pytest.mark.parametrize("option", ["resume_allow_missing", "resume_allow_changed"])
def test_a_name_that_is_none(trained, option):
    trainer, _ = trained
    setattr(trainer.args, option, ["optimiser", "sede"][option.endswith("changed") :])
    with pytest.raises(CheckpointError, match=f"{option} names .*did you mean"):
        trainer.find_checkpoint(True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.3},
        {"advantage": "smooth"},
        {"dynamic_sampling": True, "max_num_gen_batches": 3},
        {"entropy_coef": 0.01, "use_adaptive_entropy": True, "entropy_coef_delta": 0.1},
    ],
    ids=["plain", "sync_ref_model", "smooth", "dynamic_sampling", "adaptive_entropy"],
)
def test_resumed_equals_uninterrupted_to_the_bit(build, tmp_path, prompts, options):
    """In the third pass through the data, whose order has to be the third, too: 4 prompts, 4 per generation."""
    steps = {**SAVING, "num_generations": 2, "max_completion_length": 3, "max_steps": 6}
    data = prompts.select(range(4))  # 2 updates a pass
    whole = build(DGPOTrainer, data=data, **steps, lr_scheduler_type="linear", **options)
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = build(DGPOTrainer, data=data, **steps, lr_scheduler_type="linear", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    keys = ("loss", "reward", "grad_norm", "kl", "entropy_coef")
    logs = [[row for row in trainer.state.log_history if "loss" in row] for trainer in (whole, resumed)]
    for before, after in zip(*logs, strict=True):
        assert [before.get(key) for key in keys] == [after.get(key) for key in keys]


# --- whose it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"objective": "grpo"}, 'objective.name: "dgpo" -> "grpo"'),
        ({"objective_kwargs": {"n": 2}}, "objective.n: 1 -> 2"),
        ({"seed": 8}, "seed: 7 -> 8"),
        ({"learning_rate": 1e-3}, "learning_rate: 0.005 -> 0.001"),
        ({"advantage": "std"}, 'advantage.name: null -> "std"'),
        ({"aggregation": "seq-mean-token-mean"}, "aggregation.name"),
        ({"per_device_train_batch_size": 8}, "completions_per_update: 4 -> 8"),
        ({"temperature": 0.7}, "temperature: 1.0 -> 0.7"),
    ],
)
def test_a_checkpoint_of_another_run(trained, build, options, difference):
    other = build(DGPOTrainer, **{**SAVING, **options})
    with pytest.raises(CheckpointError, match="belongs to another run") as raised:
        other.train(resume_from_checkpoint=True)
    assert difference in str(raised.value)
    names = str(raised.value).split("--resume_allow_changed ")[1].split()
    other.args.resume_allow_changed = names
    assert other.find_checkpoint(True).checkpoint.endswith("checkpoint-4")


def test_a_field_without_a_bound_is_saved_and_compared(build, tmp_path):
    options = {**SAVING, "save_steps": 1, "max_steps": 1, "objective": "dgpo:m=inf"}
    build(DGPOTrainer, **options).train()
    again = build(DGPOTrainer, **options)
    assert again.find_checkpoint(True).checkpoint.endswith("checkpoint-1")
    with pytest.raises(CheckpointError, match='objective.m: "inf" -> 2'):
        build(DGPOTrainer, **{**options, "objective": "dgpo:m=2"}).find_checkpoint(True)


def test_other_data_another_model_another_reward(trained, build, prompts, tiny_folder, tmp_path):
    from dgpo.rewards import make
    from dgpo.training.starter import character_tokenizer, tiny_model

    model = tiny_model(character_tokenizer(), hidden=32, layers=2, seed=1)
    model.save_pretrained(tmp_path / "other")
    model.config._name_or_path = str(tmp_path / "other")
    for changed, difference in (
        ({"data": prompts.select(range(1, 33))}, "data.rows: 64 -> 32"),
        ({"model": model}, "model: "),
        ({"reward": make("soft_overlong_reward", max_completion_length=6, buffer=3)}, "rewards: "),
    ):
        with pytest.raises(CheckpointError, match="belongs to another run") as raised:
            build(DGPOTrainer, **SAVING, **changed).find_checkpoint(True)
        assert difference in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 12},
        {"logging_steps": 5, "save_steps": 1, "save_total_limit": 1, "fused_loss": False},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
        # the same objective, with TRL's option for it
        {"importance_sampling_level": "token"},
    ],
)
def test_what_may_change(trained, build, options):
    assert build(DGPOTrainer, **{**SAVING, **options}).find_checkpoint(True).notes == ()


def test_an_older_checkpoint_is_not_compared_and_that_is_said(trained, build):
    _, run = trained
    (run / "checkpoint-4" / MANIFEST).unlink()
    (note,) = build(DGPOTrainer, **SAVING, objective="grpo").find_checkpoint(True).notes
    assert note.startswith("checkpoint-4 does not say which run wrote it")


def test_starting_anew_beside_checkpoints_is_said(trained, caplog):
    trainer, _ = trained
    with caplog.at_level("WARNING", logger="dgpo.training.resumable"):
        trainer.train()
    assert "holds checkpoints of an earlier run (checkpoint-4) and this one starts from scratch" in caplog.text
