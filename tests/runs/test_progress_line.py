"""The line that `dgpo train` prints about an update: as it looks, and read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dgpo.runs.progress_line import evaluation_line, progress_line, read_progress_line
from dgpo.runs.reading import read_log

LOGS = {
    "loss": 0.1,
    "reward": 0.3123,
    "entropy": 0.8412,
    "objective/kl/old": 0.0012345,
    "completions/mean_length": 143.2,
    "grad_norm": 0.2131,
}


def test_it_fits_a_terminal() -> None:
    line = progress_line(120, 2000, LOGS, 3.214)
    assert line == " 120/2000  reward 0.312  entropy 0.841  KL 1.2e-03  len 143  grad 0.213  3.21 s"
    assert len(line) <= 80


@pytest.mark.parametrize(
    ("changed", "seconds", "expected"),
    [
        ({}, 3.214, {}),
        ({"reward": -0.25, "grad_norm": 1e-05}, None, {"reward": -0.25, "grad_norm": 1e-5, "step_time": None}),
        ({"reward": None, "entropy": math.nan}, 120.0, {"reward": None, "entropy": None, "step_time": 120.0}),
        ({"grad_norm": math.inf, "kl": 0.5}, 0.01, {"grad_norm": math.inf, "kl": 0.5, "step_time": 0.01}),
    ],
)
def test_it_is_read_back(changed: dict[str, Any], seconds: float | None, expected: dict[str, Any]) -> None:
    """With the digits that it shows; a number that is not there, or not a number, is a dash and is left out."""
    line = progress_line(7, 12, LOGS | changed, seconds)
    assert line is not None
    usual = {"reward": 0.312, "entropy": 0.841, "completions/mean_length": 143.0, "grad_norm": 0.213, "step_time": 3.21}
    if "kl" not in changed:
        usual["objective/kl/old"] = 0.0012
    there = {name: value for name, value in (usual | expected).items() if value is not None}
    assert read_progress_line(line) == {"step": 7, **there}


def test_the_summary_of_a_run_leaves_out_what_it_does_not_have() -> None:
    """Elsewhere a dash keeps the columns aligned."""
    logs = {"reward": 0.5, "completions/mean_length": 99.96}
    assert progress_line(3, 3, {**logs, "train_runtime": 1.0}, None) == "3/3  reward 0.500  len 100"
    assert progress_line(3, 3, logs, None) == "3/3  reward 0.500  entropy     -  KL       -  len 100  grad     -"


@pytest.mark.parametrize(("length", "shown"), [(3.46, "3.5"), (99.9, "99.9"), (99.96, "100"), (143.2, "143")])
def test_short_lengths_have_a_decimal(length: float, shown: str) -> None:
    line = progress_line(3, 3, {"reward": 0.5, "completions/mean_length": length, "train_runtime": 1.0}, None)
    assert line == f"3/3  reward 0.500  len {shown}"
    assert read_progress_line(line) == {"step": 3, "reward": 0.5, "completions/mean_length": float(shown)}


def test_updates_that_log_nothing_of_it_have_no_line() -> None:
    assert progress_line(1, 2, {"eval_reward": 0.5}, 1.0) is None
    assert evaluation_line(1, 2, LOGS) is None


def test_the_line_of_an_evaluation() -> None:
    logs = {"eval/gcd/avg@4": 0.5, "eval/gcd/avg@4_se": 0.02, "eval/gcd/truncated": 0.1, "eval_reward": 0.25}
    line = evaluation_line(3, 20, logs)
    assert line == " 3/20  eval/gcd/avg@4 0.500 ±0.020  eval_reward 0.250"
    assert read_progress_line(line) == {"step": 3, "eval/gcd/avg@4": 0.5, "eval_reward": 0.25}


@pytest.mark.parametrize(
    "text",
    [
        " 25%|██▌       | 1/4 [00:00<00:02,  1.29it/s]",
        "2/4 evaluate it on 500 held-out sums",
        "1/2  loss 3.2  4 s",
        "3/2  reward 1.0  3 s",
        "3/4  reward good  3 s",
        "",
    ],
)
def test_other_text_is_none_of_these_lines(text: str) -> None:
    assert read_progress_line(text) is None


def test_the_output_of_a_run_is_a_log(tmp_path: Path) -> None:
    """With what is printed around it, such as the bar that shares the terminal."""
    output = ["objective  dgpo, token-mean, advantage by scale_rewards = group, no KL term"]
    for step in (1, 2, 3):
        output.append(f" {25 * step}%|██▌       | {step}/4 [00:00<00:02,  1.29it/s]\r{' ' * 60}\r")
        output[-1] += progress_line(step, 4, LOGS | {"reward": step / 10}, 2.0) or ""
    (tmp_path / "log.txt").write_text("\n".join([*output, "done: 3 updates; model saved in out", ""]))
    lines = read_log(tmp_path / "log.txt").lines
    assert [(line["step"], line["reward"], line["step_time"]) for line in lines] == [
        (1, 0.1, 2.0),
        (2, 0.2, 2.0),
        (3, 0.3, 2.0),
    ]
