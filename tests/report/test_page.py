"""The page as text: whole, small, escaped; and its style and script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dgpo.report
from dgpo.report import collect, comparison, page, write_report
from dgpo.report.figures import METHOD_COLOURS, REGION_COLOURS, RUN_COLOURS
from dgpo.report.markup import Markup, joined, percent, shown, tag
from dgpo.report.page import SCRIPTS

ASSETS = Path(dgpo.report.__file__).parent / "assets"


class Reader(HTMLParser):
    """Ids, links, elements that load something, and the text of data blocks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids += [given["id"]] if given.get("id") else []
        self.links += [given["href"]] if name == "a" and given.get("href") else []
        self.loads += [name] if name in ("link", "img", "iframe", "object") or "src" in given else []
        if name == "script":
            self.scripts.append("")
            self.open.append(name)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.scripts[-1] += data

    def handle_endtag(self, name: str) -> None:
        if name == "script":
            self.open.pop()


@pytest.fixture(scope="module")
def text(report):
    return report.read_text(encoding="utf-8")


def test_one_file_below_six_megabytes(report):
    assert 4_000_000 < report.stat().st_size < 6_000_000
    assert list(report.parent.iterdir()) == [report]


def test_the_same_input_gives_the_same_bytes(report, runs, results, tmp_path):
    again = write_report(runs, tmp_path / "deep" / "again.html", evaluation=[results])
    assert again.read_bytes() == report.read_bytes()


def test_it_loads_nothing_and_its_links_lead_somewhere(text):
    found = Reader(text)
    assert found.loads == []
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert all(link.startswith("#") for link in found.links)
    assert len(found.scripts) == 3
    assert not re.search(r"\{\{\w+\}\}", text.replace(found.scripts[1], ""))


def test_every_section_says_something_where_a_run_has_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    text = page(collect([tmp_path]))
    assert "no reward was logged" in text
    assert "dgpo report RUN --eval FOLDER" in text
    (tmp_path / "run.json").write_text('{"engine": "trl"}')
    text = page(collect([tmp_path]))
    assert "No completions were recorded" in text
    assert '<section id="config"' in text


def test_a_hostile_run_stays_text(hostile):
    text = page(collect([hostile]))
    found = Reader(text)
    assert found.loads == []
    assert len(found.scripts) == 3
    assert "hacked=1" in text
    assert "<script>window.hacked" not in text
    assert "<img" not in text
    block = json.loads(found.scripts[0])
    assert block["runs"][0]["label"] == hostile.name
    # a name that looks like a place of the template is not filled
    assert "{{script}}" in text


def test_markup_escapes_what_is_not_markup():
    assert tag("b", "<i>&", Markup("<u>"), title='"x"', hidden=True, id=None) == (
        '<b title="&quot;x&quot;" hidden>&lt;i&gt;&amp;<u></b>'
    )
    assert joined(["<", tag("i")]) == "&lt;<i></i>"


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0.12345, "0.123"), (-1.5, "−1.5"), (12345.0, "12,345"), (0.000012, "1.2e−05"), (0.0, "0")],
)
def test_numbers(value, words):
    assert shown(value) == words


def test_percent():
    assert percent(0.1234) == "12.3 %"
    assert percent(None) == "–"


def test_static_figures_have_the_colours_of_the_page():
    light = (ASSETS / "style.css").read_text().partition("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", light))
    assert tuple(colours[f"run-{i}"] for i in range(8)) == RUN_COLOURS
    assert tuple(colours[f"method-{i}"] for i in range(8)) == METHOD_COLOURS
    assert {name: colours[name.replace("_", "-")] for name in REGION_COLOURS} == REGION_COLOURS


def test_both_ways_to_the_dark_theme_are_the_same():
    style = (ASSETS / "style.css").read_text()
    blocks = re.findall(r"color-scheme: dark;(.*?)\}", style, re.S)
    assert len(blocks) == 2
    assert blocks[0].split() == blocks[1].split()


def test_every_part_of_the_script_is_in_the_page(text):
    assert {path.stem for path in ASSETS.glob("*.js")} == {*SCRIPTS, *comparison.SCRIPTS}
    assert all((ASSETS / f"{name}.js").read_text() in text for name in SCRIPTS)


@pytest.mark.parametrize("name", sorted({*SCRIPTS, *comparison.SCRIPTS}))
def test_the_script_is_valid(name):
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed, which checks the syntax of the page's script")
    subprocess.run([node, "--check", ASSETS / f"{name}.js"], check=True, timeout=60)
