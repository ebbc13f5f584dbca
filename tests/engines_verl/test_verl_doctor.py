"""`dgpo doctor --engine verl`, asked of new workers of a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from dgpo import __version__
from dgpo.cli.doctor import run
from dgpo.cli.errors import UserError
from dgpo.engines.verl_doctor import Worker


def test_the_entry_point_is_installed() -> None:
    [ours] = [point for point in entry_points(group="verl.plugins") if point.name == "dgpo"]
    assert ours.value == "dgpo.engines.verl"


def test_a_healthy_cluster(cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--engine", "verl"]) == 0
    first, said = capsys.readouterr().out.split("\n", 1)
    assert first == f"cluster {cluster.get_runtime_context().gcs_address}"
    assert said.startswith("ok ")
    assert f"dgpo {__version__}" in said
    assert "2 of 2 nodes see the plug-in" in said
    assert cluster.is_initialized()


DOCTOR = "import sys; from dgpo.cli.main import run; sys.exit(run(sys.argv[1:]))"


def doctor(*flags: str, variable: str = "") -> subprocess.CompletedProcess[str]:
    """`dgpo doctor --engine verl` in a process of its own."""
    command = [sys.executable, "-c", DOCTOR, "doctor", "--engine", "verl", *flags]
    environment = {**os.environ, "RAY_ADDRESS": variable}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_another_process_joins_the_cluster(cluster: Any) -> None:
    done = doctor("--ray-address", cluster.get_runtime_context().gcs_address)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 nodes see the plug-in" in done.stdout


def test_without_a_cluster_a_new_one_says_so() -> None:
    done = doctor(variable="local")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no cluster found: a local one was started")
    assert "1 of 1 nodes see the plug-in" in done.stdout


def test_plug_ins_are_switched_off(cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--engine", "verl", "--env", "VERL_USE_EXTERNAL_PLUGINS=none"]) == 1
    said = capsys.readouterr().out
    assert "VERL_USE_EXTERNAL_PLUGINS=none excludes the plug-in" in said
    assert "0 of 2 nodes" in said


def test_a_plug_in_that_fails_while_it_is_loaded(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package of another version shadows ours in the worker, and its plug-in raises: verl says nothing of it."""
    package = tmp_path / "dgpo" / "engines"
    package.mkdir(parents=True)
    (tmp_path / "dgpo" / "__init__.py").write_text("__version__ = '0.0.1'\n")
    (package / "__init__.py").write_text("")
    (package / "verl.py").write_text("from math import tau, no_such_name\n")
    assert run(["--engine", "verl", "--env", f"PYTHONPATH={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "loading dgpo.engines.verl fails, which verl does not show" in said
    assert "from math import tau, no_such_name" in said
    assert "ImportError: cannot import name 'no_such_name'" in said
    assert f"dgpo 0.0.1 differs from {__version__} here" in said


def test_verl_cannot_be_imported(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "verl.py").write_text("raise RuntimeError('half installed')\n")
    assert run(["--engine", "verl", "--env", f"PYTHONPATH={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "verl cannot be imported by" in said
    assert "RuntimeError: half installed" in said


def test_what_is_said_of_the_other_cases() -> None:
    """Those that would need a second installation."""
    healthy: dict[str, Any] = {"node": "n", "python": "/p", "verl": "0.9.1", "dgpo": __version__, "entry_point": "e"}
    assert Worker(**healthy).problems() == []
    [said] = Worker(**{**healthy, "entry_point": None, "missing": ("dgpo:dgpo",)}).problems()
    assert "no entry point 'dgpo'" in said
    [said] = Worker(**{**healthy, "switch": "other, another", "missing": ("dgpo:dgpo",)}).problems()
    assert "VERL_USE_EXTERNAL_PLUGINS=other, another excludes the plug-in" in said
    assert Worker(**{**healthy, "switch": "other, dgpo"}).problems() == []
    [said] = Worker(**{**healthy, "dgpo": None, "errors": {"dgpo": "No module named 'dgpo'"}}).problems()
    assert "dgpo cannot be imported by /p" in said
    [said] = Worker(**{**healthy, "missing": ("dgpo:dgpo", "dgpo:is")}).problems()
    assert "2 losses are missing, the first is 'dgpo:dgpo'" in said
    assert Worker(**healthy).notes() == []
    [said] = Worker(**{**healthy, "queue": False}).notes()
    assert "no package transfer_queue" in said
    assert Worker(**{**healthy, "queue": False}).problems() == []
    [said] = Worker(node="n", errors={"worker": "GetTimeoutError: 180 s"}).problems()
    assert said == "no worker answered: GetTimeoutError: 180 s"


def test_wrong_input() -> None:
    with pytest.raises(UserError, match="'X' is not of the form NAME=VALUE"):
        run(["--engine", "verl", "--env", "X"])
    with pytest.raises(UserError, match="expected one or several runs, or --engine"):
        run([])


def test_no_cluster_at_the_address() -> None:
    done = doctor("--ray-address", "127.0.0.1:1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "127.0.0.1:1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("flags", [(), ("--ray-address", "auto")])
def test_no_cluster_at_the_address_of_the_variable(flags: tuple[str, ...]) -> None:
    done = doctor(*flags, variable="127.0.0.1:1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "'127.0.0.1:1' of the variable RAY_ADDRESS" in done.stderr.splitlines()[-1]
