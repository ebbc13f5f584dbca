"""Benchmarks: the local files, a hub copy, what is refused, and golds that are known to be wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo import tasks
from dgpo.tasks import BENCHMARKS, BOXED, BenchmarkTask
from dgpo.tasks.benchmark_table import Content, Hub
from dgpo.tasks.content import answers_hash, canonical_integer

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks"
SPLITS = [(name, split) for name, benchmark in BENCHMARKS.items() for split in benchmark.content]


@pytest.fixture(scope="session")
def files() -> Path:
    if not (FOLDER / "aime24.jsonl").is_file():
        pytest.skip("needs the folder shared/benchmarks beside the repository")
    return FOLDER


@pytest.fixture(autouse=True)
def no_cache_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def rows_of(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(folder: Path, file: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table() -> None:
    sizes = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 675}
    assert {name: benchmark.content["test"].rows for name, benchmark in BENCHMARKS.items()} == {**sizes, "gsm8k": 1319}
    assert BENCHMARKS["gsm8k"].content["train"].rows == 7473
    hashes = [content.sha256 for benchmark in BENCHMARKS.values() for content in benchmark.content.values()]
    assert len(set(hashes)) == len(hashes) == 8
    for benchmark in BENCHMARKS.values():
        for content in benchmark.content.values():
            assert re.fullmatch("[0-9a-f]{64}", content.sha256)
            assert content.hub.revision is None or re.fullmatch("[0-9a-f]{40}", content.hub.revision)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_file_is_what_the_table_says(files: Path, name: str, split: str) -> None:
    task = tasks.make(name, data_dir=files)
    problems, about = task.problems(split), task.provenance(split)
    content = BENCHMARKS[name].content[split]
    assert len(problems) == content.rows == about["rows"]
    assert about["checked"] == "content"
    assert about["sha256"] == content.sha256
    assert about["excluded"] == []
    assert json.loads(json.dumps(about)) == about
    assert str(files) not in json.dumps(about)
    raw = rows_of(files / content.file)
    for problem, row in zip(problems, raw, strict=True):
        assert problem.keys() == {"id", "problem", "prompt", "answer"}
        assert (problem["id"], problem["problem"], problem["answer"]) == (row["id"], row["problem"], row["answer"])
        assert problem["prompt"] == BOXED.render(row["problem"])
    if content.answers_sha256 is not None:
        assert answers_hash(problem["answer"] for problem in problems) == content.answers_sha256
        assert all(canonical_integer(problem["answer"]) == problem["answer"] for problem in problems)
    known = {*BENCHMARKS[name].known_wrong, *BENCHMARKS[name].unparsed} if split == "test" else set()
    assert known <= {problem["id"] for problem in problems}


def test_the_cleaning_of_hub_answers_gives_the_files_answers(files: Path) -> None:
    """Of OlympiadBench the raw answers are in the file: the rule is right for all 675."""
    for row in rows_of(files / "olympiadbench.jsonl"):
        assert BENCHMARKS["olympiadbench"].clean(", ".join(row["raw_final_answer"])) == row["answer"]


def test_prompts_as_messages(files: Path) -> None:
    problem = tasks.make("aime24", data_dir=files, chat=True).problems("test")[0]
    assert problem["prompt"] == [{"role": "user", "content": BOXED.render(problem["problem"])}]


def test_gsm8k_can_be_trained_on(files: Path) -> None:
    data = tasks.make("gsm8k", data_dir=files).dataset("train")
    assert data.column_names == ["prompt", "answer"]
    assert len(data) == 7473
    train, test = (tasks.make("gsm8k", data_dir=files).problems(split) for split in ("train", "test"))
    assert not {row["problem"] for row in train} & {row["problem"] for row in test}


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "gsm8k"])
def test_the_others_are_for_evaluation(name: str) -> None:
    task = tasks.make(name)
    assert task.grade is None
    for call in (task.problems, task.dataset, task.provenance):
        with pytest.raises(ValueError, match=f"'{name}' is for evaluation: it has no train split, only test"):
            call("train")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        task.problems("dev")
    with pytest.raises(ValueError, match="'gsm8k' is for evaluation: it has no validation split, only train, test"):
        tasks.make("gsm8k").problems("validation")


# --- files that will not do -------------------------------------------------------------------------------------------


def changed_answer(rows: list[dict[str, Any]]) -> None:
    rows[3]["answer"] = "1"


def changed_problem(rows: list[dict[str, Any]]) -> None:
    rows[3]["problem"] = "Now: " + rows[3]["problem"]


def changed_order(rows: list[dict[str, Any]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


@pytest.mark.parametrize("name", ["aime24", "math500"])
@pytest.mark.parametrize("change", [changed_answer, changed_problem, changed_order])
def test_another_content_is_an_error(files: Path, tmp_path: Path, name: str, change: Callable[[Any], None]) -> None:
    content = BENCHMARKS[name].content["test"]
    rows = rows_of(files / content.file)
    change(rows)
    task = tasks.make(name, data_dir=write(tmp_path / "data", content.file, rows))
    with pytest.raises(ValueError, match=rf"SHA-256 [0-9a-f]{{64}}; expected {content.sha256}|the known ones: SHA-256"):
        task.problems("test")


def test_ids_and_spaces_do_not_count(files: Path, tmp_path: Path) -> None:
    rows = rows_of(files / "aime24.jsonl")
    moved = [{"id": n, "problem": f" {row['problem']}\n", "answer": row["answer"] + " "} for n, row in enumerate(rows)]
    task = tasks.make("aime24", data_dir=write(tmp_path / "data", "aime24.jsonl", moved))
    assert task.provenance("test")["checked"] == "content"
    assert task.problems("test")[2]["id"] == "2"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[:29], r"aime24 \(test\) from aime24.jsonl has 29 rows; expected 30"),
        (lambda rows: [*rows, rows[0]], "has 31 rows; expected 30"),
        (lambda rows: [*rows[:29], rows[0]], "duplicate id 'aime24-60'"),
        (lambda rows: [{"id": "a", "problem": "p"}, *rows[1:]], r"line 1: expected a JSON object .*KeyError: 'answer'"),
        (lambda rows: [*rows[:29], {**rows[29], "answer": 5}], "line 30: .*5 is of type int, not text"),
        (lambda rows: [[1], *rows[1:]], "line 1: expected a JSON object"),
    ],
)
def test_rows_that_will_not_do(files: Path, tmp_path: Path, edit: Callable[[Any], Any], message: str) -> None:
    folder = write(tmp_path / "data", "aime24.jsonl", edit(rows_of(files / "aime24.jsonl")))
    with pytest.raises(ValueError, match=message):
        tasks.make("aime24", data_dir=folder).problems("test")


def test_broken_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "aime24.jsonl").write_text('{"id": "a", \n')
    with pytest.raises(ValueError, match=r"aime24.jsonl, line 1: expected a JSON object"):
        tasks.make("aime24", data_dir=tmp_path).problems("test")
    with pytest.raises(FileNotFoundError, match=r"no file 'aime25.jsonl' for aime25 in the folder"):
        tasks.make("aime25", data_dir=tmp_path).problems("test")


# --- golds that are wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wrong"), [("minerva", "minerva-173"), ("olympiadbench", "olympiad-2349")])
def test_wrong_golds_are_listed_and_left_out_only_when_asked(files: Path, name: str, wrong: str) -> None:
    kept, without = tasks.make(name, data_dir=files), tasks.make(name, data_dir=files, exclude_known_wrong=True)
    gold = {problem["id"]: problem["answer"] for problem in kept.problems("test")}
    assert gold[wrong] == BENCHMARKS[name].known_wrong[wrong].gold
    assert kept.provenance("test")["known_wrong"] == [wrong]
    assert gold.keys() - {problem["id"] for problem in without.problems("test")} == {wrong}
    about = without.provenance("test")
    assert about["excluded"] == [wrong]
    assert about["rows"] == len(gold) - 1
    assert about["sha256"] == kept.provenance("test")["sha256"]


def test_excluding_where_nothing_is_known_to_be_wrong_changes_nothing(files: Path) -> None:
    task = tasks.make("amc23", data_dir=files, exclude_known_wrong=True)
    assert task.provenance("test")["excluded"] == []
    assert len(task.problems("test")) == 40


# --- the hub: a data set of the same shape in a local folder ----------------------------------------------------------


def as_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, split: str, rows: list[dict[str, Any]]) -> None:
    """Make the benchmark's hub data set a folder, which `load_dataset` reads as it reads a data set of the hub."""
    content = BENCHMARKS[name].content[split]
    write(folder, f"{content.hub.split}.jsonl", rows)
    hub = dataclasses.replace(content.hub, name=str(folder), config=None, revision=None)
    parts: dict[str, Content] = {**BENCHMARKS[name].content, split: dataclasses.replace(content, hub=hub)}
    monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], content=parts))


def test_aime24_from_the_hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros in front, as the hub's copy has them; more columns; the same content in the end."""
    rows = [
        {"id": int(row["id"].removeprefix("aime24-")), "problem": row["problem"], "answer": row["answer"].zfill(3)}
        for row in rows_of(files / "aime24.jsonl")
    ]
    as_hub(monkeypatch, tmp_path / "hub", "aime24", "test", rows)
    task = tasks.make("aime24")
    assert task.provenance("test")["checked"] == "content"
    assert task.problems("test") == tasks.make("aime24", data_dir=files).problems("test")


def test_amc23_from_the_hub_in_other_words(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers for answers and problems in another format: what is checked is the answers, and that is said."""
    rows = [
        {"id": n, "question": row["problem"] + " Answer?", "answer": float(row["answer"])}
        for n, row in enumerate(rows_of(files / "amc23.jsonl"))
    ]
    as_hub(monkeypatch, tmp_path / "hub", "amc23", "test", rows)
    about = tasks.make("amc23").provenance("test")
    assert about["checked"] == "answers"
    assert about["sha256"] != BENCHMARKS["amc23"].content["test"].sha256
    rows[0]["answer"] = 28.0
    as_hub(monkeypatch, tmp_path / "other", "amc23", "test", rows)
    with pytest.raises(ValueError, match="the answers of amc23 from .* are not the known ones: SHA-256"):
        tasks.make("amc23").problems("test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_from_the_hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    rows = [
        {"question": row["problem"], "answer": f"So it is\n#### {int(row['answer']):,}"}
        for row in rows_of(files / f"gsm8k_{split}.jsonl")
    ]
    as_hub(monkeypatch, tmp_path / "hub", "gsm8k", split, rows)
    task = tasks.make("gsm8k")
    assert task.provenance(split)["checked"] == "content"
    assert task.problems(split)[5]["id"] == f"gsm8k-{split}-5"
    assert task.problems(split) == tasks.make("gsm8k", data_dir=files).problems(split)


def test_olympiadbench_from_the_hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One problem fewer than in the file, answers as lists: only rows can be checked, and that is said."""
    rows = [
        {"id": int(row["id"].split("-")[1]), "question": row["problem"], "final_answer": row["raw_final_answer"]}
        for row in rows_of(files / "olympiadbench.jsonl")
        if row["id"] != "olympiad-1606"
    ]
    as_hub(monkeypatch, tmp_path / "hub", "olympiadbench", "test", rows)
    about = tasks.make("olympiadbench", exclude_known_wrong=True).provenance("test")
    assert (about["checked"], about["rows"], about["excluded"]) == ("unverified", 673, ["olympiad-2349"])
    expected = {p["id"]: p["answer"] for p in tasks.make("olympiadbench", data_dir=files).problems("test")}
    for problem in tasks.make("olympiadbench").problems("test"):
        assert problem["answer"] == expected[problem["id"]]
    as_hub(monkeypatch, tmp_path / "fewer", "olympiadbench", "test", rows[:-1])
    with pytest.raises(ValueError, match="has 673 rows; expected 674"):
        tasks.make("olympiadbench").problems("test")


def test_a_wrong_gold_that_cannot_be_found_is_not_guessed(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"{row['problem']}?", "answer": row["answer"]} for row in rows_of(files / "minerva.jsonl")]
    as_hub(monkeypatch, tmp_path / "hub", "minerva", "test", rows)
    assert tasks.make("minerva").provenance("test")["known_wrong"] == []
    with pytest.raises(ValueError, match="no problem with the text of minerva-173"):
        tasks.make("minerva", exclude_known_wrong=True).problems("test")


def test_hub_columns_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_hub(monkeypatch, tmp_path / "hub", "math500", "test", [{"problem": "p", "answer": "1"}])
    with pytest.raises(ValueError, match="math500 from .* has no column 'unique_id'; its columns: problem, answer"):
        tasks.make("math500").problems("test")


def test_the_revision_reaches_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> None:
        asked.append((args, kwargs))
        raise OSError("no network here")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub: Hub = BENCHMARKS["gsm8k"].content["train"].hub
    for task, revision in ((tasks.make("gsm8k"), hub.revision), (tasks.make("gsm8k", revision="main"), "main")):
        with pytest.raises(OSError, match="no network"):
            task.problems("train")
        assert asked.pop() == (("openai/gsm8k", "main"), {"split": "train", "revision": revision})


def test_names_and_folders(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'amc24', did you mean 'amc23'"):
        BenchmarkTask(name="amc24")
    shutil.copy(files / "amc23.jsonl", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(tasks.make("amc23", data_dir="~").problems("test")) == 40
