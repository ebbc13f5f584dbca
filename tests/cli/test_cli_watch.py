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
from dgpo.report.comparison import is_comparison


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
    # so are logs, and the folder of a trainer; an evaluation that is not finished is none
    trainer, half = tmp_path / "trainer", tmp_path / "half"
    state = trainer / "checkpoint-10" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"log_history": []}')
    half.mkdir()
    for name in ("run.json", "generations.jsonl"):
        (half / name).write_text("{}\n")
    assert separated([], [names[2], str(half), str(state), str(trainer)]) == (
        [str(state), str(trainer)],
        [names[2], str(half)],
    )
    results = str(before / "results.json")
    assert separated([names[0]], [results]) == ([names[0]], [results])


def test_a_summary_of_something_else_is_no_comparison(tmp_path):
    for name, text in (("demo", '{"before": {}}'), ("compared", '{"schema": "dgpo.comparison/0"}'), ("damaged", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    assert [is_comparison(tmp_path / name) for name in ("demo", "compared", "damaged", "missing")] == [
        False,
        True,
        True,
        False,
    ]


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
