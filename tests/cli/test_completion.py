"""`dgpo completion`: the script of every shell, and what bash completes with it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo.cli.main import COMMANDS
from dgpo.objectives import OBJECTIVES

pytest.importorskip("shtab")

ASK = """
source ./script
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=(); _shtab_dgpo; echo "${COMPREPLY[*]}"; }
ask dgpo ""
ask dgpo train --objective_k
ask dgpo train --objective dg
ask dgpo eval --task gc
ask dgpo plot wei
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_the_script_knows_every_command(dgpo: Callable[..., Any], shell: str, tmp_path: Path) -> None:
    done = dgpo("completion", shell)
    assert (done.code, done.err) == (0, "")
    for word in (*COMMANDS, "objective_kwargs", *OBJECTIVES):
        assert word in done.out
    if shell != "bash" or shutil.which("bash") is None:
        return
    (tmp_path / "script").write_text(done.out)
    asked = subprocess.run(["bash", "-c", ASK], cwd=tmp_path, capture_output=True, text=True, check=True)
    commands, flag, objective, task, kind = asked.stdout.splitlines()
    assert set(commands.split()) >= set(COMMANDS)
    assert flag.split()[0] == "--objective_kwargs"
    assert (objective, task, kind) == ("dgpo", "gcd", "weights")


def test_another_shell(dgpo: Callable[..., Any]) -> None:
    dgpo("completion", "powershell").one_error("invalid choice: 'powershell'", "bash")
