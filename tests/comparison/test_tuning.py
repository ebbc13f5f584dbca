"""Which setting is chosen, and that it is chosen once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dgpo.comparison.outcome import Outcome
from dgpo.comparison.study import Arm, Study, words
from dgpo.comparison.tuning import Choices, NothingToChoose, choose

ARMS = tuple(Arm(label=name, options={"objective": name}) for name in ("grpo", "dgpo"))


def study(**changed: object) -> Study:
    usual = {
        "name": "s",
        "options": {},
        "arms": ARMS,
        "seeds": (0,),
        "baseline": "grpo",
        "updates": 10,
        "every": 5,
        "tune": {"learning_rate": ("1e-4", "3e-4", "1e-3")},
        "tuning_seeds": (7, 8),
    }
    return Study(**{**usual, **changed})  # type: ignore[arg-type]


def run(scores: tuple[float, ...], seed: int = 7, diverged: str | None = None) -> list[Outcome]:
    return [Outcome("grpo", seed, "addition", (0, 5, 10)[: len(scores)], scores, {}, diverged)]


def found(
    of: Study, table: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> dict[tuple[str, int], list[Outcome]]:
    return {
        (f"learning_rate={rate}", seed): run(scores, seed, "failed" if len(scores) < 3 else None)
        for rate, both in table.items()
        for seed, scores in zip(of.tuning_seeds, both, strict=True)
    }


def found_of_one(of: Study) -> dict[tuple[str, int], list[Outcome]]:
    return {(f"learning_rate={rate}", 7): run((0.4, 0.4, 0.5)) for rate in TABLE}


TABLE = {
    # final 0.6 and 0.5, area 0.45 and 0.425
    "1e-4": ((0.4, 0.4, 0.6), (0.4, 0.4, 0.5)),
    # final 0.5 and 0.5, area 0.525 each
    "3e-4": ((0.4, 0.6, 0.5), (0.4, 0.6, 0.5)),
    # final 1 and a failure, which counts as 0
    "1e-3": ((0.4, 0.9, 1.0), (0.4, 0.9)),
}


def test_the_best_mean_over_seeds_by_the_criterion() -> None:
    by_final = choose(study(), "grpo", found(study(), TABLE))
    assert by_final.setting == {"learning_rate": "1e-4"}
    assert [trial.mean for trial in by_final.trials] == pytest.approx([0.55, 0.5, 0.5])
    assert by_final.trials[2].diverged == {"8": "failed"}
    by_area = choose(study(criterion="area"), "grpo", found(study(), TABLE))
    # of 1e-3: (0.65 · 5 + 0.95 · 5) / 10 = 0.8, and (0.65 · 5 + 0.45 · 5) / 10 = 0.55 with 0 for the last evaluation
    assert [trial.mean for trial in by_area.trials] == pytest.approx([0.4375, 0.525, 0.675])
    assert by_area.setting == {"learning_rate": "1e-3"}


def test_of_equal_settings_the_first() -> None:
    same = dict.fromkeys(TABLE, ((0.4, 0.5, 0.5), (0.4, 0.5, 0.5)))
    assert choose(study(), "grpo", found(study(), same)).setting == {"learning_rate": "1e-4"}


def test_several_tasks_count_alike() -> None:
    two = {
        key: [*of, Outcome("grpo", of[0].seed, "reverse", (0, 5, 10), (0.0, 0.0, 0.1))]
        for key, of in found(study(), dict.fromkeys(TABLE, ((0.4, 0.5, 0.5), (0.4, 0.5, 0.5)))).items()
    }
    assert choose(study(), "grpo", two).trials[0].mean == pytest.approx(0.3)


def test_an_arm_whose_runs_all_failed_has_no_setting() -> None:
    none = dict.fromkeys(TABLE, ((0.4,), (0.4,)))
    with pytest.raises(NothingToChoose, match="grpo: every tuning run failed"):
        choose(study(), "grpo", found(study(), none))
    # nor has it one if nothing was ever evaluated
    with pytest.raises(NothingToChoose):
        choose(study(), "grpo", {key: [] for key in found(study(), none)})
    one = found(study(), none) | {("learning_rate=3e-4", 7): run((0.4, 0.4, 0.1))}
    assert choose(study(), "grpo", one).setting == {"learning_rate": "3e-4"}


def test_a_choice_is_made_once_and_read_again(tmp_path: Path) -> None:
    first = Choices(tmp_path, study())
    choice = choose(study(), "grpo", found(study(), TABLE))
    first.fix("grpo", choice)
    with pytest.raises(ValueError, match="was chosen already"):
        first.fix("grpo", choice)
    again = Choices(tmp_path, study())
    assert again.of_arm == {"grpo": choice}
    assert again.settings() == {"grpo": {"learning_rate": "1e-4"}}
    assert again.budget()["runs_per_arm"] == 6
    # another objective, or more final seeds, has no effect on it
    assert (
        Choices(tmp_path, study(seeds=(0, 1), arms=(*ARMS, Arm(label="cispo", options={})))).settings()
        == again.settings()
    )


def test_the_spread_between_tuning_seeds_is_that_of_the_chosen_settings(tmp_path: Path) -> None:
    choices = Choices(tmp_path, study())
    assert choices.std() is None
    # 0.6 and 0.5; then 0.5 twice
    choices.fix("grpo", choose(study(), "grpo", found(study(), TABLE)))
    assert choices.std() == pytest.approx(0.1 / 2**0.5)
    choices.fix("dgpo", choose(study(), "dgpo", found(study(), {**TABLE, "1e-4": TABLE["3e-4"]})))
    assert choices.std() == pytest.approx(0.1 / 2)
    alone = study(tuning_seeds=(7,))
    one_seed = Choices(tmp_path / "one", alone)
    one_seed.fix("grpo", choose(alone, "grpo", found_of_one(alone)))
    assert one_seed.std() is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tuning_seeds": (7, 9)}, "tuning_seeds: [7, 8] -> [7, 9]"),
        ({"tune": {"learning_rate": ("1e-4", "3e-4")}}, "tune.learning_rate"),
        ({"criterion": "area"}, 'criterion: "final" -> "area"'),
        ({"tune": {}, "tuning_seeds": ()}, "tuning_seeds: [7, 8] -> []"),
    ],
)
def test_nothing_is_tuned_again(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    Choices(tmp_path, study()).fix("grpo", choose(study(), "grpo", found(study(), TABLE)))
    with pytest.raises(ValueError, match=re.escape(message)):
        Choices(tmp_path, study(**changed))


def test_without_tuning_every_arm_has_the_recipe(tmp_path: Path) -> None:
    plain = study(tune={}, tuning_seeds=())
    assert Choices(tmp_path, plain).settings() == {"grpo": {}, "dgpo": {}}
    assert words({}) == ""
