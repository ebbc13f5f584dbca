"""The study of a real model, as far as it needs none: its problems, its recipe and what is committed of its runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import results
import yaml
from model import SUMMARY, Unavailable, make_model
from words import INSTRUCTION, KINDS, TEST, TRAIN, chat, numbers, rows, solution, write

from dgpo.files import read_json
from dgpo.grading import MathGrader

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "real_model"


def numbers_of(row: dict[str, object]) -> tuple[str, tuple[int, ...]]:
    kind = str(row["id"]).split("-")[1]
    text = row["prompt"][-1]["content"]  # type: ignore[index]
    return kind, tuple(int(number) for number in re.findall(r"\d+", text))


def test_no_training_problem_has_the_numbers_of_a_test_problem_of_its_kind() -> None:
    trained, held_out = ([numbers_of(row) for row in rows(*split)] for split in (("train", TRAIN), ("test", TEST)))
    assert not {*trained} & {*held_out}
    assert len({*held_out}) == TEST
    assert {kind for kind, _ in trained} == {kind for kind, _ in held_out} == {*KINDS}


def test_the_answers_follow_from_the_texts() -> None:
    # read from the text alone, by another way than `solution`
    rules = {
        "gain": lambda x, y: x + y,
        "lose": lambda x, y: x - y,
        "more": lambda x, y: x + y,
        "times": lambda x, y: x * y,
        "share": lambda x, y: x // y,
        "two": lambda x, y, z: x + y - z,
    }
    for row in [*rows("train", TRAIN), *rows("test", TEST)]:
        kind, found = numbers_of(row)
        assert row["answer"] == str(rules[kind](*found)), row
        assert int(row["answer"]) > 0
    assert solution("share", 3, 4, 0) == 3
    assert all(z < x + y for x, y, z in numbers("two"))


def test_the_example_is_graded_as_right_and_the_files_are_rows(tmp_path: Path) -> None:
    example = chat("?")
    assert [message["role"] for message in example] == ["system", "user", "assistant", "user"]
    assert example[0]["content"] == INSTRUCTION
    with MathGrader(workers=1) as grader:
        assert grader.grade(example[2]["content"], "12").score == 1
    train, test = write(tmp_path)
    assert [len(path.read_text().splitlines()) for path in (train, test)] == [TRAIN, TEST]
    assert json.loads(test.read_text().splitlines()[0]) == next(rows("test", 1))


def test_more_test_problems_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="test problems of kind"):
        list(rows("test", 10_000))


def test_the_model_is_made_once_and_a_folder_of_another_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps({"source": "wheel"}))
    assert make_model(tmp_path) == make_model(tmp_path, "wheel") == {"source": "wheel"}
    with pytest.raises(ValueError, match="has the model from the wheel"):
        make_model(tmp_path, "hub")
    (tmp_path / SUMMARY).rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match="did not write"):
        make_model(tmp_path)


def test_without_hub_and_wheel_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(Unavailable, match="pip cannot download"):
        make_model(tmp_path, "wheel")
    assert not (tmp_path / SUMMARY).exists()


def test_what_is_evaluated_is_what_is_trained() -> None:
    recipe = yaml.safe_load((STUDY / "words.yaml").read_text())
    script = (STUDY / "learn.py").read_text()
    (line,) = re.findall(r"^WORDS = (\(.*\))$", script, re.MULTILINE)
    flags = dict(zip(*[iter(ast.literal_eval(line))] * 2, strict=True))
    assert float(flags["--temperature"]) == recipe["temperature"]
    assert int(flags["--max_new_tokens"]) == recipe["max_completion_length"]


def test_figure_and_tables_are_of_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"]) == 0, capsys.readouterr().err


def test_every_committed_seed_rose_with_its_interval_above_zero() -> None:
    found = [read_json(path) for path in sorted((STUDY / "results").glob("seed-*.json"))]
    assert [seed["seed"] for seed in found] == [0, 1, 2]
    for seed in found:
        assert seed["words"]["problems"] == TEST
        assert seed["words"]["avg@8"]["difference"][1] > 0
        assert len(seed["curves"]["reward"]) * 4 == yaml.safe_load((STUDY / "words.yaml").read_text())["max_steps"]
