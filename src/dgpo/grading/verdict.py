"""The verdict on one response, and the protocol of a grader."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from dgpo.counts import counted
from dgpo.grading.responses import Completion, text_of

Reason = Literal["match", "mismatch", "no_answer", "unparsed", "guarded", "timeout", "bad_gold"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Verdict:
    """The grade of one response.

    Attributes:
        score: 1.0 or 0.0; None if the gold cannot be used, so that the response cannot be judged.
        reason: `match`; `mismatch`: compared, and different; `no_answer`: the response has none; `unparsed`: the answer
            cannot be read as mathematics; `guarded`: refused before it was read, because it is too large, too costly
            to compare, or a hedge; `timeout`: not compared within the deadline; `bad_gold`: the gold cannot be used.
            Only `match` scores 1.0. `unparsed` and `timeout` may be failures of the grader: watch their rates.
        seconds: wall-clock time of the grading.
        answer: the answer found in the response; None if there is none.
    """

    score: float | None
    reason: Reason
    seconds: float
    answer: str | None = None


class Grader(Protocol):
    """Anything that grades responses against golds, in order."""

    @property
    def version(self) -> str:
        """What decides the verdicts, with versions; recorded with every result."""

    def grade_many(self, responses: Sequence[Completion], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per response; a response is a text, a message or a conversation."""

    def usable(self, golds: Sequence[str]) -> list[bool]:
        """Whether each gold can be compared with anything."""


@dataclass(frozen=True)
class FunctionGrader:
    """A pure function (completion, answer) -> 1.0 or 0.0 as a grader. It runs in this process: it must not hang.

    Args:
        function: the grade of one completion.
        version: see `Grader.version`.
        extract: the answer in a completion, None if there is none. Without it, the whole completion is the answer.
    """

    function: Callable[[str, str], float]
    version: str
    extract: Callable[[str], str | None] | None = None

    def grade_many(self, responses: Sequence[Completion], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per response. Raises ValueError if the lengths differ, or for a grade other than 0 and 1."""
        if len(responses) != len(golds):
            raise ValueError(
                f"{counted(len(responses), 'response')} and {len(golds)} golds; expected one gold for each response"
            )
        return [self._grade(text_of(response), gold) for response, gold in zip(responses, golds, strict=True)]

    def _grade(self, response: str, gold: str) -> Verdict:
        started = time.perf_counter()
        score = float(self.function(response, gold))
        if score not in (0.0, 1.0):
            raise ValueError(f"{self.version} graded {response[:80]!r} with {score}; expected 0 or 1")
        answer = (response.strip() or None) if self.extract is None else self.extract(response)
        reason: Reason = "match" if score else "mismatch" if answer is not None else "no_answer"
        return Verdict(score, reason, time.perf_counter() - started, answer)

    def usable(self, golds: Sequence[str]) -> list[bool]:
        """True for every gold that is not empty."""
        return [bool(gold.strip()) for gold in golds]
