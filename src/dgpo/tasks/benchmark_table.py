"""What is known about the benchmarks: the types of the table in `benchmarks.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpo.tasks.content import after_hashes, canonical_integer, without_dollars


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A data set on the Hugging Face hub, and how its columns map.

    Attributes:
        name, config, split: as `datasets.load_dataset` takes them.
        problem, answer: its columns.
        id: column from which ids are made, after the benchmark's prefix; None: the row number is used.
        rows: how many rows it has; copies differ.
        revision: a commit that public evaluation code pins; None if none was found.
    """

    name: str
    config: str | None = None
    split: str = "test"
    problem: str = "problem"
    answer: str = "answer"
    id: str | None = None
    rows: int
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """One split of a benchmark.

    Attributes:
        file: its file in a data folder, JSONL with id, problem and answer.
        rows: problems in that file.
        sha256: `content_hash` of that file.
        answers_sha256: `answers_hash`, for benchmarks with integer answers; the same for every copy.
        hub: the same on the hub.
    """

    file: str
    rows: int
    sha256: str
    answers_sha256: str | None = None
    hub: Hub


@dataclass(frozen=True, kw_only=True)
class KnownWrong:
    """A gold that is wrong upstream. Found by the hash of its problem's text, because ids differ between copies."""

    gold: str
    should_be: str
    why: str
    problem_sha256: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is known about one benchmark.

    Attributes:
        prefix: of the ids of rows from the hub.
        clean: applied to every answer of a hub copy, so that it matches the files; the table names a function of
            `content.py`.
        known_wrong: by id in the file.
        unparsed: ids whose gold math-verify 0.9.0 cannot read; their reason is `bad_gold`.
        max_new_tokens: default token budget of a completion.
    """

    name: str
    summary: str
    licence: str
    content: Mapping[str, Content]
    prefix: str
    clean: Callable[[str], str] = str.strip
    known_wrong: Mapping[str, KnownWrong] = field(default_factory=dict)
    unparsed: Sequence[str] = ()
    max_new_tokens: int = 8192


_CLEAN = {function.__name__: function for function in (canonical_integer, after_hashes, without_dollars)}


def _benchmark(name: str, row: dict[str, Any]) -> Benchmark:
    content = {split: Content(**{**part, "hub": Hub(**part["hub"])}) for split, part in row.pop("content").items()}
    wrong = {id: KnownWrong(**part) for id, part in row.pop("known_wrong", {}).items()}
    clean = _CLEAN[row.pop("clean")] if "clean" in row else str.strip
    return Benchmark(name=name, content=content, known_wrong=wrong, clean=clean, **row)


_TABLE = tomllib.loads(Path(__file__).with_name("benchmarks.toml").read_text(encoding="utf-8"))
BENCHMARKS: dict[str, Benchmark] = {name: _benchmark(name, row) for name, row in _TABLE.items()}
