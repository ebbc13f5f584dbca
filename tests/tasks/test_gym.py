"""Tasks of reasoning-gym: which can be had, disjoint splits, and what happens without the package."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from dgpo import tasks
from dgpo.installation import hint
from dgpo.tasks import BOXED, PLAIN, GymTask
from dgpo.tasks.gym import SEED_STEP, parse_name
from dgpo.tasks.gym_scorers import SCORERS
from dgpo.tasks.gym_table import GRADED, REFUSED

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="session")
def package() -> Any:
    return pytest.importorskip("reasoning_gym")


def small(name: str, **options: Any) -> GymTask:
    sizes = {"train_size": 60, "validation_size": 20, "test_size": 20}
    task = tasks.make(f"reasoning_gym:{name}", **{**sizes, **options})
    assert isinstance(task, GymTask)
    return task


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_task_of_the_package_is_decided_once(package: Any) -> None:
    from reasoning_gym.factory import DATASETS

    assert not GRADED.keys() & REFUSED.keys()
    assert GRADED.keys() | REFUSED.keys() == DATASETS.keys()
    assert set(GRADED.values()) == set(SCORERS)
    assert len(DATASETS) == 106


@pytest.mark.parametrize("name", GRADED)
def test_the_stored_answer_is_right_and_the_question_is_not(package: Any, name: str) -> None:
    """And so is the stored answer in a box; a neighbour's answer only where it is the same."""
    task = small(name, train_size=1, validation_size=1, test_size=3)
    problems = task.problems("test")
    for problem in problems:
        answer = problem["answer"]
        assert task.grade(answer, answer) == 1.0
        assert task.grade(f"<think>{problem['problem']}</think>\n{answer}\n", answer) == 1.0
        if "{" not in answer and "}" not in answer:
            assert task.grade(rf"It is \boxed{{{answer}}}.", answer) == 1.0
        assert task.grade(problem["problem"], answer) == 0.0
        assert task.grade(answer + " or not", answer) == 0.0
        assert task.grade("", answer) == 0.0


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    with pytest.raises(ValueError, match=rf"reasoning_gym:{name} cannot be graded exactly: {re.escape(REFUSED[name])}"):
        tasks.make(f"reasoning_gym:{name}")
    assert len(REFUSED[name]) > 30


def test_those_without_an_answer_and_those_that_run_code_are_refused_or_scored_here() -> None:
    assert {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"} <= REFUSED.keys()
    assert {"simple_integration", "intermediate_integration", "polynomial_multiplication", "n_queens"} <= REFUSED.keys()
    assert GRADED["countdown"] == GRADED["puzzle24"] == "expression"


@pytest.mark.parametrize("name", ["countdown", "puzzle24"])
def test_the_stored_expression_tells_numbers_and_target(package: Any, name: str) -> None:
    """The grade reads both from it: they are those that the question asks for."""
    for entry in package.create_dataset(name, seed=3, size=20):
        assert sorted(map(int, re.findall(r"\d+", entry["answer"]))) == sorted(entry["metadata"]["numbers"])
        target = entry["metadata"].get("target", 24)
        reached = f"({entry['answer']})/({target})"
        numbers = "*".join(map(str, [*entry["metadata"]["numbers"], target]))
        ones = "/".join(map(str, [numbers, *entry["metadata"]["numbers"], target]))
        assert SCORERS["expression"](reached, reached) == 1.0
        assert SCORERS["expression"](ones, ones) == 1.0


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seed"), [("countdown", 0), *((name, seed) for name in ("gcd", "spell_backward") for seed in (0, 1, 99))]
)
def test_splits_share_no_question_and_repeat_none(package: Any, name: str, seed: int) -> None:
    task = small(name, seed=seed)
    known = {split: [problem["problem"] for problem in task.problems(split)] for split in SPLITS}
    for split in SPLITS:
        assert len(set(known[split])) == len(known[split]) > 0
    assert not set(known["train"]) & (set(known["validation"]) | set(known["test"]))
    assert not set(known["validation"]) & set(known["test"])


def test_seeds_of_items_never_meet() -> None:
    """Item i comes from Random(first + i): the ranges are apart for every seed, split and size that is allowed."""
    firsts = sorted(small("gcd", seed=seed)._first(split) for seed in range(101) for split in SPLITS)
    assert len(set(firsts)) == 303
    assert min(b - a for a, b in pairwise(firsts)) == SEED_STEP
    assert firsts[-1] + SEED_STEP < 2**32


def test_a_small_domain_is_cleaned_and_the_counts_are_given(package: Any) -> None:
    task = tasks.make("reasoning_gym:gcd,max_value=12,max_numbers=2", train_size=400, validation_size=30, test_size=30)
    train, test = task.provenance("train"), task.provenance("test")
    assert train["rows"] + train["dropped_repeats"] + train["dropped_held_out"] == 400
    assert train["dropped_held_out"] > 0
    assert train["rows"] == len(task.problems("train"))
    assert test["rows"] + test["dropped_repeats"] == 30
    assert test["dropped_held_out"] == 0


def test_same_seed_same_problems_and_other_seed_others(package: Any) -> None:
    assert small("gcd").problems("test") == small("gcd").problems("test")
    assert small("gcd").problems("test") != small("gcd", seed=1).problems("test")
    # a larger training set begins with the smaller one
    assert small("gcd", train_size=90).problems("train")[:40] == small("gcd").problems("train")[:40]


def test_every_task_has_the_same_items_in_every_process(package: Any) -> None:
    """Whatever the hash seed and the state of the global generators: a test set must not wander into training."""
    code = (
        "from dgpo import tasks\nfrom dgpo.tasks.gym_table import GRADED\n"
        "for name in GRADED:\n"
        "    print(name, tasks.make(f'reasoning_gym:{name}', test_size=6).provenance('test')['sha256'])\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"},
    ).stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == other
    assert other.count("\n") == len(GRADED)


def test_problems_prompts_and_data_sets(package: Any) -> None:
    problem = small("gcd").problems("test")[0]
    assert problem.keys() == {"id", "problem", "prompt", "answer"}
    assert problem["id"] == "gcd-0"
    assert problem["prompt"] == BOXED.render(problem["problem"])
    plain = small("gcd", prompt=PLAIN, chat=True)
    assert plain.problems("test")[0]["prompt"] == [{"role": "user", "content": problem["problem"]}]
    assert small("gcd").dataset("train").column_names == ["prompt", "answer"]


def test_the_reward_grades_texts_and_conversations(package: Any) -> None:
    talk = [{"role": "assistant", "content": r"\boxed{4}"}]
    assert small("gcd").reward(["4", "5", talk], answer=["4", "4", "4"], prompts=None) == [1.0, 0.0, 1.0]


def test_provenance(package: Any) -> None:
    about = small("gcd,max_value=50", seed=2).provenance("validation")
    assert about["source"].startswith("reasoning_gym 0.")
    assert about["config"] == {"max_value": 50}
    assert about["first_item_seed"] == 7 * SEED_STEP
    assert re.fullmatch("[0-9a-f]{64}", about["sha256"])


# --- names and settings -----------------------------------------------------------------------------------------------


def test_names_hold_the_configuration(package: Any) -> None:
    assert parse_name("reasoning_gym:a,b=1,c=0.5,d=true,e=x") == (
        "a",
        (("b", 1), ("c", 0.5), ("d", True), ("e", "x")),
    )
    task = tasks.make("reasoning_gym:gcd,max_value=50,seed=3,train_size=7")
    assert isinstance(task, GymTask)
    assert (task.name, task.seed, task.train_size) == ("reasoning_gym:gcd,max_value=50", 3, 7)
    assert all(
        int(number) <= 50
        for problem in small("gcd,max_value=50").problems("test")
        for number in re.findall(r"\d+", problem["problem"])
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gdc", {}, "unknown task reasoning_gym:gdc, did you mean 'gcd'"),
        ("gcd,max_value", {}, "cannot read 'max_value' in the task 'reasoning_gym:gcd,max_value'; expected key=value"),
        ("gcd,a=1,a=2", {}, "duplicate key 'a'"),
        (
            "gcd,size=5",
            {},
            "'size' cannot be set in the configuration; use seed and train_size, validation_size, test_size",
        ),
        ("gcd,seed=1", {"seed": 2}, "'seed' is given twice"),
        ("gcd", {"seed": -1}, r"GymTask: seed = -1 is not allowed; expected an integer in \[0, 100\]"),
        ("gcd", {"train_size": 10**7}, r"train_size = 10000000 is not allowed; expected an integer in \[1, 10000000\)"),
        ("gcd,test_size=many", {}, "test_size = 'many' is not allowed; expected an integer in"),
    ],
)
def test_names_and_settings_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.make(f"reasoning_gym:{name}", **options)


@pytest.mark.parametrize("config", ["nonsense=1", "max_value=-5"])
def test_a_configuration_that_the_package_refuses(package: Any, config: str) -> None:
    with pytest.raises(ValueError, match="reasoning-gym rejects gcd with"):
        small(f"gcd,{config}").problems("test")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        small("gcd").problems("dev")


def test_without_the_package_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['reasoning_gym'] = None\n"
        "from dgpo import tasks\n"
        "task = tasks.make('reasoning_gym:gcd')\n"
        "try:\n    task.problems('test')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert hint("reasoning-gym") in done.stdout


def test_their_scorers_are_never_called(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.factory import DATASETS

    def refuse(*_: Any) -> float:
        raise AssertionError("reasoning-gym's own scorer was called")

    for name in ("gcd", "countdown", "spiral_matrix"):
        monkeypatch.setattr(DATASETS[name][0], "score_answer", refuse)
        task = small(name, train_size=5, validation_size=5, test_size=5)
        assert [task.grade(problem["answer"], problem["answer"]) for problem in task.problems("test")] == [1.0] * 5
