"""An objective from a file outside the package, through every command: trained, resumed, replayed, drawn, looked at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PATH = "my_package.my_module:MyObjective"
REWARD = ["--rewards", "my_package.rewards:spread"]


def forget() -> None:
    """As in a new process: what a command imported is not known to the next one."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture
def trained(dgpo: Callable[..., Any], quick: list[str], output: Path, my_package: Path) -> Path:
    """A run of `dgpo train` with MyObjective, given in a YAML file in the working directory."""
    Path("run.yaml").write_text(f"objective: {PATH}\nobjective_kwargs: {{cap: 1.01}}\nrecord: {output}/record\n")
    (my_package / "rewards.py").write_text(
        "def spread(completions, **kwargs):\n    return [float(sum(map(ord, text)) % 7) for text in completions]\n"
    )
    saving = [*REWARD, "--save_strategy", "steps", "--save_steps", 2]
    done = dgpo("train", "--config", "run.yaml", "--task", "addition", *quick, *saving)
    assert done.code == 0, done.err
    forget()
    return output


def test_it_trains_and_is_recorded_by_import_path(
    trained: Path, dgpo: Callable[..., Any], quick: list[str], my_package: Path
) -> None:
    info = json.loads((trained / "record" / "run.json").read_text())
    assert info["objective"] == {"name": PATH, "cap": 1.01, "n": 1}
    rows = [json.loads(line) for line in (trained / "record" / "metrics.jsonl").read_text().splitlines()]
    largest = [row["objective/weight/max"] for row in rows if "objective/weight/max" in row]
    assert largest
    assert max(largest) <= 1.01 + 1e-6
    card = (trained / "README.md").read_text()
    assert f"`{PATH}`: cap = 1.01, n = 1" in card
    assert "A paper of a user" in card
    # the same objective in another spelling resumes, another field does not
    go_on = ["train", "--task", "addition", *quick, *REWARD, "--save_strategy", "steps", "--save_steps", 2, "--resume"]
    again = dgpo(*go_on, "--objective", "my_package.my_module.MyObjective:cap=1.01", "--max_steps", 6)
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1].startswith("done: 6 updates")
    dgpo(*go_on, "--objective", f"{PATH}:cap=1.02", "--max_steps", 8).one_error("objective", "1.02")


def test_a_base_that_changed_is_noticed_when_the_run_resumes(
    trained: Path, dgpo: Callable[..., Any], quick: list[str], my_package: Path
) -> None:
    """A run is compared by what its file and bases come to, not by the file."""
    Path("child.yaml").write_text("base: run.yaml\n")
    go_on = ["train", "--config", "child.yaml", "--task", "addition", *quick, *REWARD, "--resume", "--max_steps", 6]
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("1.01", "1.02"))
    dgpo(*go_on).one_error("belongs to another run", "objective.cap: 1.01 -> 1.02")
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("1.02", "1.01"))
    again = dgpo(*go_on)
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1].startswith("done: 6 updates")


def test_a_recording_is_read_without_importing_what_it_names(trained: Path, dgpo: Callable[..., Any]) -> None:
    record = trained / "record"
    found = dgpo("replay", record, "--objectives", "grpo", "is")
    assert found.code == 0, found.err
    said = f"{PATH}, is not registered here: no row is marked as its own. The import path of a recording is not"
    assert said in " ".join(found.out.split())
    assert f"--objectives all {PATH} imports it" in found.out
    for command in ("report", "doctor"):
        said = " ".join(dgpo(command, record).out.split())
        assert f"{PATH}, is not known here" in said
        assert f"is not imported automatically; --objective {PATH} imports it" in said
    assert (
        f"{PATH} (not registered where this page was written; dgpo report --objective {PATH}"
        in (record / "report.html").read_text()
    )
    assert dgpo("plot", "weights", record, "--out", trained / "weights.svg").code == 0
    assert dgpo("doctor", record).code in (0, 1)
    assert not [name for name in sys.modules if name.startswith("my_package")]


def test_it_is_replayed_and_drawn_where_the_user_names_it(trained: Path, dgpo: Callable[..., Any]) -> None:
    record = trained / "record"
    found = dgpo("replay", record, "--objectives", "grpo", PATH)
    assert found.code == 0, found.err
    rows = {row["label"]: row for row in json.loads((record / "replay.json").read_text())["rows"]}
    assert set(rows) == {"grpo", PATH, f"{PATH}:cap=1.01"}
    assert [label for label, row in rows.items() if row["own"]] == [f"{PATH}:cap=1.01"]
    assert rows[f"{PATH}:cap=1.01"]["weight_max"] <= 1.01 + 1e-6
    forget()
    written = dgpo("report", record, "--objective", PATH)
    assert (written.code, len(written.out.splitlines())) == (0, 1), "no hint"
    page = (record / "report.html").read_text()
    assert f"{PATH}:cap=1.01" in page
    assert "(not registered where" not in page
    forget()
    drawn = dgpo("plot", "weights", record, "--objectives", "grpo", PATH, "--out", trained / "weights.svg")
    assert drawn.code == 0, drawn.err
    assert "MyObjective" in (trained / "weights.svg").read_text()
    forget()
    looked = dgpo("doctor", record, "--objective", PATH, "--json")
    assert looked.code in (0, 1), looked.err


def test_other_commands_and_errors(dgpo: Callable[..., Any], quick: list[str], my_package: Path, output: Path) -> None:
    described = dgpo("objectives", f"{PATH}:cap=3")
    assert described.code == 0, described.err
    assert "w = min(r, cap)" in described.out
    assert "With these fields: MyObjective(cap=3, n=1)" in described.out
    plan = dgpo("train", "--task", "addition", *quick, "--objective", f"{PATH}:cap=3", "--dry_run")
    assert plan.code == 0, plan.err
    assert "MyObjective(cap=3, n=1)" in plan.out
    printed = dgpo("verl-overrides", "--objective", PATH, "--cap", 3)
    assert f"actor_rollout_ref.actor.policy_loss.loss_mode=dgpo:{PATH}" in printed.out.splitlines()
    train = ["train", "--task", "addition", *quick, "--objective"]
    dgpo(*train, "my_package.other:X").one_error("there is no module 'my_package.other'")
    dgpo(*train, "my_package.my_module:Other").one_error("has no 'Other'")
    dgpo(*train, "my_package.my_module:Properties").one_error("does not inherit from dgpo.objectives.Objective")
    dgpo(*train, f"{PATH}:capp=3").one_error("has no field 'capp', did you mean 'cap'?")
    dgpo("doctor", output, "--objective", "my_package.other:X").one_error("there is no module")
