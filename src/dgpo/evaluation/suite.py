"""Benchmarks: named sets of problems with a grader."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dgpo.evaluation.backends.backend import Request, Sampling
from dgpo.grading import Grader


@dataclass(frozen=True)
class Suite:
    """One benchmark of an evaluation.

    Args:
        name: name of the benchmark in all results.
        problems: [P] mappings with "prompt" (text or chat messages), "answer" and optionally "id"
            (default their index); rows of a `datasets.Dataset` also work.
        grader: grades the completions.
        provenance: source of the problems, recorded in the results.
        left_out: problems of the benchmark that are not evaluated; their completions in a file are skipped.

    Raises:
        ValueError: if there are no problems, one has no prompt or answer, or an id is duplicate.
    """

    name: str
    problems: Sequence[Mapping[str, Any]]
    grader: Grader
    provenance: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for index, problem in enumerate(self.problems):
            if missing := [key for key in ("prompt", "answer") if key not in problem]:
                raise ValueError(
                    f"{self.name}: problems[{index}] has no {' and no '.join(missing)}; its keys: {', '.join(problem)}"
                )
        if len(self.problems) == 0:
            raise ValueError(
                f"{self.name}: problems is empty; expected at least one mapping with 'prompt' and 'answer'"
            )
        identifier, times = Counter(self.ids).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{self.name}: duplicate id {identifier!r} of {times} problems; expected unique ids")

    @cached_property
    def ids(self) -> list[str]:
        """[P] the ids of the problems, as text."""
        return [str(problem.get("id", index)) for index, problem in enumerate(self.problems)]

    @cached_property
    def unusable(self) -> frozenset[str]:
        """Ids of the problems whose reference answer the grader cannot use, independent of completions."""
        usable = self.grader.usable([str(problem["answer"]) for problem in self.problems])
        return frozenset(name for name, can in zip(self.ids, usable, strict=True) if not can)

    def data(self) -> dict[str, Any]:
        """The provenance, with a `sha256` over ids, prompts and answers of exactly these problems as `evaluated`."""
        content = [
            [name, problem["prompt"], str(problem["answer"])]
            for name, problem in zip(self.ids, self.problems, strict=True)
        ]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return {"sha256": digest, **self.provenance, "evaluated": {"rows": len(content), "sha256": digest}}


@dataclass(frozen=True)
class Slot:
    """One completion of a run: suite, problem and sample number."""

    suite: Suite
    id: str
    index: int
    number: int | None
    """Number of the sample; None for the greedy completion."""

    @property
    def problem(self) -> Mapping[str, Any]:
        return self.suite.problems[self.index]

    @property
    def key(self) -> tuple[str, str, int | None]:
        """Benchmark, id and number: the same in every run."""
        return self.suite.name, self.id, self.number

    def request(self, seed: int) -> Request:
        """The request for the back end, with a seed of 31 bits, which every server accepts."""
        text = json.dumps([seed, *self.key])
        derived = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        return Request(self.problem["prompt"], derived, greedy=self.number is None)


def plan(suites: Sequence[Suite], sampling: Sampling, greedy: bool) -> list[Slot]:
    """Every completion of a run in canonical order: by suite, by problem, the greedy one first.

    Raises:
        ValueError: if there is nothing to generate, there are no suites, or two have the same name.
    """
    if sampling.samples == 0 and not greedy:
        raise ValueError("samples = 0 with greedy = False; expected samples >= 1, or 0 with greedy = True")
    if not suites:
        raise ValueError("suites is empty; expected at least one Suite")
    name, times = Counter(suite.name for suite in suites).most_common(1)[0]
    if times > 1:
        raise ValueError(f"duplicate name {name!r} of {times} suites; expected unique names")
    numbers = [*([None] if greedy else []), *range(sampling.samples)]
    return [
        Slot(suite, identifier, index, number)
        for suite in suites
        for index, identifier in enumerate(suite.ids)
        for number in numbers
    ]
