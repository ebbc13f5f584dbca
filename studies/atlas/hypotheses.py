"""The comparisons that README.md registered, from the recorded runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from arms import ABLATION, DIVERGING, HARD, METHODS, SOFT, TASKS
from collapse import events
from numpy.typing import NDArray
from recorded import Stack, final, tuning
from scipy.stats import fisher_exact, kendalltau

from dgpo.comparison import statistics
from dgpo.evaluation.paired import holm, sign_flip_p_value

MATTERS = 0.02
"""The smallest difference in the primary score that matters."""
STALE = (16, 64)
NINE = tuple(f"dgpo({n},{m})" for n in (1, 2, 3) for m in (1, 2, 3))

Verdict = Literal["yes", "no", "open"]
Cells = Mapping[tuple[str, int, str], Stack]


@dataclass(frozen=True)
class Comparison:
    """One comparison of two sides.

    Attributes:
        hypothesis: its number; 0 if it was not registered.
        task, k: where; k is None where several stand for one comparison.
        what: the two sides, the first minus the second. A hypothesis says that the first is ahead, except 7, which says
            that it is not.
        difference, low, high: mean of the paired differences in the primary score, and its 95 % interval.
        p, adjusted: of the sign-flip test, and after Holm's correction within the hypothesis.
        final: the difference in the final score.
    """

    hypothesis: int
    task: str
    k: int | None
    what: str
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    final: float

    @property
    def verdict(self) -> Verdict:
        """As README.md defines it, for the first side being ahead."""
        if self.adjusted < 0.05:
            return "yes" if self.difference > 0 else "no"
        return "no" if self.low > -MATTERS and self.high < MATTERS else "open"


@dataclass(frozen=True)
class Failures:
    """Failed runs of one side of hypothesis 2: collapsed, or with a gradient that was not finite."""

    task: str
    k: int
    failed: tuple[int, int]
    runs: tuple[int, int]
    p: float
    adjusted: float

    @property
    def verdict(self) -> Verdict:
        """Whether the first side failed significantly more often."""
        if self.adjusted < 0.05:
            return "yes" if self.failed[0] / self.runs[0] > self.failed[1] / self.runs[1] else "no"
        return "open"


Side = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Primary and final scores [seeds]."""


def side(stacks: Iterable[Stack]) -> Side:
    """Mean over stacks, seed by seed."""
    given = list(stacks)
    area = np.mean([stack.area for stack in given], axis=0, dtype=np.float64)
    return area, np.mean([stack.scores[-1] for stack in given], axis=0, dtype=np.float64)


def compared(hypothesis: int, given: Sequence[tuple[str, int | None, str, Side, Side]]) -> list[Comparison]:
    """Comparisons of one hypothesis, adjusted together."""
    if not given:
        return []
    estimates = [_difference(x[0] - y[0]) for *_, x, y in given]
    p_values = [p for _, p in estimates]
    return [
        Comparison(
            hypothesis,
            task,
            k,
            what,
            estimate.value,
            estimate.low,
            estimate.high,
            p,
            adjusted,
            float((x[1] - y[1]).mean()),
        )
        for (task, k, what, x, y), (estimate, p), adjusted in zip(given, estimates, holm(p_values), strict=True)
    ]


def _difference(values: NDArray[np.float64]) -> tuple[Any, float]:
    # the growth of a difference lies in [-2, 2]; halves lie in the range that the statistics accept
    half = statistics.mean([values / 2], least=-1.0)
    estimate = type(half)(2 * half.value, 2 * half.low, 2 * half.high, 2 * half.se)
    return estimate, sign_flip_p_value(values, resamples=2 ** len(values))


def comparisons(found: list[Stack]) -> list[Comparison]:
    """Hypotheses 1 and 3 to 7, as far as the runs allow."""
    cells = final(found)
    return [
        *_hard_against_soft(cells),
        *_against(3, cells, ["dgpo(1,2)"], ["grpo"], (16,)),
        *_against(4, cells, ["dgpo(1,2)"], [name for name in SOFT if not name.startswith("dgpo")], STALE),
        *_against(5, cells, ["dgpo(1,2)"], ["dgpo(1,inf)", "dgpo(0,2)"], STALE),
        *_against(6, cells, ["maspo"], ["grpo"], (16,)),
        *_against(7, cells, [name for name in METHODS if name != "is"], ["is"], STALE),
    ]


def exploration(found: list[Stack]) -> list[Comparison]:
    """What was not registered: soft clips without the three of hypothesis 2, bounds that depend on π_old, and
    hypothesis 3 at k = 64. Adjusted together, under the number 0.
    """
    cells = final(found)
    rows: list[tuple[str, int | None, str, Side, Side]] = []
    milder = [name for name in SOFT if name not in DIVERGING]
    for task in TASKS:
        for k in STALE:
            if not all((task, k, name) in cells for name in METHODS):
                continue
            hard = side(cells[task, k, name] for name in HARD)
            rows.append((task, k, "soft without the three - hard", side(cells[task, k, name] for name in milder), hard))
            grpo = side([cells[task, k, "grpo"]])
            # at k = 16 the third is registered
            named = ("dac", "dppo_tv", "dgpo(1,2)") if k == 64 else ("dac", "dppo_tv")
            rows += [(task, k, f"{name} - grpo", side([cells[task, k, name]]), grpo) for name in named]
    return compared(0, rows)


def _against(
    hypothesis: int, cells: Cells, ours: Sequence[str], theirs: Sequence[str], staleness: Sequence[int]
) -> list[Comparison]:
    return compared(
        hypothesis,
        [
            (task, k, f"{x} - {y}", side([cells[task, k, x]]), side([cells[task, k, y]]))
            for task in TASKS
            for k in staleness
            for x in ours
            for y in theirs
            if (task, k, x) in cells and (task, k, y) in cells
        ],
    )


def _hard_against_soft(cells: Cells) -> list[Comparison]:
    """SOFT - HARD at k = 16 and 64, and its growth from k = 4 to k = 64."""
    rows: list[tuple[str, int | None, str, Side, Side]] = []
    for task in TASKS:
        sides = {
            k: (side(cells[task, k, name] for name in SOFT), side(cells[task, k, name] for name in HARD))
            for k in (4, *STALE)
            if all((task, k, name) in cells for name in (*SOFT, *HARD))
        }
        rows += [(task, k, "soft - hard", *sides[k]) for k in STALE if k in sides]
        if {4, 64} <= sides.keys():
            difference = {k: (x[0] - y[0], x[1] - y[1]) for k, (x, y) in sides.items()}
            rows.append((task, None, "growth, k = 4 to 64", difference[64], difference[4]))
    return compared(1, rows)


def failures(found: list[Stack]) -> list[Failures]:
    """Hypothesis 2: DIVERGING against DGPO(1,2) and DGPO(2,2), all learning rates and both phases."""
    rows = []
    for task in TASKS:
        for k in STALE:
            counts = []
            for methods in (DIVERGING, ("dgpo(1,2)", "dgpo(2,2)")):
                parts = [cells.get((task, k, name)) for name in methods for cells in (final(found), tuning(found))]
                present = [stack for stack in parts if stack is not None]
                kinds = [kind for stack in present for kind in failed(stack)]
                counts.append((sum(kinds), len(kinds)) if len(present) == len(parts) else None)
            if counts[0] is not None and counts[1] is not None:
                (a, n), (b, m) = counts
                p = float(fisher_exact([[a, n - a], [b, m - b]]).pvalue)
                rows.append((task, k, (a, b), (n, m), p))
    adjusted = holm([row[-1] for row in rows]) if rows else []
    return [Failures(*row, p) for row, p in zip(rows, adjusted, strict=True)]


def failed(stack: Stack) -> list[bool]:
    """Whether each run collapsed or had a gradient that was not finite."""
    return [event.kind in ("collapsed", "non-finite") for event in events(stack)]


def ranks(found: list[Stack]) -> dict[str, float]:
    """Kendall's tau between tasks, of the order of all methods by mean primary score, by k and pair of tasks."""
    cells = final(found)
    agreement = {}
    for k in STALE:
        present = [task for task in TASKS if all((task, k, name) in cells for name in METHODS)]
        for i, first in enumerate(present):
            for second in present[i + 1 :]:
                scores = [[float(cells[task, k, name].area.mean()) for name in METHODS] for task in (first, second)]
                agreement[f"k = {k}, {first} and {second}"] = float(kendalltau(*scores).statistic)
    return agreement


def exponents(found: list[Stack]) -> dict[str, dict[str, float]]:
    """Hypothesis 8: task -> (n, m) -> mean primary score at k = 16."""
    cells = final(found)
    return {
        task: {name: float(cells[task, 16, name].area.mean()) for name in (*NINE, *ABLATION)}
        for task in TASKS
        if all((task, 16, name) in cells for name in (*NINE, *ABLATION))
    }


def judged(verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """From the verdicts of a hypothesis by task: supported, not supported or mixed."""
    yes = [task for task, given in verdicts.items() if "yes" in given and "no" not in given]
    no = [task for task, given in verdicts.items() if "no" in given and "yes" not in given]
    if len(yes) >= 2 and not any("no" in given for given in verdicts.values()):
        return "supported"
    if len(no) >= 2 and not any("yes" in given for given in verdicts.values()):
        return "not supported"
    return "mixed"


def as_json(found: list[Stack]) -> dict[str, Any]:
    """All of it."""
    return {
        "comparisons": [asdict(c) | {"verdict": c.verdict} for c in comparisons(found)],
        "failures": [asdict(f) | {"verdict": f.verdict} for f in failures(found)],
        "agreement_of_orders": ranks(found),
        "exponents": exponents(found),
    }
