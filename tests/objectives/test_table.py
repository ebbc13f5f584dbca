"""The table of methods says what the classes say, and `dgpo objectives` prints it with torch alone."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

from dgpo import TokenBatch, objectives
from dgpo.cli.objectives import run
from dgpo.objectives import OBJECTIVES, Objective, Paper, Properties, Read, table


@dataclass(frozen=True, kw_only=True)
class Sequential(Objective):
    """A line with a | in it.

    More text, and arXiv 2222.22222, which is another's.
    """

    papers = (
        Paper(arxiv_id="1234.56789", title="One", authors=("Ada Byron", "Åke Ünal"), year=2030, venue="ACL 2030"),
        Paper(url="https://example.com/two.pdf", year=2031),
    )

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "response", "batch"})

    def weight(self, tokens: TokenBatch) -> torch.Tensor:
        return tokens.ratio

    def properties(self) -> Properties:
        return Properties(continuous=True, upper_bound=1.25, limit_negative=None, limit_positive=None)


@pytest.fixture
def sequential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "sequential", Sequential)


def test_one_row_per_method_in_order() -> None:
    assert [row.name for row in table.rows()] == list(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_row_is_what_the_class_says(name: str) -> None:
    row = next(row for row in table.rows() if row.name == name)
    cls = OBJECTIVES[name]
    assert row.cls == cls.__name__
    assert row.properties == objectives.make(name).properties()
    assert list(row.fields) == [field.name for field in dataclasses.fields(cls)]
    made = objectives.make(name)
    assert row.fields == {field: getattr(made, field) for field in row.fields}
    assert objectives.make(name, **row.fields) == made
    assert row.summary
    assert row.summary in (cls.__doc__ or "")
    assert (row.level, row.adaptive) == (cls.level, "batch" in made.reads)


def test_every_method_declares_its_papers_in_its_own_file() -> None:
    ids = {row.name: row.arxiv for row in table.rows()}
    assert None not in ids.values(), f"these declare no paper: {ids}"
    known = {"dgpo": "2603.14389", "grpo": "2402.03300", "maspo": "2602.17550"}
    assert {name: ids[name] for name in known} == known
    for name, cls in OBJECTIVES.items():
        file = Path(inspect.getfile(cls))
        texts = [file.read_text(encoding="utf-8")]
        if "_PAPER" in texts[0]:  # that of the method whose masks it has
            texts = [other.read_text(encoding="utf-8") for other in file.parent.glob("*.py")]
        assert any(f'arxiv_id="{ids[name]}"' in text for text in texts)
        assert "papers" in cls.__dict__
        for paper in cls.papers:
            assert paper.title, f"{name}: {paper}"
            assert paper.authors, f"{name}: {paper}"


def test_titles_and_authors_as_published() -> None:
    """The two that the library is about, from the ACL Anthology."""
    (dgpo,), (maspo,) = OBJECTIVES["dgpo"].papers, OBJECTIVES["maspo"].papers
    assert dgpo.title == (
        "From log π to π: Taming Divergence in Soft Clipping via Bilateral Decoupled Decay of Probability Gradient "
        "Weight"
    )
    assert ", ".join(dgpo.authors) == (
        "Xiaoliang Fu, Jiaye Lin, Yangyi Fang, Chaowen Hu, Cong Qin, Zekai Shao, Binbin Zheng, Lu Pan, Ke Zeng"
    )
    assert maspo.title == (
        "MASPO: Unifying Gradient Utilization, Probability Mass, and Signal Reliability for Robust and "
        "Sample-Efficient LLM Reasoning"
    )
    assert set(maspo.authors) == {*dgpo.authors, "Xunliang Cai"}
    assert (dgpo.anthology, maspo.anthology) == ("2026.acl-long.1921", "2026.acl-long.1918")


def test_one_paper_is_written_once() -> None:
    """Two methods of one paper name the same object, and no two papers have one key."""
    papers = {paper for cls in OBJECTIVES.values() for paper in cls.papers}
    assert len({paper.arxiv_id for paper in papers}) == len({paper.key for paper in papers}) == len(papers)


def test_papers_are_not_inherited() -> None:
    """Code that is derived from a method is another method, which that paper knows nothing about."""

    class Derived(Sequential):
        pass

    assert Derived.papers == ()


def test_a_paper_in_words() -> None:
    paper, unverified = Sequential.papers
    assert paper.markdown() == "[One](https://arxiv.org/abs/1234.56789), Byron and Ünal, ACL 2030"
    assert paper.text() == "One\nAda Byron, Åke Ünal\narXiv 1234.56789; ACL 2030"
    assert paper.bibtex().splitlines() == [
        "@inproceedings{byron2030one,",
        "    title         = {{One}},",
        "    author        = {Ada Byron and Åke Ünal},",
        "    booktitle     = {ACL 2030},",
        "    year          = {2030},",
        "    eprint        = {1234.56789},",
        "    archivePrefix = {arXiv},",
        "    url           = {https://arxiv.org/abs/1234.56789},",
        "}",
    ]
    assert unverified.markdown() == (
        "[https://example.com/two.pdf (title and authors could not be verified)](https://example.com/two.pdf), 2031"
    )
    assert unverified.text().startswith("title and authors could not be verified\n")
    assert "note          = {title and authors could not be verified}" in unverified.bibtex()
    assert "author" not in unverified.bibtex().replace("title and authors", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arxiv_id": "arXiv:1234.5678", "year": 2030}, "arxiv_id = 'arXiv:1234.5678' is not allowed"),
        ({"year": 2030}, "arxiv_id and url are both missing"),
        ({"arxiv_id": "1234.56789", "year": 2030, "authors": "Ada Byron"}, "authors = 'Ada Byron' is a string"),
    ],
)
def test_a_paper_that_is_none(fields: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Paper(**fields)  # type: ignore[arg-type]


def test_no_paper_is_not_an_error(sequential: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sequential, "papers", ())
    assert table.rows()[-1].arxiv is None
    assert "sequential" in table.as_text()
    assert "sequential" in table.as_markdown()
    assert "No paper is declared." in table.describe("sequential")


@pytest.mark.parametrize("width", [96, 110, 140])
def test_text_is_aligned_and_fits(width: int, sequential: None) -> None:
    lines = table.as_text(width).splitlines()
    assert max(len(line) for line in lines) <= width
    header = lines[0]
    for name, row in zip(OBJECTIVES, table.rows(), strict=True):
        line = next(line for line in lines if line.split(" ")[0] == name)
        for column, cell in zip(table.HEADER, row.cells(), strict=True):
            assert line[header.index(column) :].startswith(cell), f"{name}: {column} is not under its heading"
    assert "sequence level; adaptive" in "\n".join(lines)


def test_text_names_every_field_and_default() -> None:
    words = " ".join(table.as_text(1000).split())
    for row in table.rows():
        assert row.settings() in words
        for field, default in row.fields.items():
            assert f"{field}={table.shown(default)}" in row.settings()


def test_markdown_is_one_table(sequential: None) -> None:
    lines = table.as_markdown().split("\n\n")[0].splitlines()
    assert len(lines) == 2 + len(OBJECTIVES)
    columns = {line.replace("\\|", "").count("|") for line in lines}
    assert len(columns) == 1, "every line has the same number of cells"
    for name, line in zip(OBJECTIVES, lines[2:], strict=True):
        assert line.startswith(f"| `{name}` | ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2, "0.2"), (10.0, "10"), (1, "1"), (None, "None"), (math.inf, "inf"), (3e-4, "0.0003"), ("token", "token")],
)
def test_shown(value: object, text: str) -> None:
    assert table.shown(value) == text


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert run([]) == 0
    assert capsys.readouterr().out == table.as_text(90) + "\n"
    assert run(["--markdown"]) == 0
    assert capsys.readouterr().out == table.as_markdown() + "\n"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_command_describes_one_method(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name]) == 0
    out = capsys.readouterr().out
    row = next(row for row in table.rows() if row.name == name)
    assert row.summary in out
    for field, default, allowed in row.field_cells():
        assert f"{field}: " in out, f"the docstring of {name} does not explain {field}"
        assert re.search(rf"^{field} +{re.escape(default)} +{re.escape(allowed)}$", out, re.MULTILINE)
    for paper in row.papers:
        assert paper.text() in out
        assert paper.bibtex() in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dgop"], "unknown objective 'dgop', did you mean 'dgpo'?"),
        (["zzzzzz"], f"known: {', '.join(OBJECTIVES)}"),
        (["dgpo", "--markdown"], "leave NAME out"),
        (["--json"], "unrecognized arguments: --json"),
    ],
)
def test_wrong_input_is_exit_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("usage: dgpo objectives")


def test_command_imports_torch_and_nothing_heavy() -> None:
    code = (
        "import sys; from dgpo.cli.objectives import run; run([])\n"
        "heavy = {'transformers', 'trl', 'datasets', 'matplotlib', 'rich', 'scipy', 'pandas', 'yaml'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("name")


def test_a_method_without_a_paper_has_no_number_of_one() -> None:
    first = table.describe(f"{__name__}:WithoutPaper").splitlines()[0]
    assert first == f"{__name__}:WithoutPaper (WithoutPaper)"
    assert table.describe("dgpo").splitlines()[0] == "dgpo (DGPO), arXiv 2603.14389"


@dataclass(frozen=True, kw_only=True)
class WithoutPaper(Objective):
    """w = 1."""

    def weight(self, tokens: TokenBatch) -> torch.Tensor:
        return torch.ones_like(tokens.log_ratio)
