"""Grading only: completions that were generated elsewhere, against the problems of the benchmarks."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpo.counts import counted
from dgpo.evaluation.backends.backend import Completion, IncompleteError, truncated_of
from dgpo.evaluation.folder import read_configuration, write
from dgpo.evaluation.grading import graded_rows
from dgpo.evaluation.suite import Slot, Suite
from dgpo.evaluation.summary import require_ks, summary
from dgpo.files import FolderLock, loads
from dgpo.grading import texts_of
from dgpo.redaction import without_secrets
from dgpo.runs.results import CONFIGURATION, GENERATIONS, Evaluation

CHUNK = 4096
"""Completions graded at a time."""

LEFT_OUT = -1

KIND = "file"
"""The kind of back end in the records of such an evaluation."""

_PROBLEM = ("problem", "prompt")
_TEXTS = ("completions", "responses")
_TEXT = ("completion", "response")


def evaluate_saved(
    path: str | os.PathLike[str],
    suites: Suite | Sequence[Suite],
    *,
    out: str | os.PathLike[str] | None = None,
    ks: Iterable[int] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Grade the completions in a JSONL file and summarise them, as `evaluate` does with its own.

    A line is one of

    * a row of our `generations.jsonl`, which is graded again,
    * `{"id", "completion"}` or `{"id", "completions": [...]}`,
    * `{"problem"` or `"prompt", "response"` or `"responses": [...]}`, with the text of the problem or of its prompt,

    in any combination of these names, optionally with `benchmark`, `kind: "greedy"`, `tokens`, `truncated` and
    `finish_reason` ("stop" or "length"). A completion is text, a message or messages. An id or a text that several of
    the benchmarks have needs `benchmark`. Samples are numbered in the order of the file.

    The file does not contain model, temperature and other settings: they come from a `run.json` beside our own
    `generations.jsonl`, and are None otherwise.

    Args:
        path: the file.
        suites: what to grade against; every problem must be in the file, and every line of it in the suites.
        out: folder for the files of `write`; None writes nothing. Earlier grades in it are replaced, but not a run
            that generated its completions.
        ks: the k of pass@k; None takes the powers of two up to n, and n.
        progress: show a progress bar.

    Raises:
        ValueError: a line that is not understood or occurs twice, an id or text that no benchmark has (the first one is
            named), a problem other than the one with that id, a problem without completion, problems with different
            numbers of samples (avg@n wants equal ones), or a folder that contains a generated run or the
            grades of another file.
        OSError: if the file does not exist, or cannot be read.
    """
    started = time.perf_counter()
    suites = [suites] if isinstance(suites, Suite) else list(suites)
    path = Path(path)
    if not path.is_file():
        hint = f"; expected its {GENERATIONS}" if path.is_dir() else ""
        raise FileNotFoundError(f"generations = {str(path)!r} is not a file{hint}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if out is not None:
        _require_own(Path(out), path)
    # samples are numbered in the order of the file, before the rows are sorted
    found = _numbered(_read(path, _Index(suites)))
    samples, greedy = _counts(suites, found, path)
    require = require_ks(ks, samples)
    ordered = sorted(found, key=lambda one: _place(one[0], suites))
    rows = [row for chunk in _chunks(ordered, progress) for row in graded_rows(chunk)]
    before = _recorded(path.parent) if path.name == GENERATIONS else {}
    backend = {"kind": KIND, "file": path.name, "sha256": digest}
    run = {
        "model": before.get("model", path.name),
        "backend": {**backend, "generated_by": without_secrets(before.get("backend"))},
        "sampling": before.get("sampling", dict.fromkeys(("temperature", "top_p", "max_new_tokens", "seed"))),
        "prompt": before.get("prompt", {}),
        "benchmarks": {suite.name: {"grader": suite.grader.version, "data": suite.data()} for suite in suites},
    }
    run["sampling"] = {**run["sampling"], "samples": samples, "greedy": greedy}
    timing = {"completions": len(rows), "seconds": time.perf_counter() - started}
    evaluation = summary(suites, run, rows, require, timing)
    if out is not None:
        with FolderLock(out, "evaluating into", name=".lock"):
            _require_own(Path(out), path)  # again: another process may have been there meanwhile
            write(evaluation, out)
    return evaluation


def _require_own(folder: Path, path: Path) -> None:
    """Check that the folder is empty, or contains this file or grades of it (the file may have changed)."""
    there = _recorded(folder).get("backend", {})
    if there.get("kind", KIND) != KIND:
        raise ValueError(f"{str(folder)!r} holds an evaluation that generated its own completions; use another folder")
    if there.get("file", path.name) != path.name and path.parent.resolve() != folder.resolve():
        raise ValueError(f"{str(folder)!r} holds the grades of another file, {there['file']!r}; use another folder")


class _Index:
    """Problems by id, by text and by prompt; those that are left out have the index `LEFT_OUT`."""

    def __init__(self, suites: Sequence[Suite]) -> None:
        self.by_id: dict[str, list[tuple[Suite, int]]] = {}
        self.by_text: dict[str, list[tuple[Suite, int]]] = {}
        for suite in suites:
            counted = [(index, name, suite.problems[index]) for index, name in enumerate(suite.ids)]
            others = [(LEFT_OUT, str(problem["id"]), problem) for problem in suite.left_out if "id" in problem]
            for index, name, problem in counted + others:
                self.by_id.setdefault(name, []).append((suite, index))
                for text in _texts_of(problem):
                    self.by_text.setdefault(text, []).append((suite, index))

    def problem(self, row: Mapping[str, Any], where: str) -> tuple[Suite, int]:
        if "id" in row:
            what, found = f"id {row['id']!r}", self.by_id.get(str(row["id"]), [])
        elif key := next((key for key in _PROBLEM if key in row), None):
            what, found = f"{key} {_text(row[key])[:80]!r}", self.by_text.get(_text(row[key]), [])
        else:
            raise ValueError(f"{where} names no problem: expected id, problem or prompt; its keys: {', '.join(row)}")
        if "benchmark" in row:
            found = [one for one in found if one[0].name == row["benchmark"]]
            what += f" in benchmark {row['benchmark']!r}"
        if len(found) != 1:
            how = "no problem" if not found else counted(len(found), "problem")
            raise ValueError(f"{where} has the {what}, which {how} of the requested benchmarks has")
        suite, index = found[0]
        if index != LEFT_OUT:
            _require_same(row, suite.problems[index], f"{where} has the {what}")
        return suite, index


def _texts_of(problem: Mapping[str, Any]) -> set[str]:
    return {_text(problem["prompt"]), _text(problem.get("problem", problem["prompt"]))}


def _require_same(row: Mapping[str, Any], problem: Mapping[str, Any], what: str) -> None:
    """A row that says more than an id has to be about this problem: ids such as 0, 1, 2 fit any data."""
    for key in _PROBLEM:
        if key in row and _text(row[key]) not in _texts_of(problem):
            raise ValueError(
                f"{what}, but another {key}: {_text(row[key])[:60]!r}; expected {_text(problem['prompt'])[:60]!r}"
            )
    # `index` marks a row of our own, where `answer` is the gold; elsewhere it may be the model's
    if "answer" in row and "index" in row and str(row["answer"]) != str(problem["answer"]):
        raise ValueError(f"{what}, but the answer {row['answer']!r}; expected {problem['answer']!r}")


def _text(prompt: Any) -> str:
    return prompt.strip() if isinstance(prompt, str) else json.dumps(prompt)


def _read(path: Path, index: _Index) -> Iterator[tuple[Suite, int, bool, Completion]]:
    """Suite, number of the problem, whether greedy, completion."""
    seen: dict[tuple[str, int, str, int], str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"line {number} of {str(path)!r}"
            try:
                row = loads(line)
            except ValueError as error:
                raise ValueError(f"{where} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where} is a {type(row).__name__}; expected an object with id and completion")
            suite, problem = index.problem(row, where)
            if problem == LEFT_OUT:
                continue
            kind = row.get("kind", "sample")
            if kind not in ("greedy", "sample"):
                raise ValueError(f"{where} has kind = {kind!r}; expected 'greedy' or 'sample'")
            if isinstance(row.get("sample"), int):
                key = (suite.name, problem, kind, row["sample"])
                if key in seen:
                    raise ValueError(f"{where} is sample {row['sample']} of a problem that {seen[key]} has already")
                seen[key] = where
            tokens, truncated = row.get("tokens"), row.get("truncated")
            if not _is_count(tokens) or not isinstance(truncated, bool | None):
                said = f"tokens = {tokens!r} and truncated = {truncated!r}"
                raise ValueError(f"{where} has {said}; expected a whole number, and true or false")
            if "finish_reason" in row:
                try:
                    cut = truncated_of(row["finish_reason"])
                except IncompleteError as error:
                    raise ValueError(
                        f"{where} holds no completion: {error}; remove it, or generate it again"
                    ) from error
                truncated = cut if truncated is None else truncated
            texts = _texts(row, where)
            if len(texts) > 1:  # the length of all of them together is not that of each
                tokens = truncated = None
            for text in texts:
                yield suite, problem, kind == "greedy", Completion(text, tokens, truncated)


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    several = next((row[key] for key in _TEXTS if key in row), None)
    single = next((row[key] for key in _TEXT if key in row), None)
    given = several if several is not None else [single]
    try:
        texts = texts_of(given) if isinstance(given, list) else []
    except TypeError:
        texts = []
    if not texts:
        expected = f"expected text as {' or '.join(_TEXT)}, or a list of texts as {' or '.join(_TEXTS)}"
        raise ValueError(f"{where} has no completion: {expected}; its keys: {', '.join(row)}")
    return texts


def _is_count(tokens: Any) -> bool:
    return tokens is None or (isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0)


def _numbered(found: Iterable[tuple[Suite, int, bool, Completion]]) -> list[tuple[Slot, Completion]]:
    next_number: dict[tuple[str, int], int] = {}
    slots = []
    for suite, index, greedy, completion in found:
        number = None
        if not greedy:
            number = next_number.get((suite.name, index), 0)
            next_number[suite.name, index] = number + 1
        slots.append((Slot(suite, suite.ids[index], index, number), completion))
    return slots


def _counts(suites: Sequence[Suite], found: Sequence[tuple[Slot, Completion]], path: Path) -> tuple[int, bool]:
    """Samples per problem, and whether there are greedy completions; the same for every problem."""
    counts = {(suite.name, name): [0, 0] for suite in suites for name in suite.ids}
    for slot, _ in found:
        # [samples, greedy ones]
        counts[slot.suite.name, slot.id][slot.number is None] += 1
    expected: list[int] | None = None
    for (benchmark, name), count in counts.items():
        if count == [0, 0]:
            raise ValueError(f"{str(path)!r} has no completion for problem {name!r} of {benchmark}")
        expected = expected or count
        if count != expected or count[1] > 1:
            raise ValueError(
                f"{str(path)!r} has {counted(count[0], 'sample')} and {counted(count[1], 'greedy completion')} "
                f"for problem {name!r} of {benchmark}; expected {expected[0]} and {min(expected[1], 1)}, as for the "
                "first problem: avg@n needs as many for every problem"
            )
    assert expected is not None
    return expected[0], expected[1] == 1


def _place(slot: Slot, suites: Sequence[Suite]) -> tuple[int, int, int]:
    names = [suite.name for suite in suites]
    return names.index(slot.suite.name), slot.index, -1 if slot.number is None else slot.number


def _chunks(found: Sequence[tuple[Slot, Completion]], progress: bool) -> Iterator[Sequence[tuple[Slot, Completion]]]:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with tqdm(total=len(found), desc="grading", unit="completion", disable=not progress) as bar:
        for start in range(0, len(found), CHUNK):
            chunk = found[start : start + CHUNK]
            yield chunk
            bar.update(len(chunk))


def _recorded(folder: Path) -> dict[str, Any]:
    """The `run.json` of a folder; empty if there is none."""
    file = folder / CONFIGURATION
    return read_configuration(file) if file.exists() else {}
