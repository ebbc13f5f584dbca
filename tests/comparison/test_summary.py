"""The summary of outcomes: what counts, what is compared with what, and what it warns of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dgpo.comparison import Outcome, statistics
from dgpo.comparison.scored import runs_of
from dgpo.comparison.summarise import summarise
from dgpo.comparison.summary import Method, Summary, Tuned
from dgpo.evaluation.paired import holm

pytest.importorskip("scipy", reason="statistics need scipy: the extra train or eval")

Simulate = Callable[..., list[Outcome]]
FAST: dict[str, Any] = {"baseline": "grpo", "resamples": 400}


def of(summary: Summary, arm: str) -> Method:
    return next(method for method in summary.methods if method.arm == arm)


def tuned(arm: str, chosen: str = "1e-4", **changes: Any) -> Tuned:
    given: dict[str, Any] = {
        "arm": arm,
        "grid": {"learning_rate": ("1e-5", "1e-4", "1e-3")},
        "chosen": {"learning_rate": chosen},
        "runs": 6,
        "seeds": (100, 101),
        "criterion": "final",
    }
    return Tuned(**{**given, **changes})


def test_the_values_are_those_of_the_statistics(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4, "cispo": 0.32}, problems=5)
    summary = summarise(outcomes, **FAST)
    finals = {arm: np.array([[o.final for o in outcomes if o.arm == arm]]) for arm in ("grpo", "dgpo", "cispo")}
    areas = {arm: np.array([[o.area for o in outcomes if o.arm == arm]]) for arm in finals}
    found = of(summary, "dgpo")
    assert found.runs == 8
    assert found.final == statistics.mean(finals["dgpo"], resamples=400)
    assert found.area_middle == statistics.interquartile_mean(areas["dgpo"], resamples=400)
    assert found.std == pytest.approx(finals["dgpo"].std(ddof=1))
    assert found.start == pytest.approx(0.2)
    against = found.against
    assert against is not None
    assert against.pairs == 8
    assert replace(against.final, detectable=None) == statistics.paired_difference(
        finals["dgpo"], finals["grpo"], resamples=400
    )
    assert against.improvement == statistics.probability_of_improvement(
        finals["dgpo"], finals["grpo"], paired=True, resamples=400
    )
    tables = [np.array([[*o.problems.values()] for o in outcomes if o.arm == arm]) for arm in ("dgpo", "grpo")]
    assert against.over_problems == statistics.paired_difference_over_problems([tables[0]], [tables[1]], resamples=400)
    p_values = [statistics.paired_p_value(finals[arm], finals["grpo"]) for arm in ("dgpo", "cispo")]
    assert [m.against.p_value for m in summary.methods if m.against] == p_values
    assert [m.against.p_adjusted for m in summary.methods if m.against] == holm(p_values)
    assert (summary.comparisons, summary.warnings, summary.incomplete) == (2, (), ())
    assert of(summary, "grpo").against is None


def test_the_same_outcomes_give_the_same_summary_in_any_order(simulate: Simulate) -> None:
    """Pairs are found by seed, not by place."""
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, seeds=range(4))
    backwards = [o for arm in ("grpo", "dgpo") for o in reversed(outcomes) if o.arm == arm]
    one, other = (of(summarise(given, **FAST), "dgpo").against for given in (outcomes, backwards))
    assert one is not None
    assert other is not None
    assert (one.final.value, one.p_value) == pytest.approx((other.final.value, other.p_value))
    assert one.improvement.value == other.improvement.value


def test_the_difference_of_the_area_can_be_tested_instead(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.31})
    areas = [np.array([[o.area for o in outcomes if o.arm == arm]]) for arm in ("dgpo", "grpo")]
    found = of(summarise(outcomes, measure="area", **FAST), "dgpo").against
    assert found is not None
    assert found.p_value == statistics.paired_p_value(*areas)


# --- runs that broke, and runs that are missing -----------------------------------------------------------------------


def test_a_diverged_run_is_counted_and_not_dropped(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, problems=3)
    place = next(i for i, o in enumerate(outcomes) if (o.arm, o.seed) == ("dgpo", 2))
    before = of(summarise(outcomes, **FAST), "dgpo")
    # it ended after the second evaluation
    broken = replace(outcomes[place], steps=(0, 20), scores=(0.2, 0.4), problems={}, diverged="non-finite")
    outcomes[place] = broken
    after = of(summarise(outcomes, **FAST), "dgpo")
    assert (after.runs, after.diverged, after.missing) == (8, {"non-finite": 1}, 1)
    lost = simulate({"grpo": 0.3, "dgpo": 0.4}, problems=3)[place].final
    assert after.final.value == pytest.approx(before.final.value - lost / 8)
    assert after.against is not None
    assert after.against.pairs == 8
    # its problems count as 0 as well
    assert after.against.over_problems is not None
    assert before.against is not None
    assert before.against.over_problems is not None
    assert after.against.over_problems.value < before.against.over_problems.value


def test_a_diverged_run_with_a_score_keeps_it(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4})
    marked = [replace(o, diverged="worse than the start") if o.seed == 1 else o for o in outcomes]
    found, before = (of(summarise(given, **FAST), "dgpo") for given in (marked, outcomes))
    assert found.final == before.final
    assert (found.diverged, found.missing) == ({"worse than the start": 1}, 0)


def test_a_baseline_that_broke_flatters_the_others(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4})
    place = next(i for i, o in enumerate(outcomes) if o.arm == "grpo")
    outcomes[place] = replace(outcomes[place], steps=(0,), scores=(0.2,), diverged="failed")
    assert summarise(outcomes, **FAST).warnings == (
        "1 of grpo, the baseline, ended early and count as 0, which favours all others",
    )


def test_unfinished_and_missing_runs_are_named_and_left_out(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4})
    outcomes = [o for o in outcomes if (o.arm, o.seed) != ("grpo", 5)]
    place = next(i for i, o in enumerate(outcomes) if (o.arm, o.seed) == ("dgpo", 2))
    outcomes[place] = replace(outcomes[place], steps=(0, 20), scores=(0.2, 0.4))
    summary = summarise(outcomes, cells=[("dgpo", "addition", 8), ("dgpo", "addition", 3)], **FAST)
    assert summary.incomplete == (("grpo", "addition", 5), ("dgpo", "addition", 2), ("dgpo", "addition", 8))
    assert of(summary, "dgpo").runs == 7
    against = of(summary, "dgpo").against
    assert against is not None
    # neither seed 2 nor seed 5
    assert against.pairs == 6


def test_an_arm_without_a_complete_run(simulate: Simulate) -> None:
    outcomes = [
        replace(o, steps=(0, 20), scores=o.scores[:2]) if o.arm == "cispo" else o
        for o in simulate({"grpo": 0.3, "dgpo": 0.4, "cispo": 0.3})
    ]
    summary = summarise(outcomes, **FAST)
    assert [method.arm for method in summary.methods] == ["grpo", "dgpo"]
    assert "cispo: no complete run, so it is in no table" in summary.warnings
    # it could have won: the other is adjusted for both
    found = of(summary, "dgpo").against
    assert found is not None
    assert summary.comparisons == 2
    assert found.p_adjusted == pytest.approx(2 * found.p_value)


# --- several tasks ----------------------------------------------------------------------------------------------------


def test_tasks_with_runs_of_their_own_are_strata(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, tasks=("addition", "reverse"), problems=4)
    found = of(summarise(outcomes, same_runs=False, **FAST), "dgpo")
    finals = [[o.final for o in outcomes if (o.arm, o.task) == ("dgpo", task)] for task in ("addition", "reverse")]
    assert found.final == statistics.mean(finals, resamples=400)
    assert found.runs == 16
    assert found.by_task["reverse"].value == pytest.approx(np.mean(finals[1]))
    assert found.against is not None
    assert found.against.pairs == 16
    assert found.against.over_problems is not None


def test_evaluations_of_one_run_are_one_run(simulate: Simulate) -> None:
    """Its score is its mean over tasks, so that its tasks are not counted as independent."""
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, tasks=("addition", "reverse"), problems=4)
    found = of(summarise(outcomes, same_runs=True, **FAST), "dgpo")
    means = [np.mean([o.final for o in outcomes if (o.arm, o.seed) == ("dgpo", seed)]) for seed in range(8)]
    assert found.final == statistics.mean([np.array(means)], resamples=400)
    assert found.runs == 8
    against = found.against
    assert against is not None
    assert against.pairs == 8
    assert against.over_problems is not None
    tables = [
        [
            np.array([[*o.problems.values()] for o in outcomes if (o.arm, o.task) == (arm, task)])
            for task in ("addition", "reverse")
        ]
        for arm in ("dgpo", "grpo")
    ]
    assert against.over_problems == statistics.paired_difference_over_problems(*tables, same_runs=True, resamples=400)


def test_a_run_that_lacks_a_task_is_incomplete(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, tasks=("addition", "reverse"))
    outcomes = [o for o in outcomes if (o.arm, o.task, o.seed) != ("dgpo", "reverse", 1)]
    summary = summarise(outcomes, same_runs=True, **FAST)
    assert summary.incomplete == (("dgpo", "reverse", 1),)
    assert of(summary, "dgpo").runs == 7


def test_a_task_that_an_arm_lacks_is_warned_of(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, tasks=("addition", "reverse"))
    outcomes = [o for o in outcomes if (o.arm, o.task) != ("dgpo", "reverse")]
    summary = summarise(outcomes, same_runs=False, **FAST)
    assert "dgpo: no run on reverse, so its means are over other tasks than the rest" in summary.warnings


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_few_seeds_are_said(simulate: Simulate) -> None:
    warnings = summarise(simulate({"grpo": 0.3, "dgpo": 0.5}, seeds=range(3)), **FAST).warnings
    assert warnings[0].startswith("with 3 seeds the intervals are too narrow")
    assert warnings[1] == (
        "no difference can be significant at 0.05, however large it is: the smallest p of 3 pairs of runs is 0.25, "
        "before it is adjusted for 1 comparison"
    )
    assert len(warnings) == 2


def test_equal_scores_are_said(simulate: Simulate) -> None:
    outcomes = [
        replace(o, scores=(0.2, 0.5, 1.0)) if o.arm == "dgpo" else o for o in simulate({"grpo": 0.3, "dgpo": 1})
    ]
    summary = summarise(outcomes, **FAST)
    assert summary.warnings == (
        "dgpo: all runs of a task end with the same score; an interval without width is not certainty",
    )
    assert (of(summary, "dgpo").final.low, of(summary, "dgpo").std) == (1.0, 0.0)


def test_tuning_is_checked(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4, "cispo": 0.3})
    fair = [tuned("grpo"), tuned("dgpo"), tuned("cispo")]
    assert summarise(outcomes, tuning=fair, **FAST).warnings == ()
    unfair = [tuned("grpo"), tuned("dgpo", chosen="1e-3", runs=12, seeds=(3, 100))]
    summary = summarise(outcomes, tuning=unfair, **FAST)
    assert summary.warnings == (
        "not tuned, unlike the others: cispo",
        "the tuning budgets differ (runs): grpo 6, dgpo 12",
        "dgpo: learning_rate = 1e-3 is at the end of its grid (1e-5, 1e-4, 1e-3); a better value may lie beyond",
        "dgpo: tuned on seeds that are compared too (3), where it scores too well",
    )
    assert of(summary, "dgpo").tuned == unfair[1]


@pytest.mark.parametrize(
    ("values", "chosen", "ends"),
    [
        (("1e-3", "1e-5", "1e-4"), "1e-4", []),
        (("1e-3", "1e-5", "1e-4"), "0.00001", ["learning_rate"]),
        (("1e-4",), "1e-4", []),
        (("cosine", "linear"), "linear", []),
    ],
)
def test_the_end_of_a_grid_is_that_of_its_numbers(values: tuple[str, ...], chosen: str, ends: list[str]) -> None:
    assert tuned("dgpo", chosen, grid={"learning_rate": values}).at_the_end() == ends


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_summary_is_json(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, seeds=[3])
    document = json.loads(json.dumps(summarise(outcomes, tuning=[tuned("dgpo")], **FAST).as_dict(), allow_nan=False))
    assert document["schema"] == "dgpo.comparison_summary/1"
    # one pair detects nothing
    assert document["methods"][1]["against"]["final"]["detectable"] is None
    assert document["curves"][1]["runs"]["3"] == [0.2, 0.4, outcomes[1].final]
    assert document["methods"][1]["tuned"]["chosen"] == {"learning_rate": "1e-4"}


def test_curves_have_the_mean_of_every_step(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4})
    curve = summarise(outcomes, **FAST).curves[1]
    assert (curve.arm, curve.task, curve.steps) == ("dgpo", "addition", (0, 20, 40))
    assert curve.mean[:2] == pytest.approx((0.2, 0.4))
    assert curve.mean[2] == pytest.approx(np.mean([o.final for o in outcomes if o.arm == "dgpo"]))
    assert curve.low[2] < curve.mean[2] < curve.high[2]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_refused(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, seeds=range(2))
    two = simulate({"grpo": 0.3, "dgpo": 0.4}, seeds=range(2), tasks=("addition", "reverse"))
    for given, changes, message in (
        ([], {}, "there are no outcomes"),
        (outcomes, {"baseline": "grop"}, "'grop' has no runs, did you mean 'grpo'"),
        (outcomes, {"measure": "best"}, "measure = 'best' is unknown; expected one of final, area"),
        (outcomes, {"alpha": 1.0}, "alpha = 1.0 is not allowed"),
        ([*outcomes, outcomes[0]], {}, "grpo on addition, seed 0: given twice"),
        (two, {}, "2 tasks \\(addition, reverse\\) and no same_runs"),
        (
            [replace(outcomes[0], steps=(0, 30, 40)), *outcomes[1:]],
            {},
            "evaluated at 0, 20, 40, another run at 0, 30, 40",
        ),
        ([replace(o, steps=(0,), scores=(0.2,)) if o.arm == "grpo" else o for o in outcomes], {}, "no complete run"),
    ):
        with pytest.raises(ValueError, match=message):
            summarise(given, **{**FAST, **changes})
    other = [replace(o, steps=(0, 10, 40)) if o.task == "reverse" else o for o in two]
    with pytest.raises(ValueError, match="expected the same steps on every task of a run"):
        runs_of(other, same_runs=True)
