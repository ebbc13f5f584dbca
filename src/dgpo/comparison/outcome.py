"""What one run of a comparison came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dgpo.counts import counted
from dgpo.fields import check_value

Measure = Literal["final", "area"]
MEASURES: tuple[Measure, ...] = ("final", "area")
"""The score of the last evaluation, and the mean score over training (`Outcome.area`)."""


@dataclass(frozen=True)
class Outcome:
    """The evaluations of one run: a method in one setting, on one task, from one seed.

    Runs with the same task and seed start from the same checkpoint and see the same data in the same order, whatever
    their arm: differences are paired by seed.

    Attributes:
        arm: label of the method and its setting. It is the same for every seed and task.
        seed: of the run.
        task: what the run was trained and evaluated on; a stratum of the statistics.
        steps: optimiser steps of the evaluations, increasing. The first is 0, before training.
        scores: mean score in [0, 1] of each evaluation.
        problems: problem id -> its mean score in [0, 1] in the last evaluation; empty if that is not known.
        diverged: why the run counts as diverged; None if it does not. A diverged run is counted like any other.

    Raises:
        ValueError: a label is empty, the seed is not an integer, steps do not start at 0 or do not increase, steps and
            scores differ in length, or a score is not in [0, 1].
    """

    arm: str
    seed: int
    task: str
    steps: tuple[int, ...]
    scores: tuple[float, ...]
    problems: Mapping[str, float] = field(default_factory=dict)
    diverged: str | None = None

    def __post_init__(self) -> None:
        for name, text in (("arm", self.arm), ("task", self.task), ("diverged", self.diverged)):
            if not isinstance(text, str) and not (text is None and name == "diverged"):
                raise ValueError(f"Outcome: {name} = {text!r}; expected a text")
            if text is not None and not text.strip():
                raise ValueError(f"Outcome: {name} = {text!r}; expected a text that is not empty")
        check_value("Outcome: seed", self.seed, "(-inf, inf)", whole=True)
        if len(self.steps) != len(self.scores):
            raise ValueError(
                f"{self}: {counted(len(self.steps), 'step')} and {len(self.scores)} scores; expected one for each"
            )
        for step in self.steps:
            check_value(f"{self}: step", step, "[0, inf)", whole=True)
        if not self.steps or self.steps[0] != 0:
            raise ValueError(
                f"{self}: steps = {self.steps}; expected the first to be 0, the evaluation before training"
            )
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"{self}: steps = {self.steps}; expected increasing ones")
        for step, score in zip(self.steps, self.scores, strict=True):
            check_value(f"{self}: score at step {step}", score, "[0, 1]")
        for problem, score in self.problems.items():
            check_value(f"{self}: score of problem {problem!r}", score, "[0, 1]")
        # numpy's numbers become plain ones, which JSON takes
        for name, plain in (
            ("seed", int(self.seed)),
            ("steps", tuple(map(int, self.steps))),
            ("scores", tuple(map(float, self.scores))),
            ("problems", {problem: float(score) for problem, score in self.problems.items()}),
        ):
            object.__setattr__(self, name, plain)

    def __str__(self) -> str:
        return f"{self.arm} on {self.task}, seed {self.seed}"

    @property
    def final(self) -> float:
        """The score of the last evaluation."""
        return self.scores[-1]

    @property
    def area(self) -> float:
        """Area under the curve, divided by its length, so in [0, 1]::

            sum_i (x_(i+1) - x_i) (y_i + y_(i+1)) / 2 / (x_last - x_first)

        with steps x and scores y. It is the mean score over training, and the only score if there is no other.
        """
        if len(self.steps) == 1:
            return self.final
        return float(np.trapezoid(self.scores, self.steps)) / (self.steps[-1] - self.steps[0])

    def until(self, steps: tuple[int, ...]) -> Outcome:
        """This run on the steps of a complete one, where it diverged before the last of them.

        It counts as 0 at every step that it did not reach, and on every problem: it left no policy that could be
        scored, and any other value would count a run that broke as one that stayed where it was.

        Returns:
            the run itself if it reached the last step.

        Raises:
            ValueError: it did not reach the last step and is not `diverged`: then it is incomplete, and has no score.
        """
        missing = [step for step in steps if step > self.steps[-1]]
        if not missing:
            return self
        if self.diverged is None:
            raise ValueError(
                f"{self}: the last evaluation is at step {self.steps[-1]} of {steps[-1]}, and it did not diverge; "
                "expected a finished run"
            )
        return Outcome(
            self.arm,
            self.seed,
            self.task,
            (*self.steps, *missing),
            (*self.scores, *[0.0] * len(missing)),
            dict.fromkeys(self.problems, 0.0),
            self.diverged,
        )
