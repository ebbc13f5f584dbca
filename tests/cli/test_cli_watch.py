"""`dgpo watch`, and which paths after `--eval` are runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from dgpo.cli.errors import UserError
from dgpo.cli.report import separated


def test_a_run_behind_the_evaluations_is_a_run(tmp_path):
    run, output, before, missing = (tmp_path / name for name in ("run", "out", "before", "missing"))
    for folder in (run, output / "record", before):
        folder.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    (output / "record" / "run.json").write_text("{}")
    (before / "results.json").write_text("{}")
    names = [str(path) for path in (run, output, before, missing)]
    assert separated([], [names[2], names[0], names[1]]) == ([names[0], names[1]], [names[2]])
    # what is neither is refused as an evaluation
    assert separated([names[0]], [names[2], names[3]]) == ([names[0]], [names[2], names[3]])
    with pytest.raises(UserError, match="no RUN was given"):
        separated([], [names[2]])


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--every", "0.1", "x"], "--every 0.1"), (["--port", "70000", "x"], "--port 70000"), ([], "no RUN was given")],
)
def test_watch_refuses(dgpo, words, why):
    done = dgpo("watch", *words)
    assert done.code == 2
    assert why in done.err


def test_watch_serves_until_it_is_interrupted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    command = [sys.executable, "-m", "dgpo", "watch", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        line = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert '<section id="curves"' in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
