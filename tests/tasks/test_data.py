"""Data files and hub data sets: columns, templates, conversations, and what is said about data that will not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from dgpo.tasks.data import PROMPT_COLUMNS, load


@pytest.fixture(autouse=True)
def no_cache_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def rows(column: str = "prompt") -> list[dict[str, Any]]:
    return [{"id": f"sum-{a}", column: f"{a}+{a}=", "answer": str(2 * a)} for a in range(4)]


def write(path: Path, content: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        Dataset.from_list(content).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("column", PROMPT_COLUMNS)
def test_a_file_of_every_kind_with_every_prompt_column(tmp_path: Path, suffix: str, column: str) -> None:
    """The other columns stay: rewards may read them."""
    data = load(write(tmp_path / f"data{suffix}", rows(column)))
    assert data.to_list() == rows("prompt")


def test_prompt_is_preferred(tmp_path: Path) -> None:
    content = [{"question": "q", "problem": "p", "prompt": "x", "answer": "1"}]
    assert load(write(tmp_path / "data.jsonl", content))[0]["prompt"] == "x"
    content = [{"question": "q", "problem": "p", "answer": "1"}]
    assert load(write(tmp_path / "data.jsonl", content))[0] == {"question": "q", "prompt": "p", "answer": "1"}


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ([46, 7], ["46", "7"]),
        ([0.5, 2.0], ["0.5", "2.0"]),
        (["46", 7], ["46", "7"]),
        ([True, False], ["True", "False"]),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_answers_become_text(tmp_path: Path, answers: list[Any], texts: list[str], chat: bool) -> None:
    """Numbers, and text and numbers in one column."""
    content = [{"prompt": "?", "answer": answer} for answer in answers]
    assert load(write(tmp_path / "data.jsonl", content), chat=chat)["answer"][:] == texts


def test_template_and_chat(tmp_path: Path) -> None:
    """The braces of LaTeX in a template or a prompt are text."""
    file = write(tmp_path / "data.jsonl", [{"prompt": "x^{2}=4, {prompt}", "answer": "2"}])
    template = r"{prompt} Put it into \boxed{}."
    text = r"x^{2}=4, {prompt} Put it into \boxed{}."
    assert load(file, template=template)["prompt"][:] == [text]
    assert load(file, template=template, chat=True)["prompt"][:] == [[{"role": "user", "content": text}]]
    assert load(file, chat=True)["prompt"][:] == [[{"role": "user", "content": "x^{2}=4, {prompt}"}]]


def test_conversations_are_kept(tmp_path: Path) -> None:
    content = [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "answer": "1"}]
    file = write(tmp_path / "data.jsonl", content)
    assert load(file).to_list() == content
    for options in ({"chat": True}, {"template": "{prompt}"}):
        with pytest.raises(ValueError, match="are conversations: omit prompt_template and chat"):
            load(file, **options)


def test_columns_under_other_names(tmp_path: Path) -> None:
    """The mapping, with an id; a column that already has the field's name gives way; the others stay."""
    content = [{"uid": "a", "id": 7, "question": "1+1=", "answer": "a proof", "final": 2, "level": "easy"}]
    file = write(tmp_path / "data.jsonl", content)
    data = load(file, columns={"prompt": "question", "answer": "final", "id": "uid"})
    assert data.to_list() == [{"prompt": "1+1=", "answer": "2", "id": "a", "level": "easy"}]
    swapped = load(file, columns={"prompt": "answer", "answer": "question"})
    assert (swapped["prompt"][:], swapped["answer"][:]) == (["a proof"], ["1+1="])


def test_a_solution_of_gsm8k_stays_whole(tmp_path: Path) -> None:
    """The graders read what follows the hashes."""
    file = write(tmp_path / "data.jsonl", [{"question": "q", "solution": "4*18=72\n#### 72"}])
    assert load(file, columns={"answer": "solution"})["answer"][:] == ["4*18=72\n#### 72"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"gold": "answer"}, "columns: 'gold' = 'answer' is not a field; expected one of prompt, answer, id"),
        ({"prompt": "text"}, "has no column 'text' for 'prompt'; its columns: id, prompt, answer"),
        ({"prompt": "answer", "answer": "answer"}, "maps two fields to one column"),
        ({"answer": "id", "prompt": "id"}, "maps two fields to one column"),
    ],
)
def test_mappings_that_do_not_fit(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "data.jsonl", rows()), columns=columns)


def test_gsm8k_file_beside_the_repository() -> None:
    file = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks" / "gsm8k_test.jsonl"
    if not file.is_file():
        pytest.skip(f"needs {file.name} in the folder shared/benchmarks beside the repository")
    data = load(str(file))
    assert len(data) == 1319
    assert {"prompt", "answer"} <= set(data.column_names)
    assert all(isinstance(answer, str) and answer for answer in data["answer"])


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data.jsonl", rows())
    assert len(load("~/data.jsonl")) == 4


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, configuration and split reach `datasets.load_dataset`; there is no hub here."""
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Dataset:
        asked.append((args, kwargs))
        return Dataset.from_list(rows("question"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("openai/gsm8k", "test", config="main").to_list() == rows()
    assert load("somebody/data").to_list() == rows()
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"}), (("somebody/data", None), {"split": "train"})]


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="no-such-user/no-such-data"):
        load("no-such-user/no-such-data")


# --- data that will not do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"prompt": "1+1="}], "has no answer column; its columns: prompt"),
        (
            [{"text": "1", "answer": "1"}],
            r"has no prompt column \(one of prompt, problem, question\); its columns: text",
        ),
        ([{"prompt": "1", "answer": None}, {"prompt": "1", "answer": "1"}], "has no answer in 1 of its 2 rows"),
        ([{"problem": None, "answer": "1"}, {"problem": "1", "answer": "1"}], "has no problem in 1 of its 2 rows"),
        ([{"prompt": "1", "answer": ["1"]}], r"has the answer \['1'\]; expected text or a number"),
        ([{"prompt": "1", "answer": {"value": 1}}], "has the answer .*; expected text or a number"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns(tmp_path: Path, content: list[dict[str, Any]], message: str, suffix: str) -> None:
    file = write(tmp_path / f"data{suffix}", content)
    with pytest.raises(ValueError, match=message) as raised:
        load(file)
    assert file in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("data.jsonl", '{"prompt": "1", \n', "JSON parse error"),
        ("data.jsonl", "", "no rows"),
        ("data.jsonl", "\n\n", "no data"),
        ("data.parquet", "text", "Parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"cannot read the data file '.*{name}': .*{reason}"):
        load(str(tmp_path / name))


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("prompt,answer\n1,1\n")
    for name in ("data.csv", "."):
        with pytest.raises(ValueError, match=r"expected one of \.jsonl, \.json, \.parquet"):
            load(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no such data file: .*none.jsonl"):
        load(str(tmp_path / "none.jsonl"))


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", rows())
    with pytest.raises(ValueError, match=r"the prompt template 'Solve it\.' does not contain '\{prompt\}'"):
        load(file, template="Solve it.")
    with pytest.raises(ValueError, match="config = 'main' names a part of a hub data set, but .* is a local file"):
        load(file, config="main")
