"""Benchmarks from local files or the hub, with their content checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo.counts import counted
from dgpo.files import first_line, loads
from dgpo.registry import did_you_mean
from dgpo.tasks.benchmark_table import BENCHMARKS, Benchmark, Content
from dgpo.tasks.content import answers_hash, content_hash, text_hash
from dgpo.tasks.prompt import BOXED, PromptFormat
from dgpo.tasks.task import Problem, check_split, dataset_of

if TYPE_CHECKING:
    from datasets import Dataset

Row = tuple[str, str, str]
"""id, problem, answer."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """One benchmark. Its answers are mathematics: `grade` is None, and `dgpo.rewards.MathGrader` grades them.

    Args:
        name: one of `dgpo.tasks.BENCHMARKS`.
        data_dir: folder with its file, JSONL with `id`, `problem` and `answer`; None: the Hugging Face hub.
        prompt: format of the prompts.
        exclude_known_wrong: exclude problems whose gold is known to be wrong upstream. Results are then not comparable
            with published ones.
        revision: commit of the hub data set instead of the one in the table.

    Raises:
        ValueError: an unknown benchmark, or a revision for local files.
    """

    kind: ClassVar[str] = "benchmark"
    grade: ClassVar[None] = None
    extract: ClassVar[None] = None
    reward: ClassVar[None] = None

    name: str
    data_dir: str | Path | None = None
    prompt: PromptFormat = BOXED
    exclude_known_wrong: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            raise ValueError(f"unknown benchmark {self.name!r}{did_you_mean(self.name, BENCHMARKS)}; known: {known}")
        if self.revision is not None and self.data_dir is not None:
            raise ValueError(
                f"revision = {self.revision!r} names a commit of a hub data set, but data_dir = "
                f"{str(self.data_dir)!r} is given"
            )

    @property
    def about(self) -> Benchmark:
        """Its entry in the table."""
        return BENCHMARKS[self.name]

    @property
    def summary(self) -> str:
        """One line for the listing."""
        return self.about.summary

    @property
    def max_new_tokens(self) -> int:
        """Default token budget of a completion."""
        return self.about.max_new_tokens

    @property
    def splits(self) -> tuple[str, ...]:
        """`test`, and `train` where the benchmark has one."""
        return tuple(self.about.content)

    def problems(self, split: str = "test") -> list[Problem]:
        """The problems of one split as {"id", "problem", "prompt", "answer"}, in the order of the source.

        Raises:
            ValueError: an unknown split, or a file or data set with other content.
            OSError: a missing file, or a hub data set that cannot be loaded.
        """
        rows, _ = self._load(split)
        return [
            {"id": id, "problem": problem, "prompt": self.prompt.render(problem), "answer": answer}
            for id, problem, answer in rows
        ]

    def dataset(self, split: str = "test") -> Dataset:
        """The same as a `datasets.Dataset` with the columns `prompt` and `answer`. Raises as `problems` does."""
        return dataset_of(self.problems(split))

    def provenance(self, split: str = "test") -> dict[str, Any]:
        """Where the problems come from and what was checked, JSON-ready.

        `checked` is `content` (problems, answers and order match the reference files), `answers` (the number of rows
        and the answers match) or `unverified` (only the number of rows does). `sha256` is over all rows, before any
        exclusion; `excluded` lists the excluded ids. Raises as `problems` does.
        """
        return self._load(split)[1]

    def _load(self, split: str) -> tuple[list[Row], dict[str, Any]]:
        if split not in self.splits and split in ("train", "validation"):
            raise ValueError(f"{self.name!r} is for evaluation: it has no {split} split, only {', '.join(self.splits)}")
        check_split(self.name, split, self.splits)
        content = self.about.content[split]
        if self.data_dir is not None:
            rows, source = self._from_file(content)
            expected_rows = content.rows
        else:
            rows, source = self._from_hub(content, split)
            expected_rows = content.hub.rows
        where = source["source"]
        if len(rows) != expected_rows:
            raise ValueError(
                f"{self.name} ({split}) from {where} has {counted(len(rows), 'row')}; expected {expected_rows}"
            )
        _check_ids(rows, where)
        found = content_hash((problem, answer) for _, problem, answer in rows)
        # hub copies differ in their texts, so that equal answers suffice; a local file has to match
        checked = "content" if found == content.sha256 else self._check_answers(rows, content, where)
        if self.data_dir is not None and checked != "content":
            raise ValueError(
                f"the content of {where} is not that of {self.name} ({split}): SHA-256 {found}; expected "
                f"{content.sha256} (of problems and answers in order, white space normalised)"
            )
        kept, excluded = self._exclude(rows, where) if self.exclude_known_wrong else (rows, [])
        known = [id for id, wrong in self.about.known_wrong.items() if _find(rows, wrong.problem_sha256) is not None]
        return kept, {
            **source,
            "split": split,
            "rows": len(kept),
            "sha256": found,
            "checked": checked,
            "known_wrong": known,
            "excluded": excluded,
            "licence": self.about.licence,
        }

    def _from_file(self, content: Content) -> tuple[list[Row], dict[str, Any]]:
        assert self.data_dir is not None
        path = Path(self.data_dir).expanduser() / content.file
        if not path.is_file():
            raise FileNotFoundError(f"no file {content.file!r} for {self.name} in the folder {str(self.data_dir)!r}")
        with path.open(encoding="utf-8") as lines:
            rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
        return rows, {"source": content.file, "revision": None}

    def _from_hub(self, content: Content, split: str) -> tuple[list[Row], dict[str, Any]]:
        from datasets import load_dataset

        hub = content.hub
        revision = self.revision or hub.revision
        try:
            data = load_dataset(hub.name, hub.config, split=hub.split, revision=revision)
        except (OSError, ValueError) as error:
            raise OSError(
                f"{self.name}: cannot get {hub.name!r} from the hub ({first_line(error)}); with the "
                f"problems in a local {content.file!r}, give its folder as data_dir (--data-dir)"
            ) from error
        where = f"{hub.name}@{revision}" if revision else hub.name
        for column in filter(None, (hub.problem, hub.answer, hub.id)):
            if column not in data.column_names:
                raise ValueError(
                    f"{self.name} from {where} has no column {column!r}; its columns: {', '.join(data.column_names)}"
                )
        part = f"{split}-" if len(self.splits) > 1 else ""
        rows = []
        for number, row in enumerate(data):
            answer = row[hub.answer]
            given = ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
            id = f"{self.about.prefix}{part}{number if hub.id is None else row[hub.id]}"
            rows.append((id, _text(row[hub.problem]), self.about.clean(given)))
        return rows, {"source": hub.name, "config": hub.config, "hub_split": hub.split, "revision": revision}

    def _check_answers(self, rows: list[Row], content: Content, where: str) -> str:
        if content.answers_sha256 is None:
            return "unverified"
        found = answers_hash(answer for _, _, answer in rows)
        if found != content.answers_sha256:
            raise ValueError(
                f"the answers of {self.name} from {where} are not the known ones: SHA-256 {found}; expected "
                f"{content.answers_sha256} (of the sorted integers)"
            )
        return "answers"

    def _exclude(self, rows: list[Row], where: str) -> tuple[list[Row], list[str]]:
        excluded = []
        for id, wrong in self.about.known_wrong.items():
            row = _find(rows, wrong.problem_sha256)
            if row is None:
                raise ValueError(
                    f"exclude_known_wrong: {where} has no problem with the text of {id}, so the wrong gold cannot be "
                    "identified; use the local files, or omit the option"
                )
            excluded.append(row[0])
        return [row for row in rows if row[0] not in excluded], excluded


def _find(rows: list[Row], problem_sha256: str) -> Row | None:
    return next((row for row in rows if text_hash(row[1]) == problem_sha256), None)


def _row(line: str, where: str) -> Row:
    try:
        row = loads(line)
        return str(row["id"]), _text(row["problem"]), _text(row["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: expected a JSON object with the texts id, problem and answer; got {line[:80]!r} "
            f"({type(error).__name__}: {error})"
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is of type {type(value).__name__}, not text")
    return value


def _check_ids(rows: list[Row], where: str) -> None:
    seen: set[str] = set()
    for id, _, _ in rows:
        if id in seen:
            raise ValueError(f"{where} has the duplicate id {id!r}")
        seen.add(id)
