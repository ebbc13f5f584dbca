"""The files by which a public host runs this repository: they parse, and call `make` targets that exist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
NEEDS_A_TOKEN = {("docs.yml", "publish"), ("release.yml", "publish")}
"""Jobs that may prove who they are to somebody else; they run nothing of the repository."""


def read(path: Path) -> dict[str, Any]:
    """A YAML file; YAML 1.1 takes the key `on` for true."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            yield path.name, name, job


JOBS = list(jobs())
IDS = [f"{file}:{name}" for file, name, _ in JOBS]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def expanded(text: str, job: dict[str, Any]) -> list[str]:
    """A text with every value of the matrix."""
    rows = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    filled = [re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found, row=row: row[found[1]], text) for row in rows]
    return list(dict.fromkeys(filled))


def test_they_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "docs.yml", "release.yml", "weekly.yml"]
    assert len(JOBS) == 10


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=IDS)
def test_every_step_has_a_name_and_calls_make(file: str, name: str, job: dict[str, Any]) -> None:
    known = targets()
    called = []
    for step in job["steps"]:
        assert re.fullmatch(r"[A-Z][\w ,]+", step["name"])
        assert ("run" in step) is not ("uses" in step)
        if "run" in step:
            commands = expanded(step["run"], job)
            assert all(re.fullmatch(r"make [a-z-]+", command) for command in commands), commands
            called += [command.removeprefix("make ") for command in commands]
    assert set(called) <= known
    assert bool(called) is ((file, name) not in NEEDS_A_TOKEN)
    assert job["timeout-minutes"] <= 360


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=IDS)
def test_actions_have_a_version_and_checkouts_keep_no_token(file: str, name: str, job: dict[str, Any]) -> None:
    used = [step for step in job["steps"] if "uses" in step]
    for step in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", step["uses"])
        if "checkout" in step["uses"]:
            assert step["with"] == {"persist-credentials": False}


def test_one_version_of_each_action() -> None:
    used = {step["uses"] for _, _, job in JOBS for step in job["steps"] if "uses" in step}
    assert len({action.split("@")[0] for action in used}) == len(used)


def test_only_what_publishes_may_write() -> None:
    for path in WORKFLOWS:
        assert read(path)["permissions"] == {"contents": "read"}
    assert {(file, name) for file, name, job in JOBS if "permissions" in job} == NEEDS_A_TOKEN
    for file, name, job in JOBS:
        if (file, name) in NEEDS_A_TOKEN:
            assert job["permissions"].pop("id-token") == "write"
            assert job["needs"] == "build"
            assert job["environment"]["name"] in ("github-pages", "pypi")


def test_the_versions_of_python_are_those_that_the_package_claims() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert f">={claimed[0]}" == project["requires-python"]
    rows = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    on_linux = {row["python"] for row in rows if row["os"] == "ubuntu-latest"}
    assert on_linux == {claimed[0], claimed[-1]}
    assert "macos-latest" in {row["os"] for row in rows}


def test_when_they_run() -> None:
    when = {path.stem: read(path)["on"] for path in WORKFLOWS}
    assert when["ci"] == when["docs"] == {"push": {"branches": ["main"]}, "pull_request": None}
    assert when["release"] == {"push": {"tags": ["v*"]}}
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", when["weekly"]["schedule"][0]["cron"])


def test_what_lands_here_is_what_runs_there() -> None:
    """Every target of `.ci/run` is one of the jobs."""
    here = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    there = {
        command.removeprefix("make ")
        for file, _, job in JOBS
        for step in job["steps"]
        if file == "ci.yml" and "run" in step
        for command in expanded(step["run"], job)
    }
    assert set(here) <= there
    assert here


@pytest.mark.parametrize("path", FORMS, ids=[path.name for path in FORMS])
def test_forms_of_issues(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "checkboxes", "dropdown")
        assert field["attributes"]["label"]


def test_pre_commit_has_the_ruff_of_this_repository() -> None:
    hooks = {repo["repo"]: repo for repo in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert hooks["https://github.com/astral-sh/ruff-pre-commit"]["rev"] == f"v{pinned[1]}"
    (lint,) = hooks["local"]["hooks"]
    assert lint["entry"].removeprefix("make ") in targets()


def test_documents_that_a_public_repository_has() -> None:
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", ".github/pull_request_template.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z-]+)`", text):
            assert target in targets(), (name, target)
        for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert (ROOT / link).exists(), (name, link)
