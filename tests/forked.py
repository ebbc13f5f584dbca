"""Runs a script in a process of its own that has imported already what the tests have: torch, transformers and TRL.

A new Python takes six seconds of CPU time to import them, which is more than most scripts take. What a user starts (the
command, torchrun, a signal that it gets) is tested in new processes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn


def run_script(script: Path, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python script *words` with what it prints; forked where that is safe, which it is not on macOS."""
    command = [sys.executable, str(script), *map(str, words)]
    if sys.platform != "linux":
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        arguments = (command[1:], stdout.fileno(), stderr.fileno())
        process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        for one in (stdout, stderr):
            one.seek(0)
        return subprocess.CompletedProcess(command, process.exitcode, stdout.read(), stderr.read())


def _run(argv: list[str], stdout: int, stderr: int) -> NoReturn:
    # below Python too, because libraries write there; pytest's own streams are left to it
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
    sys.exit(0)
