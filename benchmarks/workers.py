"""A process for every trainer that is compared: its own checkout of this repository, its own peak memory.

The parent asks with a line of JSON, `{"case": ..., "round": ...}`, and the process answers with one. A process that is
not asked waits, so that processes take turns and a slow phase of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER = "answer: "


class Worker:
    """One process; close it, or use it as a context manager.

    Args:
        script: answers requests (see `serve`) when it is called with `arguments`.
        arguments: of the script.
        checkout: the folder whose `src/` it imports.
        python: the interpreter, of an environment of its own if need be.
    """

    def __init__(self, script: Path, arguments: list[str], checkout: Path = ROOT, python: str = sys.executable) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(checkout / "src"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """What the process answers.

        Raises:
            RuntimeError: it ended instead; the message has the end of its output.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            # what an import prints comes before
            answer = next((line for line in self._process.stdout if line.startswith(ANSWER)), "")
        except BrokenPipeError:
            pass
        if not answer:
            code = self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the process of {request} ended with {code}:\n{self._log.read()[-3000:]}")
        found: dict[str, Any] = json.loads(answer.removeprefix(ANSWER))
        return found

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until there are no more. What the work itself prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(ANSWER + json.dumps(answer(json.loads(line))), file=out, flush=True)


def status(name: str) -> int:
    """A line of /proc/self/status, such as VmRSS or VmHWM, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def reset_peak() -> None:
    """Let VmHWM start anew from VmRSS, after memory that is free has been given back."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


BEFORE = "85b1cffbed9d"
"""The last commit before updates were made fast on responses of different lengths."""


def add_before(parser: argparse.ArgumentParser) -> None:
    """The flag that names the checkout to compare with."""
    parser.add_argument("--before", type=Path, metavar="FOLDER", help=f"a checkout; default: commit {BEFORE}")


@contextmanager
def checkout_of(folder: Path | None) -> Iterator[tuple[Path, str]]:
    """A checkout and its commit: of a folder, or of `BEFORE` in a temporary one."""
    if folder is not None:
        yield folder.resolve(), commit_of(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        yield unpack(BEFORE, Path(made)), BEFORE


def unpack(commit: str, folder: Path) -> Path:
    """`src/` of an earlier commit, in a folder.

    Raises:
        RuntimeError: this copy of the repository does not have the commit.
    """
    found = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "src"], capture_output=True, check=False)
    if found.returncode:
        raise RuntimeError(
            f"commit {commit} is not in the history at {ROOT}: {found.stderr.decode().strip()}; "
            "name a checkout of it with --before FOLDER, or leave its trainer out with --trainers"
        )
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def commit_of(folder: Path) -> str:
    """The commit that a checkout is at, with "+" where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "src") else "")
