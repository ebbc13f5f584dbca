"""Rewards by name."""

import pytest

from dgpo.rewards import REWARDS, build, make


def test_every_name_is_the_name_that_trl_logs():
    options = {"soft_overlong_reward": {"max_completion_length": 10, "buffer": 5}}
    for name in REWARDS:
        assert make(name, **options.get(name, {})).__name__ == name


def test_options_reach_the_grader():
    reward = make("math_reward", workers=1, answer_marker="####", truncated="grade")
    assert reward(["#### 42"], ["42"]) == [1.0]
    assert reward.truncated == "grade"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("math_rewards", {}, "unknown reward 'math_rewards', did you mean 'math_reward'?"),
        ("math_reward", {"worker": 2}, "reward 'math_reward' has no option 'worker', did you mean 'workers'?"),
        ("math_reward", {"workers": 0}, "workers = 0"),
        ("format_reward", {"buffer": 2}, "reward 'format_reward' has no option 'buffer'"),
        ("soft_overlong_reward", {"buffer": 2}, "missing 1 required keyword-only argument: 'max_completion_length'"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with pytest.raises(ValueError) as error:
        make(name, **options)
    assert message in str(error.value)


def test_entries_are_names_paths_or_mappings():
    functions, weights = build(["math.fsum", {"name": "format_reward", "weight": 2}], max_completion_length=8)
    assert [function.__name__ for function in functions] == ["fsum", "format_reward"]
    assert weights == [1.0, 2.0]
    (soft,), _ = build([{"name": "soft_overlong_reward", "buffer": 2}], max_completion_length=8)
    assert soft.max_completion_length == 8
    (soft,), _ = build([{"name": "soft_overlong_reward", "buffer": 2, "max_completion_length": 5}], 8)
    assert soft.max_completion_length == 5


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "rewards is empty"),
        ([{"weight": 1}], "expected a name, or a mapping with 'name'"),
        (
            [{"name": "format_reward", "weight": "two"}],
            "weight = 'two' of reward 'format_reward'; expected a finite number",
        ),
        (
            [{"name": "format_reward", "weight": float("nan")}],
            "weight = nan of reward 'format_reward'; expected a finite number",
        ),
        ([{"name": "math.fsum", "start": 1}], "reward 'math.fsum' is imported and takes no options; got start"),
        (["formt_reward"], "unknown reward 'formt_reward', did you mean 'format_reward'?"),
        (["math.nothing"], "cannot import the reward 'math.nothing'"),
        (["math.pi"], "the reward 'math.pi' is of type float; expected a function"),
    ],
)
def test_bad_entries(entries, message):
    with pytest.raises(ValueError) as error:
        build(entries, max_completion_length=8)
    assert message in str(error.value)
