r"""MathGrader: mathematical answers against golds, in processes that can be killed.

How a response is graded; each step handles only what the previous one could not decide:

1. its answer: in its last message, after the thinking, in the last `\boxed{}` (`answers.py`);
2. equal text, or numbers, which are compared exactly (`numbers.py`);
3. guards against answers that are too large, too costly or that hide something (`guards.py`);
4. in a worker with a deadline (`workers/`): its structure (`reading.py`) and its mathematics (`judge.py`).

Steps 1 to 3 run in the calling process, in time linear in the response; no text is ever evaluated as code.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import cast

from dgpo.counts import counted
from dgpo.grading.answers import boxed_answer, gold_answer, marked_answer
from dgpo.grading.mathematics import numbers
from dgpo.grading.mathematics.guards import guard
from dgpo.grading.mathematics.spelling import clean
from dgpo.grading.responses import Completion, text_of
from dgpo.grading.verdict import Reason, Verdict
from dgpo.grading.workers import Outcome, Pool, PoolSettings
from dgpo.installation import require
from dgpo.warning import warn

RULES = 2
"""Version of the rules: incremented when verdicts change, so that results under different rules are not compared."""

_MISSING = re.compile(r"[-+]?\s*(?:\\?(?:text|mathrm)\s*\{)?\s*(?:nan|null|<na>|nat)\s*\}?", re.I)

MAX_GOLD = 4096
"""In characters; longer golds are not read. A gold is an answer, or a solution that ends in one."""


_Job = tuple[str, str]
"""What a worker has to decide: gold and answer."""


class MathGrader:
    r"""Grades mathematical answers: 1.0, 0.0, or None where the gold cannot be used.

    Policy (docs/rewards.md gives the reasons): the last box counts, even if boxes differ; a response without a box
    scores 0; a hedge (`41=42`, `42 \text{ or } 43`, `\neq 42`) scores 0; integers are compared exactly, decimals with a
    relative tolerance of 10^-6.

    Workers start with the first answer that needs one. They end with `close()`, with the `with` block, or with this
    process, however it ends. Several threads may grade at once; a forked or spawned process gets its own workers.

    Args:
        workers: number of processes that compare formulas.
        deadline: wall-clock seconds for one comparison; a worker that exceeds it is killed and replaced.
        memory: bytes of address space of one worker.
        recycle: number of comparisons after which a worker is replaced, because computer algebra leaks memory.
        answer_marker: for responses without a box, such as `####` of GSM8K: the answer is the rest of the line after
            the last occurrence. None: a response without a box has no answer.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        deadline: float = 1.5,
        memory: int = 2 * 2**30,
        recycle: int = 1000,
        answer_marker: str | None = None,
    ) -> None:
        require("MathGrader needs", "math", "math_verify")
        if answer_marker is not None and not answer_marker.strip():
            raise ValueError(f"answer_marker = {answer_marker!r} is not allowed; expected text such as '####', or None")
        self.answer_marker = answer_marker
        self.deadline = deadline
        self.reasons: Counter[Reason] = Counter()
        judge = str(Path(__file__).resolve().parent / "mathematics" / "judge.py")
        self._pool = Pool(
            PoolSettings(judge_file=judge, workers=workers, deadline=deadline, memory=memory, recycle=recycle)
        )
        self._lock = _Lock()
        self._warned: set[str] = set()

    @property
    def version(self) -> str:
        """Versions of the rules and of the parser, as recorded with results."""
        marker = f", answers after {self.answer_marker!r}" if self.answer_marker else ""
        parsers = ", ".join(
            f"{name} {metadata.version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")
        )
        return f"dgpo MathGrader {RULES} ({parsers}; deadline {self.deadline:g} s{marker})"

    def grade(self, response: Completion, gold: str) -> Verdict:
        """The verdict on one response; see `grade_many`."""
        return self.grade_many([response], [gold])[0]

    def grade_many(self, responses: Sequence[Completion], golds: Sequence[str]) -> list[Verdict]:
        r"""One verdict per response, in order. A slow one delays the others by at most the deadline.

        Args:
            responses: what a model wrote, including its thinking: texts, messages or conversations (`text_of`).
            golds: bare (`\frac{1}{2}`), in dollars, in a box, or a solution that ends in a box or in `#### 42`.

        Raises:
            ValueError: the lengths differ, or the grader is closed.
            TypeError: a gold is not text, or a response is neither text nor messages.
        """
        if len(responses) != len(golds):
            raise ValueError(
                f"{counted(len(responses), 'response')} and {len(golds)} golds; expected one gold for each response"
            )
        decided: list[Verdict | _Job] = []
        for place, (response, gold) in enumerate(zip(responses, golds, strict=True)):
            if not isinstance(gold, str):
                raise TypeError(f"golds[{place}] is of type {type(gold).__name__}; expected text")
            decided.append(self._decide(text_of(response, f"responses[{place}]"), gold))
        jobs = list(dict.fromkeys(one for one in decided if isinstance(one, tuple)))  # equal answers are compared once
        outcomes = dict(zip(jobs, self._pool.run(jobs) if jobs else [], strict=True))
        verdicts = [_verdict(outcomes[one], one[1]) if isinstance(one, tuple) else one for one in decided]
        self._record(verdicts, list(outcomes.values()))
        return verdicts

    def usable(self, golds: Sequence[str]) -> list[bool]:
        """Whether each gold can be compared with anything: not empty, not too long, and mathematics or words.

        An answer with exactly the text of a gold that cannot be read still matches it. An evaluation asks first and
        excludes such problems, so that the set of problems does not depend on the model.
        """
        answers = [gold_answer(gold) for gold in golds]
        jobs = sorted({text for text in answers if _usable(text) and numbers.number(_bare(text)) is None})
        outcomes = self._pool.run([(job,) for job in jobs]) if jobs else []
        unreadable = {job for job, outcome in zip(jobs, outcomes, strict=True) if outcome.value != "readable"}
        return [_usable(text) and text not in unreadable for text in answers]

    def _decide(self, response: str, gold: str) -> Verdict | _Job:
        started = time.perf_counter()

        def verdict(reason: Reason, answer: str | None) -> Verdict:
            score = None if reason == "bad_gold" else float(reason == "match")
            return Verdict(score, reason, time.perf_counter() - started, answer)

        expected = gold_answer(gold)
        answer = boxed_answer(response)
        if answer is None and self.answer_marker is not None:
            answer = marked_answer(response, self.answer_marker)
        # first: which problems are excluded must not depend on the response
        if not _usable(expected):
            return verdict("bad_gold", answer)
        if answer is None:
            return verdict("no_answer", None)
        # before the guards: equal text needs no parser, however large it is
        if numbers.squeeze(answer) == numbers.squeeze(expected):
            return verdict("match", answer)
        bare = _bare(expected), _bare(answer)
        # long numbers are settled here exactly; the guard below refuses them
        values = numbers.number(bare[0]), numbers.number(bare[1])
        if values[0] is not None and values[1] is not None:
            same = numbers.equal(bare[0], values[0], bare[1], values[1])
            return verdict("match" if same else "mismatch", answer)
        if guard(answer, expected) is not None:
            return verdict("guarded", answer)
        return expected, answer

    def _record(self, verdicts: Sequence[Verdict], outcomes: Sequence[Outcome]) -> None:
        """Count the reasons, and warn of errors and late answers."""
        with self._lock:
            self.reasons.update(verdict.reason for verdict in verdicts)
        if errors := [outcome.value for outcome in outcomes if outcome.status == "error"]:
            self._warn_once(
                "error",
                f"comparing {counted(len(errors), 'answer')} raised an error, with score 0 as 'unparsed'. "
                f"The first: {errors[0]}",
            )
        if late := sum(verdict.reason == "timeout" for verdict in verdicts):
            self._warn_once(
                "timeout",
                f"{counted(late, 'answer')} exceeded the deadline of {self.deadline:g} s (or the memory limit of a "
                "worker), with score 0 and reason 'timeout'; MathGrader.reasons counts such answers",
            )

    def _warn_once(self, kind: str, text: str) -> None:
        with self._lock:
            first = kind not in self._warned
            self._warned.add(kind)
        if first:
            warn(f"{text}. This warning is shown once", RuntimeWarning)

    def close(self) -> None:
        """End the workers. Grading afterwards raises ValueError."""
        self._pool.close()

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Lock:
    """A lock that is free in a copy and in a forked child, even if another thread of the parent held it at the fork."""

    def __init__(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()

    def __enter__(self) -> None:
        if self._owner != os.getpid():
            self._owner, self._lock = os.getpid(), threading.Lock()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[object, ...]:
        return _Lock, ()


def _usable(gold: str) -> bool:
    """Whether a gold can be read: not empty, not too long, and not a missing value that became text."""
    return 0 < len(gold) <= MAX_GOLD and _MISSING.fullmatch(gold) is None


def _bare(text: str) -> str:
    """In one spelling, without dollars or a full stop; texts too long to be a number as they are."""
    return clean(text) if len(text) <= numbers.MAX_CHARACTERS else text


def _verdict(outcome: Outcome, answer: str) -> Verdict:
    """The verdict of a worker. It died if it ran out of memory, and raised if its parser cannot read the answer."""
    if outcome.status in ("timeout", "died"):
        return Verdict(0.0, "timeout", outcome.seconds, answer)
    reason = cast(Reason, outcome.value) if outcome.status == "ok" else "unparsed"
    return Verdict(None if reason == "bad_gold" else float(reason == "match"), reason, outcome.seconds, answer)
