"""Logs of other people's runs, from public repositories: what stands in each of them is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dgpo.runs.reading import read_log
from dgpo.runs.run import load_any

LOGS = Path(__file__).parents[2].parent / "shared" / "training_logs"

TRL = {"reward", "reward_std", "length", "loss", "grad_norm", "learning_rate", "epoch"}
TRL_NOW = TRL | {"length_max", "length_min", "length_terminated", "truncated", "tokens_seen", "clipped"}
BOUNDS = {"clipped_low", "clipped_high"}
VERL = {
    *("reward", "reward_max", "reward_min", "advantage_mean", "advantage_max", "advantage_min", "truncated", "length"),
    *("length_max", "length_min", "loss", "grad_norm", "learning_rate", "entropy", "mean_log_ratio", "clipped"),
}


class About(NamedTuple):
    """What an engineer sees in a file.

    Attributes:
        points: of the reward, or else of the loss.
        steps: the first and the last.
        quantities: those that the log has.
        functions: number of reward functions.
        remarks: parts of what is said about the reading, in order.
    """

    points: int
    steps: tuple[int, int]
    quantities: set[str]
    functions: int = 0
    remarks: tuple[str, ...] = ()


BAR = ("the progress bar counts 1 per line",)
ABOUT: dict[str, About] = {
    "01.trainer_state.json": About(25, (10, 250), TRL | {"kl_reference"}, 5),
    "02.trainer_state.json": About(50, (10, 500), TRL_NOW | BOUNDS | {"zero_std", "entropy"}, 2),
    "03.trainer_state.json": About(300, (2, 600), TRL_NOW | BOUNDS | {"kl_reference"}, 1),
    "04.trainer_state.json": About(10, (5, 50), TRL | {"kl_reference"}, 2),
    "05.console.log": About(93, (1, 93), TRL | {"kl_reference"}, 1, BAR),
    "06.console.log": About(2400, (1, 2400), TRL_NOW | BOUNDS | {"zero_std", "entropy"}, 1, BAR),
    "07.verl.log": About(700, (1, 700), VERL | {"epoch"}),
    "08.verl.log": About(9, (1, 9), VERL | {"kl_reference", "kl_coef"}),
    "09.custom.jsonl": About(140, (0, 1390), {"reward_std", "loss", "learning_rate", "kl_reference", "epoch"}),
    "10.custom.jsonl": About(
        38,
        (1, 201),
        {"skipped", "loss", "learning_rate", "kl_reference"},
        remarks=("start again 3 times: left out 9 lines",),
    ),
    "11.console.log": About(200, (1, 200), TRL | {"kl_reference"}, 1, BAR),
}


@pytest.fixture(params=ABOUT)
def name(request: pytest.FixtureRequest) -> str:
    if not (LOGS / request.param).is_file():
        pytest.skip("needs the folder shared/training_logs beside the repository")
    return str(request.param)


def test_everything_in_a_log_is_read(name: str) -> None:
    about, run = ABOUT[name], load_any(LOGS / name)
    log = run.log
    assert set(log.names) == about.quantities
    series = log["reward"] if "reward" in about.quantities else log["loss"]
    assert len(series) == about.points
    assert (log.rows[0][0], log.rows[-1][0]) == about.steps
    assert len(log.reward_functions) == about.functions
    assert len(run.remarks) == len(about.remarks)
    assert all(part in remark for part, remark in zip(about.remarks, run.remarks, strict=True))
    assert all(log[quantity].unreadable == log[quantity].broken == () for quantity in log.names)


SETTINGS: dict[str, dict[str, Any]] = {
    "01.trainer_state.json": {"max_steps": 250, "logging_steps": 10, "per_device_train_batch_size": 8},
    "03.trainer_state.json": {"max_steps": 672, "logging_steps": 2, "per_device_train_batch_size": 1},
}


def test_settings_that_a_log_tells(name: str) -> None:
    config = load_any(LOGS / name).info.get("config", {})
    expected = SETTINGS.get(name, {})
    assert {key: config.get(key) for key in expected} == expected


def test_names_that_could_be_mapped() -> None:
    if not LOGS.is_dir():
        pytest.skip("needs the folder shared/training_logs beside the repository")
    own = load_any(LOGS / "09.custom.jsonl").log
    assert own.offers == {"reward": ("reward_mean",), "clipped": ("clip_frac",)}
    mapped = load_any(LOGS / "09.custom.jsonl", {"reward": "reward_mean", "clipped": "clip_frac"}).log
    assert (len(mapped["reward"]), len(mapped["clipped"])) == (140, 140)
    # evaluations lie between the lines of training, and are none
    assert [step for step, row in own.rows if "eval/ndcg@10" in row] == [200, 400, 600, 800, 1000, 1200]
    assert "ndcg@10" not in own.keys


def test_every_prefix_of_a_log_is_its_beginning(name: str, tmp_path: Path) -> None:
    """What is read of a part is what is read of the whole, but for a last line that is cut."""
    reading = read_log(LOGS / name)
    data, part = (LOGS / name).read_bytes(), tmp_path / name
    for quarter in (1, 2, 3):
        part.write_bytes(data[: len(data) * quarter // 4])
        lines = read_log(part).lines
        assert len(lines) > len(reading.lines) * quarter // 4 - len(reading.lines) // 10 - 2
        assert lines[:-1] == reading.lines[: len(lines) - 1]
