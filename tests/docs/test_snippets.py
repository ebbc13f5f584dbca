"""Every block of a page is of a kind that is tested: commands are understood, files are read, and outputs are real.

Blocks of Python are run by `test_pages.py`.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the parser of dgpo train needs: the extra train")

from dgpo import objectives, registry
from dgpo.cli import main, study_file, yaml_file
from dgpo.cli.parser import NOT_SETTINGS
from dgpo.imports import is_path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "recipes/README.md")),
]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "py", "console", "text", "yaml", "toml", "json", "bibtex"}

NOT_RUN = {
    "engines.md": [
        "entry.py needs SkyRL, Ray and GPUs; tests/engines_skyrl runs what it calls",
        "NeMo-RL needs GPUs; tests/engines/test_engine_relatives.py makes this loss with stand-ins for its modules",
    ],
}
"""Page -> why its blocks marked `py` cannot be run here, in their order."""

NOT_OURS = {
    "engines.md": [
        {"dgpo_objective", "dgpo_objective_kwargs"},  # slime reads it: tests/engines/test_engine_slime.py
        {"algorithm"},  # rLLM reads it: tests/engines/test_engine_relatives.py
    ],
}
"""Page -> the keys of its YAML that other programs read."""

OUTPUTS_OF_RUNS = {"training.md": "a run that Ctrl-C stops"}
"""Pages whose console blocks show the output of a command that is not run again here, and what it is of."""

SHELL = {"export", "git", "echo", ".", "cd", "source"}
"""Commands of a shell, of which nothing is checked."""

ELSEWHERE = {"entry.py", "train.py", "check.py"}
"""Scripts that are on the page itself, in another framework, or copied into another repository."""


def blocks(*kinds: str) -> Iterator[tuple[Path, str]]:
    """(page, content) of every fenced block of these kinds."""
    for page in PAGES:
        for kind, content in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind in kinds:
                yield page, content


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    """A block of text is a formula, a layout or an output: no command, and no code."""
    for kind, content in FENCE.findall(page.read_text(encoding="utf-8")):
        assert kind in KINDS or kind.startswith("{"), f"{kind!r}: {content[:60]}"
        assert content.strip(), f"an empty block of {kind}"
        if kind == "text":
            assert not re.search(r"^(\$ |import |from \w+ import )", content, re.MULTILINE), content


def test_python_that_is_not_run() -> None:
    found = list(blocks("py"))
    assert [page.name for page, _ in found] == [name for name, reasons in NOT_RUN.items() for _ in reasons]
    for _, content in found:
        ast.parse(content)


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Every command of a page, with the output below it: of console blocks, and of indented lines of ours."""
    text = page.read_text(encoding="utf-8")
    for kind, content in FENCE.findall(text):
        if kind == "console":
            assert content.startswith("$ "), content
            for entry in re.split(r"^\$ ", content.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
                command, _, output = entry.partition("\n")
                yield command, output
    for line in re.findall(r"^    ((?:dgpo|make|python|pip|bash) .*)$", FENCE.sub("", text), re.MULTILINE):
        yield line, ""


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=shown)
def test_commands_are_understood(page: Path) -> None:
    for command, _ in commands(page):
        if " [" not in command:  # `recipes/README.md` describes a syntax
            understand(command)


def understand(command: str) -> None:
    """Fail unless every program, file, flag, extra and target of a command is there."""
    for inner in re.findall(r"\$\((dgpo [^)]*)\)", command):
        understand(inner)
    command = re.sub(r"\$\(dgpo [^)]*\)", "OVERRIDES", command)
    for part in command.split(" && "):
        words = [word for word in shlex.split(part, comments=True) if word != "..."]
        while words and re.match(r"\w+=", words[0]):
            del words[0]
        if words:
            understand_program(words[0], words[1:])


def understand_program(program: str, words: list[str]) -> None:
    for word in [program, *words]:
        if re.match(r"(recipes|studies|docs|tests|benchmarks|scripts|conformance)/", word) and "NAME" not in word:
            assert list(ROOT.glob(word)), f"no such file: {word}"
    if program == "dgpo":
        understand_dgpo(words)
    elif program in ("accelerate", "torchrun"):
        understand_dgpo(words[words.index("$(command -v dgpo)") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(re.findall(r"[a-z-]+", words[0])) <= {*targets, "-"}
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words:
            if found := re.fullmatch(r"\.(?:\[(.*)\])?", word):
                assert set((found[1] or "all").split(",")) <= set(extras), word
    elif re.fullmatch(r"(.*/)?python3?|bash", program):
        assert words[0] == "-m" or words[0] in ELSEWHERE or (ROOT / words[0]).is_file(), words[0]
    else:
        assert program in SHELL or program == "pre-commit", f"unknown program: {program}"


@functools.cache
def parser(command: str) -> argparse.ArgumentParser:
    return importlib.import_module(f"dgpo.cli.{command.replace('-', '_')}").parser()


def understand_dgpo(words: list[str]) -> None:
    """By the parser of the command; an objective that is not one's own by the registry."""
    name, *arguments = words
    if name in ("--version", "--help"):
        return
    assert name in main.COMMANDS, name
    if name == "completion":  # its module needs shtab
        assert arguments in (["bash"], ["--help"])
        return
    of_command = parser(name)
    if name == "verl-overrides":
        chosen = objective(arguments[arguments.index("--objective") + 1])
        declared = () if chosen is None else dataclasses.fields(chosen)
        of_command = importlib.import_module("dgpo.cli.verl_overrides").parser(declared)
        if chosen is None:
            of_command.add_argument("--cap")
    if name == "compare":
        with_flags = "--config" in arguments
        made = importlib.import_module("dgpo.cli.compare").parser(study=not with_flags, flags=with_flags)
        given, rest = made.parse_known_args(arguments)
        for word in re.split(r",(?![\w]+=)", given.objectives) if with_flags else ():
            objective(word)
        assert with_flags or not rest, rest
        parser("train").parse_args(rest)
        return
    given = of_command.parse_args(arguments)
    for flag in ("objective", "objectives"):
        value = getattr(given, flag, None) or []
        for word in [value] if isinstance(value, str) else value:
            if word != "all" and name not in ("report", "doctor", "watch"):
                objective(word)


def objective(word: str) -> type[objectives.Objective] | None:
    """The class that a word names, with its fields checked; None for one's own by import path."""
    name, fields = registry.parse("objective", word)
    if is_path(name):
        return None
    objectives.make(name, **fields)
    return objectives.find(name)


@pytest.mark.parametrize(
    "command",
    [
        "dgpo trian --task addition",
        "dgpo train --taks addition",
        "dgpo train --config recipes/no.yaml",
        "dgpo replay out/record --objectives dgop",
        "dgpo replay out/record --objectives dgpo:k=2",
        "dgpo verl-overrides --objective dgpo --k 2",
        "python -m verl.trainer.main_ppo $(dgpo verl-overrides --objective dgop) ...",
        "dgpo compare --config recipes/addition.yaml --objectives dgpo --seeds 0-4 --learn 3",
        "accelerate launch --config_file recipes/accelerate/no.yaml \"$(command -v dgpo)\" train --task addition",
        "pip install '.[trian]'",
        "make dome",
        "python studies/no.py",
        "dgop demo",
    ],
)  # fmt: skip
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        understand(command)


@pytest.mark.parametrize("page", [page for page in PAGES if any(out for _, out in commands(page))], ids=shown)
def test_outputs_of_commands_are_real(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of those that take no time, by running them."""
    for command, output in commands(page):
        words = shlex.split(command, comments=True)
        if not output:
            continue
        if words[:2] in (["dgpo", "verl-overrides"], ["dgpo", "--version"]):
            capsys.readouterr()
            assert main.run(words[1:]) == 0
            assert capsys.readouterr().out == output
        else:
            assert page.name in OUTPUTS_OF_RUNS, f"{command}: not run here"


# --- files ------------------------------------------------------------------------------------------------------------


def test_yaml_is_read_by_what_reads_it(tmp_path: Path) -> None:
    """Keys of `dgpo train`, the study of `dgpo compare`, or what another program reads."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    foreign = {name: list(keys) for name, keys in NOT_OURS.items()}
    flags = {action.dest for action in parser("train")._actions} - set(NOT_SETTINGS)
    count = 0
    for page, content in blocks("yaml"):
        count += 1
        if foreign.get(page.name):
            file = tmp_path / "other.yaml"
            file.write_text(content, encoding="utf-8")
            assert set(yaml_file.values(file)) == foreign[page.name].pop(0)
        elif page.name == "compare.md":
            (tmp_path / "studies").mkdir()
            study = tmp_path / "studies" / "mine.yaml"
            study.write_text(content, encoding="utf-8")
            assert study_file.study_of(study_file.read(study)).arms
        else:
            file = tmp_path / "recipes" / "dapo-math" / "mine.yaml"
            file.write_text(content, encoding="utf-8")
            assert set(yaml_file.read(file)) <= flags, page.name
    assert count >= 7
    assert not any(foreign.values()), "NOT_OURS lists a file that is not on the page"


def test_toml_and_json_are_valid() -> None:
    for _, content in blocks("toml"):
        tomllib.loads(content)
    for _, content in blocks("json"):
        json.loads(content)
