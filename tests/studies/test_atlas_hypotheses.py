"""The registered comparisons of the atlas on made-up runs whose answers are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from arms import FINAL_SEEDS, HARD, METHODS, SOFT, TASKS, Arm, arms
from hypotheses import MATTERS, comparisons, judged
from recorded import Stack
from scipy.stats import wilcoxon


def stack(task: str, k: int, method: str, level: float, noise: float = 0.0) -> Stack:
    """Sixteen final runs with scores around `level`; the noise of a seed is the same in every arm."""
    shared = 0.05 * np.random.default_rng(0).standard_normal(16)
    own = noise * np.random.default_rng(len(method) + 7 * k).standard_normal(16)
    scores = np.broadcast_to(level + shared + own, (17, 16)).astype(np.float32)
    seeds = np.array(FINAL_SEEDS)
    return Stack(Arm(task, k, method), "final", seeds, np.full(16, 1e-3), scores, 0 * seeds, {}, 1.0)


def grid(levels: dict[str, float], *, others: Iterable[str] = (), noise: float = 0.0) -> list[Stack]:
    """At every staleness the methods of `levels` and, at 0.5, `others`; comparisons of absent methods are left out."""
    return [
        stack(task, k, name, levels.get(name, 0.5), noise)
        for task in TASKS
        for k in (4, 16, 64)
        for name in dict.fromkeys((*levels, *others))
    ]


def test_a_difference_that_all_seeds_share_is_found_with_its_size() -> None:
    found = comparisons(grid({"dgpo(1,2)": 0.55}, others=["grpo"]))
    assert [(c.hypothesis, c.task, c.k, c.verdict) for c in found] == [(3, task, 16, "yes") for task in TASKS]
    for c in found:
        assert c.difference == pytest.approx(0.05, abs=1e-6)
        assert c.low <= c.difference <= c.high
        # all 16 signs agree: 2 of 2^16 patterns are as extreme
        assert c.p == pytest.approx(2 / 2**16)
        assert c.adjusted == pytest.approx(3 * c.p)


def test_equal_methods_are_a_no_and_noise_alone_is_never_a_yes() -> None:
    found = comparisons(grid({}, others=METHODS))
    # as registered: by task, or by task and staleness, so that 6, 2 and 16 methods are compared six times
    assert Counter(c.hypothesis for c in found) == {1: 9, 3: 3, 4: 36, 5: 12, 6: 3, 7: 96}
    assert {c.verdict for c in found} == {"no"}
    assert all(c.difference == pytest.approx(0, abs=1e-7) for c in found)
    noisy = comparisons(grid({}, others=["dgpo(1,2)", "maspo", "grpo"], noise=0.2))
    assert "yes" not in {c.verdict for c in noisy if c.hypothesis in (3, 6)}
    assert any(c.verdict == "open" for c in noisy)


def test_the_sign_of_a_difference_is_that_of_the_hypothesis() -> None:
    runs = grid({"grpo": 0.6, "is": 0.6}, others=["dgpo(1,2)", "maspo", "sapo"])
    found = {(c.hypothesis, c.what, c.verdict) for c in comparisons(runs) if c.task == "rare" and c.k == 16}
    assert (3, "dgpo(1,2) - grpo", "no") in found
    assert (6, "maspo - grpo", "no") in found
    assert (7, "sapo - is", "no") in found
    assert (7, "grpo - is", "no") in found


def test_growth_with_staleness_is_the_difference_of_differences() -> None:
    runs = grid({}, others=(*SOFT, *HARD))
    moved = [
        stack(s.arm.task, s.arm.k, s.arm.method, 0.4) if s.arm.k == 64 and s.arm.method in ("grpo", "dapo") else s
        for s in runs
        if s.arm.task == "reverse"
    ]
    (growth,) = [c for c in comparisons(moved) if c.hypothesis == 1 and c.k is None]
    # two of six hard methods lose 0.1
    assert growth.difference == pytest.approx(0.2 / 6, abs=1e-6)
    assert growth.difference > MATTERS
    assert growth.verdict == "yes"


def test_the_p_value_is_close_to_that_of_a_rank_test() -> None:
    runs = grid({"maspo": 0.52}, others=["grpo"], noise=0.03)
    cells = {(s.arm.task, s.arm.k, s.arm.method): s.area.astype(float) for s in runs}
    found = comparisons(runs)
    assert [c.hypothesis for c in found] == [6] * len(TASKS)
    for c in found:
        ranked = wilcoxon(cells[c.task, 16, "maspo"], cells[c.task, 16, "grpo"]).pvalue
        assert c.p == pytest.approx(ranked, abs=0.1)


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        ({"reverse": ["yes"], "addition": ["yes"], "rare": ["open"]}, "supported"),
        ({"reverse": ["yes"], "addition": ["yes"], "rare": ["no"]}, "mixed"),
        ({"reverse": ["no"], "addition": ["no"], "rare": ["open"]}, "not supported"),
        ({"reverse": ["no", "open"], "addition": ["no"], "rare": ["yes"]}, "mixed"),
        ({"reverse": ["yes", "no"], "addition": ["yes"], "rare": ["open"]}, "mixed"),
        ({"reverse": ["open"], "addition": ["open"]}, "mixed"),
    ],
)
def test_verdicts_over_tasks(verdicts: dict[str, list[str]], word: str) -> None:
    assert judged(verdicts) == word  # type: ignore[arg-type]


def test_the_grid_is_what_the_readme_says() -> None:
    given = list(arms())
    assert len(given) == len(set(given)) == 183
    assert len({(arm.task, arm.name) for arm in given}) == 183
