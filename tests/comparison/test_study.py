"""The grid of a study: which runs it comes to, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dgpo.comparison.study import Arm, Study, product, slug


def study(**changed: Any) -> Study:
    arms = tuple(Arm(label=name, options={"objective": name}) for name in ("grpo", "dgpo:n=2,m=2"))
    usual: dict[str, Any] = {
        "name": "s",
        "options": {"task": "addition"},
        "arms": arms,
        "seeds": (0, 1, 2),
        "baseline": "grpo",
        "updates": 10,
        "every": 4,
    }
    return Study(**{**usual, **changed})


TUNED: dict[str, Any] = {"tune": {"learning_rate": ("1e-4", "3e-4"), "beta": ("0",)}, "tuning_seeds": (7, 8)}


def test_every_arm_has_the_same_budget_and_other_seeds_than_the_final_runs() -> None:
    tuned = study(**TUNED)
    tuning = tuned.tuning_cells()
    assert len(tuning) == 2 * 2 * 2
    for arm in tuned.arms:
        tried = [(cell.setting["learning_rate"], cell.seed) for cell in tuning if cell.arm == arm.label]
        assert sorted(tried) == [("1e-4", 7), ("1e-4", 8), ("3e-4", 7), ("3e-4", 8)]
    final = tuned.final_cells({"grpo": tuned.settings[1], "dgpo:n=2,m=2": tuned.settings[0]})
    assert [(cell.arm, cell.seed) for cell in final[:3]] == [("grpo", 0), ("dgpo:n=2,m=2", 0), ("grpo", 1)]
    assert not {cell.seed for cell in final} & {cell.seed for cell in tuning}
    assert final[1].options == {
        **{"task": "addition", "objective": "dgpo:n=2,m=2", "learning_rate": "1e-4", "beta": "0", "seed": "0"}
    }


def test_two_runs_of_one_seed_differ_in_the_options_of_their_arms_alone() -> None:
    first, second = study().final_cells({"grpo": {}, "dgpo:n=2,m=2": {}})[:2]
    assert first.seed == second.seed
    assert {name for name in first.options if first.options[name] != second.options[name]} == {"objective"}


def test_folders() -> None:
    tuned = study(**TUNED)
    names = [cell.name for cell in [*tuned.tuning_cells(), *tuned.final_cells({"grpo": {}})]]
    assert len(set(names)) == len(names)
    assert names[0] == "tuning/grpo/learning_rate=1e-4,beta=0/seed-7"
    assert names[-1] == "final/grpo/seed-2"
    assert slug("my_package.mine:Mine:n=2, beta=0.1") == "my_package.mine-Mine-n=2,beta=0.1"
    assert product({}) == [{}]


def test_when_runs_are_evaluated() -> None:
    assert study().evaluated == [0, 4, 8, 10]
    assert study(every=5).evaluated == [0, 5, 10]
    assert study(every=50).evaluated == [0, 10]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": ()}, "objectives: none; expected at least two arms"),
        ({"arms": (Arm(label="grpo", options={}),)}, "objectives: grpo; expected at least two"),
        ({"arms": (Arm(label="grpo", options={}),) * 2}, "objectives 'grpo' is given twice"),
        ({"arms": (Arm(label="a:b", options={}), Arm(label="a-b", options={}))}, "the folder 'a-b' is given twice"),
        ({"baseline": "grp"}, "baseline = 'grp' is not compared, did you mean 'grpo'?"),
        ({"seeds": ()}, "seeds: none"),
        ({"seeds": (1, 1)}, "seeds 1 is given twice"),
        ({"seeds": (2**32,)}, "seed 4294967296 is not allowed"),
        ({**TUNED, "tuning_seeds": (2, 3)}, "seeds and tuning_seeds share 2; expected different ones"),
        ({"tune": {"learning_rate": ("1",)}}, "tune is given without tuning_seeds"),
        ({"tuning_seeds": (9,)}, "tuning_seeds is given without tune"),
        ({"criterion": "finale"}, "criterion = 'finale' is not known, did you mean 'final'?"),
    ],
)
def test_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        study(**changed)
