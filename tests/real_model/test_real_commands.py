"""The commands on a real model, as a newcomer runs them: train, eval, doctor, replay, report, a server."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_chats import END, ROOT, greedy, user

from dgpo.cli.main import run as dgpo
from dgpo.runs.run import load

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

BENCHMARKS = ROOT.parent / "shared" / "benchmarks"
UPDATES = 2
LIMIT = 12

USUAL = [
    r"\s*$",
    r".*(%\||examples/s\]|examples \[|it/s\]|s/it\]|completion/s)",  # progress bars
    r"(objective|schedule|output)  ",  # what runs
    rf"\s*\d/{UPDATES}  (reward|eval/)",  # a line per update, and one per evaluation
    r"\[.*\] \[WARNING\] \[real_accelerator\.py:.*Setting accelerator to CPU",  # DeepSpeed's, where it is installed
    rf"done: {UPDATES} updates; model saved in trained$",
]
"""The lines that `dgpo train` may print."""


SHORTER = """
def shorter(completions, **columns):
    return [-float(len(messages[0]["content"])) for messages in completions]
"""
"""A reward that differs within every group."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data: products, as a file of questions and answers."""
    folder = tmp_path_factory.mktemp("work")
    problems = [
        {"prompt": f"What is {a} * {b}? Reply with the number only.", "answer": str(a * b)}
        for a, b in [(2, 3), (3, 3), (5, 2), (10, 2), (4, 2), (2, 6)]
    ]
    for name, rows in (("train", problems[:4]), ("test", problems[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trained(work: Path, folder: Path, dgpo_command: Any) -> Any:
    """`dgpo train` for two updates, in bf16, recorded, with a problem of GSM8K at the end where that is at hand."""
    benchmarks = []
    if (BENCHMARKS / "gsm8k_test.jsonl").is_file():
        options = {"limit": 1, "samples": 2, "max_new_tokens": 8, "data_dir": str(BENCHMARKS)}
        benchmarks = ["--eval_benchmarks", "gsm8k", "--eval_benchmark_kwargs", json.dumps(options)]
    settings = {
        "model_name_or_path": folder,
        "dataset": "train.jsonl",
        "chat": "true",
        "bf16": "true",
        "use_cpu": "true",
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "steps_per_generation": 2,
        "max_completion_length": LIMIT,
        "learning_rate": "1e-5",
        "max_steps": UPDATES,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": "trained",
        "record": "trained/record",
    }
    (work / "lengths.py").write_text(SHORTER)
    flags = ["--rewards", "answer_reward", "lengths.shorter"]
    flags += [word for name, value in settings.items() for word in (f"--{name}", value)]
    return dgpo_command("train", *flags, *benchmarks, cwd=work)


def test_training_prints_nothing_that_a_user_need_not_see(trained: Any) -> None:
    unusual = [line for line in trained.lines() if not any(re.match(kind, line) for kind in USUAL)]
    assert unusual == []


def test_the_recording_has_the_text_of_the_completions(trained: Any, work: Path, tokenizer: Any) -> None:
    run = load(work / "trained" / "record")
    assert run.damaged == []
    assert run.updates == list(range(1, UPDATES + 1))
    responses = 0
    for part in run.recorded():
        for ids, mask in zip(part.token_ids, part.tokens.mask, strict=True):
            text = tokenizer.decode(ids[mask])
            assert "<|" not in text.removesuffix(END)
            # it ends with its end token, or at the limit
            assert text.endswith(END) or mask.sum() == LIMIT
            responses += 1
    assert responses > 1
    assert [row["step"] for row in run.metrics if "loss" in row] == run.updates


def test_gsm8k_during_training(trained: Any, work: Path) -> None:
    if not BENCHMARKS.is_dir():
        pytest.skip(f"no folder {BENCHMARKS} with the problems of GSM8K")
    results = json.loads((work / "trained" / "eval" / str(UPDATES) / "results.json").read_text())
    assert results["benchmarks"]["gsm8k"]["problems"] == 1
    assert results["prompt"]["chat"] is True
    lines = (work / "trained" / "eval" / str(UPDATES) / "generations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2
    assert all(row["tokens"] == 8 and row["truncated"] for row in rows)  # word problems take more
    (logged,) = [row for row in load(work / "trained" / "record").metrics if "eval/gsm8k/avg@2" in row]
    assert logged["eval/gsm8k/truncated"] == 1.0


def test_the_trained_folder_evaluates(
    trained: Any, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    flags = ["--dataset", "test.jsonl", "--chat", "--samples", "2", "--max_new_tokens", "8", "--out", "evaluated"]
    assert dgpo(["eval", "--model", "trained", *flags]) == 0
    capsys.readouterr()
    results = json.loads((work / "evaluated" / "results.json").read_text())
    (benchmark,) = results["benchmarks"].values()
    assert set(benchmark["estimates"]) >= {"greedy", "avg@2", "pass@1", "pass@2"}
    assert benchmark["rates"]["truncated"] < 1


def test_doctor_replay_and_report(
    trained: Any, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    record = "trained/record"
    assert dgpo(["doctor", record]) in (0, 1)
    said = capsys.readouterr().out
    assert "Traceback" not in said
    assert dgpo(["replay", record, "--objectives", "grpo", "maspo"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("dgpo", "grpo", "maspo"))
    assert dgpo(["report", record, "--out", "report.html"]) == 0
    page = (work / "report.html").read_text(encoding="utf-8")
    # the tokens with the largest weights, as text of this tokenizer
    assert "no tokenizer was saved" not in page
    assert "the tokenizer in" not in page  # cannot be read
    assert not re.search(r">#\d+<", page)  # a token without its text


def test_the_model_card_shows_how_the_model_was_asked(trained: Any, work: Path) -> None:
    """Its example is a prompt of the data, and runs as it stands."""
    card = (work / "trained" / "README.md").read_text(encoding="utf-8")
    assert 'question = "What is 2 * 3? Reply with the number only."' in card
    assert '[{"role": "user", "content": question}]' in card
    assert "| data | `train.jsonl`, 4 prompts |" in card


# --- a server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`transformers serve` on loopback, of the model, told to sample; address and folder."""
    served = tmp_path / "served"
    served.mkdir()
    for file in folder.iterdir():
        if file.name != "generation_config.json":
            (served / file.name).symlink_to(file)
    saved = json.loads((folder / "generation_config.json").read_text())
    (served / "generation_config.json").write_text(json.dumps({**saved, "do_sample": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # /v1/models lists the cache, which must be there
    (tmp_path / "cache").mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    command = [Path(sys.executable).with_name("transformers"), "serve", served, "--device", "cpu"]
    with (tmp_path / "server.log").open("w") as log:
        running = subprocess.Popen(
            [*map(str, command), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(600):
            assert running.poll() is None, (tmp_path / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", served
    finally:
        running.terminate()
        running.wait(timeout=60)


def test_eval_through_transformers_serve(
    server: tuple[str, Path],
    work: Path,
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Greedy completions are those of this process; samples are samples."""
    url, served = server
    monkeypatch.chdir(work)
    # this server says "length" of a completion whose end token is the last that the limit allows: far from the limit
    flags = ["--dataset", "test.jsonl", "--chat", "--samples", "4", "--max_new_tokens", "12", "--batch_size", "1"]
    out = ["--out", str(tmp_path / "evaluated")]
    assert dgpo(["eval", "--backend", "openai", "--base_url", url, "--model", str(served), *flags, *out]) == 0
    capsys.readouterr()
    rows = [json.loads(line) for line in (tmp_path / "evaluated" / "generations.jsonl").read_text().splitlines()]
    here = greedy(
        model, tokenizer, [user(row["prompt"][0]["content"]) for row in rows if row["kind"] == "greedy"], budget=12
    )
    theirs = [row for row in rows if row["kind"] == "greedy"]
    assert [row["completion"] for row in theirs] == [completion.text for completion in here]
    assert [row["truncated"] for row in theirs] == [completion.truncated for completion in here]
    samples = [row["completion"] for row in rows if row["kind"] == "sample"]
    assert len(samples) == 8
    assert len(set(samples)) > 2
    assert not any("<|" in text for text in samples)
