"""What a run shows: three lines before a run, and a short line per log; all metrics in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback

from dgpo.runs.reading import read_log
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.terminal import TerminalLog, opening

LOGS = {"reward": 0.5, "grad_norm": 0.25, "objective/weight/max": 1.5}


def config(tmp_path: Path, **options: Any) -> DGPOConfig:
    return DGPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        use_cpu=True,
        bf16=False,
        report_to=[],
        **options,
    )


def test_three_lines_say_what_runs(tmp_path: Path) -> None:
    assert opening(config(tmp_path, objective="dgpo:n=2"), 2000) == [
        "objective  dgpo:n=2, token-mean, advantage by scale_rewards = group, no KL term",
        "schedule   2,000 updates, 4 per generation of 32 completions (8 prompts x 4), at most 8 x 5 tokens each",
        f"output     {tmp_path}/out; all metrics: {tmp_path}/out/log.jsonl",
    ]


def test_the_lines_follow_the_settings(tmp_path: Path) -> None:
    changed = config(
        tmp_path,
        objective="grpo",
        aggregation="seq-mean-token-mean",
        advantage="leave_one_out",
        beta=0.04,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        record=str(tmp_path / "record"),
    )
    objective, schedule, output = opening(changed, 10)
    assert objective == "objective  grpo, seq-mean-token-mean, advantage leave_one_out, KL coefficient 0.04"
    assert schedule == (
        "schedule   10 updates, 2 per generation of 32 completions (8 prompts x 4), at most 16 x 5 tokens each"
    )
    assert output.endswith(f"all metrics: {tmp_path}/record/metrics.jsonl")


def run(log: TerminalLog, steps: range) -> None:
    """The events of a run, as the trainer gives them."""
    state, control = TrainerState(max_steps=4, global_step=steps.start, is_world_process_zero=True), TrainerControl()
    log.on_train_begin(None, state, control)
    for _ in steps:
        log.on_step_begin(None, state, control)
        state.global_step += 1
        log.on_step_end(None, state, control)
        log.on_log(None, state, control, logs=dict(LOGS))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_short_line_per_log_and_everything_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TerminalLog(config(tmp_path))
    run(log, range(2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[3:]] == ["1/4", "2/4"]
    assert all("reward 0.500" in line and "weight" not in line and len(line) <= 80 for line in lines[3:])
    file = tmp_path / "out" / "log.jsonl"
    assert rows(file) == [{"event": "begin", "step": 0}, {**LOGS, "step": 1}, {**LOGS, "step": 2}]
    # a resumed run goes on in the file, and readers drop what it repeats; likewise for a run from scratch
    run(TerminalLog(config(tmp_path)), range(1, 3))
    assert [line["step"] for line in read_log(file).lines if "reward" in line] == [1, 2, 3]
    run(TerminalLog(config(tmp_path)), range(1))
    assert [line["step"] for line in read_log(file).lines if "reward" in line] == [1]
    assert len(rows(file)) == 8


def test_a_recorded_run_has_no_second_log(tmp_path: Path) -> None:
    run(TerminalLog(config(tmp_path, record=str(tmp_path / "record"))), range(2))
    assert not (tmp_path / "out").exists()


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, state = TerminalLog(config(tmp_path)), TrainerState(max_steps=4, is_world_process_zero=False)
    log.on_train_begin(None, state, TrainerControl())
    log.on_log(None, state, TrainerControl(), logs=dict(LOGS))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_a_disk_error_is_said_once_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file where the folder would be")
    run(TerminalLog(config(tmp_path)), range(3))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "log.jsonl cannot be written" in caplog.text
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_trainer_prints_lines_and_no_dictionary(build: Any, tmp_path: Path, capsys: Any) -> None:
    """A progress bar stays a bar; what a user added himself stays, and so does a notebook's table."""
    for bars in (False, True):
        trainer = build(DGPOTrainer, max_steps=2, disable_tqdm=not bars)
        assert [type(one).__name__ for one in trainer.callback_handler.callbacks if "Bar" in type(one).__name__] == (
            ["_Bar"] if bars else []
        )
        trainer.train()
        out, err = capsys.readouterr()
        assert [line.split("  ")[0] for line in out.splitlines() if "entropy" in line] == ["1/2", "2/2"]
        assert "{" not in out
        assert ("2/2 [" in err) is bars
    last = [row for row in rows(tmp_path / "run" / "log.jsonl") if row.get("step") == 2]
    assert any("objective/weight/max" in row for row in last)
    own = PrinterCallback()
    kept = build(DGPOTrainer, trainer_options={"callbacks": [own]}).callback_handler.callbacks
    assert [one for one in kept if isinstance(one, PrinterCallback)] == [own]
    trainer.remove_callback(TerminalLog)
    before = list(trainer.callback_handler.callbacks)
    TerminalLog.install(trainer, trainer.args)
    assert trainer.callback_handler.callbacks == before
