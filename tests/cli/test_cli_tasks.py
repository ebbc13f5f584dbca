"""`dgpo tasks`: the listing, one task, local files that are checked, and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo import tasks
from dgpo.tasks.gym_table import GRADED, REFUSED

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def test_the_listing_names_every_task_and_its_sizes(dgpo: Callable[..., Any]) -> None:
    done = dgpo("tasks")
    assert done.code == 0
    lines = done.out.splitlines()
    for name in (*tasks.TASKS, *tasks.BENCHMARKS):
        assert sum(f" {name} " in line for line in lines) == 1, name
    assert "7,473" in next(line for line in lines if " gsm8k " in line)
    assert "reasoning_gym:NAME" in done.out


def test_the_listing_reads_no_data_and_imports_no_data_sets() -> None:
    code = (
        "import sys\nfrom dgpo.cli import tasks\ntasks.run([])\n"
        "loaded = {'datasets', 'transformers', 'trl', 'reasoning_gym'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_a_procedural_task(dgpo: Callable[..., Any]) -> None:
    done = dgpo("tasks", "gcd")
    assert done.code == 0
    for part in ("procedural", "7,252 problems", "gcd(111,30)=", "'{problem}'", "max_new_tokens"):
        assert part in done.out
    assert tasks.make("gcd").provenance("test")["sha256"] in done.out


@pytest.mark.parametrize("name", tasks.BENCHMARKS)
def test_a_benchmark_without_its_data(dgpo: Callable[..., Any], name: str) -> None:
    done = dgpo("tasks", name)
    assert done.code == 0
    about = tasks.BENCHMARKS[name]
    for content in about.content.values():
        for part in (content.sha256, content.file, content.hub.name, str(content.hub.revision), f"{content.rows:,}"):
            assert part in done.out
    for id, wrong in about.known_wrong.items():
        assert f"{id}: {wrong.gold!r} should be {wrong.should_be!r}" in done.out
    assert "example" not in done.out


def test_a_benchmark_with_its_data_is_checked(dgpo: Callable[..., Any], tmp_path: Path) -> None:
    if not (FOLDER / "aime24.jsonl").is_file():
        pytest.skip("needs the folder shared/benchmarks beside the repository")
    done = dgpo("tasks", "aime24", "--data-dir", FOLDER)
    assert done.code == 0
    assert "checked: 30 problems, content as expected" in done.out
    assert "aime24-60: 'Every morning Aya" in done.out
    rows = (FOLDER / "aime24.jsonl").read_text(encoding="utf-8").splitlines()
    broken = json.loads(rows[0]) | {"answer": "205"}
    (tmp_path / "aime24.jsonl").write_text("\n".join([json.dumps(broken), *rows[1:]]), encoding="utf-8")
    dgpo("tasks", "aime24", "--data-dir", tmp_path).one_error("aime24", "SHA-256", "expected")


def test_reasoning_gym(dgpo: Callable[..., Any]) -> None:
    done = dgpo("tasks", "reasoning_gym")
    assert done.code == 0
    for name in (*GRADED, *REFUSED):
        assert name in done.out
    pytest.importorskip("reasoning_gym")
    one = dgpo("tasks", "reasoning_gym:gcd,max_value=20,train_size=50")
    assert one.code == 0
    assert "dropped as repeats" in one.out
    assert "gcd-0: 'Find the Greatest Common Divisor" in one.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["gdc"], ["unknown task 'gdc'", "did you mean 'gcd'"]),
        (["reasoning_gym:jugs"], ["reasoning_gym:jugs cannot be graded exactly", "several answers are right"]),
        (["amc23", "--data-dir", "/nowhere"], ["no file 'amc23.jsonl' for amc23 in the folder '/nowhere'"]),
        (["gcd", "--data-dir", "x"], ["--data-dir is for one benchmark", "got the task 'gcd'"]),
        (["--data-dir", "x"], ["--data-dir is for one benchmark", "got the task None"]),
    ],
)
def test_errors(dgpo: Callable[..., Any], words: list[str], parts: list[str]) -> None:
    dgpo("tasks", *words).one_error(*parts)


def test_a_starter_is_for_procedural_tasks(dgpo: Callable[..., Any], tmp_path: Path) -> None:
    dgpo("starter", "--task", "aime24", "--out", tmp_path).one_error(
        "task = 'aime24' is a benchmark task; expected one of addition, reverse, plus_minus, gcd"
    )


@pytest.mark.parametrize("task", ["reverse", "plus_minus", "gcd"])
def test_a_starter_of_every_procedural_task(dgpo: Callable[..., Any], tmp_path: Path, task: str) -> None:
    """A few steps are not enough for any of them, and that is said: the path is what is tested."""
    dgpo("starter", "--task", task, "--out", tmp_path, "--max_steps", "2").one_error(
        f"validation split of {task!r} after 2 steps; expected at least 45%"
    )


def test_columns_of_a_data_set(dgpo: Callable[..., Any], tmp_path: Path) -> None:
    """Flags reach the loader; what does not fit is said before anything is loaded."""
    from dgpo.cli.data import DataArguments

    file = tmp_path / "data.jsonl"
    file.write_text('{"question": "1+1=", "final": 2}\n{"question": "2+2=", "final": 4}\n')
    args = DataArguments(dataset=str(file), columns=["prompt=question", "answer=final"])
    assert args.load_dataset("train").to_list() == [
        {"prompt": "1+1=", "answer": "2"},
        {"prompt": "2+2=", "answer": "4"},
    ]
    for words in (["question"], ["prompt="], ["prompt=a", "prompt=b"]):
        with pytest.raises(ValueError, match="expected field=column, each field once"):
            DataArguments(dataset=str(file), columns=words).load_dataset("train")
    with pytest.raises(ValueError, match="columns = .* has no meaning with task = 'gcd'"):
        DataArguments(task="gcd", columns=["prompt=question"]).make_task()
    with pytest.raises(ValueError, match="data_dir = 'x' has no meaning with a data set"):
        DataArguments(dataset=str(file), data_dir="x").make_task()


def test_a_task_with_local_files() -> None:
    from dgpo.cli.data import DataArguments

    task = DataArguments(task="gsm8k", data_dir="somewhere").make_task()
    assert task == tasks.make("gsm8k", data_dir="somewhere")
    prompt = DataArguments(task="gsm8k", chat=True).make_task()
    assert prompt is not None
    assert prompt.prompt.chat is True
    with pytest.raises(ValueError, match="chat = True has no meaning with task = 'gcd'"):
        DataArguments(task="gcd", chat=True).make_task()
    with pytest.raises(ValueError, match="task 'gcd' has no option 'data_dir'"):
        DataArguments(task="gcd", data_dir="somewhere").make_task()
