"""A process for every trainer that is compared: its own checkout of this repository, its own peak memory.

The parent asks with a line of JSON, `{"case": ..., "round": ...}`, and the process answers with one. A process that is
not asked waits, so that processes take turns and a slow phase of the machine hits all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Worker:
    """One process; close it, or use it as a context manager.

    Args:
        script: answers requests (see `serve`) when it is called with `arguments`.
        arguments: of the script.
        checkout: the folder whose `src/` it imports.
        threads: of the process.
    """

    def __init__(self, script: Path, arguments: list[str], checkout: Path = ROOT, threads: int = 1) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(checkout / "src"),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), *arguments],
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
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            code = self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the process of {request} ended with {code}:\n{self._log.read()[-3000:]}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until there are no more. What the work itself prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


def status(name: str) -> int:
    """A line of /proc/self/status, such as VmRSS or VmHWM, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def reset_peak() -> None:
    """Let VmHWM start anew from VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


def checkout(commit: str, folder: Path) -> Path:
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
