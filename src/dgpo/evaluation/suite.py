"""What is evaluated: problems with a grader, under a name."""

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
        name: of the benchmark, in every result.
        problems: [P] mappings with "prompt" (text or chat messages), "answer" and, unless their number in the list
            will do, "id"; rows of a `datasets.Dataset` will do.
        grader: what grades the completions.
        provenance: where the problems come from, for the records.
        left_out: problems of the benchmark that are not evaluated; completions of theirs in a file are passed over.

    Raises:
        ValueError: no problems, a problem without prompt or answer, an id that occurs twice.
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
            raise ValueError(f"{self.name}: {times} problems have the id {identifier!r}; expected an id of their own")

    @cached_property
    def ids(self) -> list[str]:
        """[P] the ids of the problems, as text."""
        return [str(problem.get("id", index)) for index, problem in enumerate(self.problems)]

    @cached_property
    def unusable(self) -> frozenset[str]:
        """Ids of the problems whose reference answer the grader cannot use, whatever a completion says."""
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
    """One completion that belongs to a run: which problem of which suite, and which of its completions."""

    suite: Suite
    id: str
    index: int
    number: int | None
    """Of the sample; None for the greedy completion."""

    @property
    def problem(self) -> Mapping[str, Any]:
        return self.suite.problems[self.index]

    @property
    def key(self) -> tuple[str, str, int | None]:
        """Benchmark, id and number: the same in every run."""
        return self.suite.name, self.id, self.number

    def request(self, seed: int) -> Request:
        """To the backend. Its seed is 31 bits wide, which every server takes."""
        text = json.dumps([seed, *self.key])
        derived = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        return Request(self.problem["prompt"], derived, greedy=self.number is None)


def plan(suites: Sequence[Suite], sampling: Sampling, greedy: bool) -> list[Slot]:
    """Every completion of a run in canonical order: by suite, by problem, the greedy one first.

    Raises:
        ValueError: nothing to generate, no suites, two suites of one name.
    """
    if sampling.samples == 0 and not greedy:
        raise ValueError("samples = 0 with greedy = False; expected samples >= 1, or 0 with greedy = True")
    if not suites:
        raise ValueError("suites is empty; expected at least one Suite")
    name, times = Counter(suite.name for suite in suites).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} suites are called {name!r}; expected every name once")
    numbers = [*([None] if greedy else []), *range(sampling.samples)]
    return [
        Slot(suite, identifier, index, number)
        for suite in suites
        for index, identifier in enumerate(suite.ids)
        for number in numbers
    ]
