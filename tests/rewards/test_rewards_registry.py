"""Rewards by name."""

import pytest

from dgpo.rewards import REWARDS, make


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
