"""Which rewards say of themselves that they are shaping terms."""

from __future__ import annotations

import functools

import pytest
import torch

from dgpo.rewards import (
    REWARDS,
    MathReward,
    answer_reward,
    format_reward,
    is_shaping,
    make,
    math_reward,
    shaping_term,
    soft_overlong_reward,
)


def brevity(completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]


class Penalty:
    shaping = True

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)

    @shaping_term
    def method(self, completions, **columns):
        return [0.0] * len(completions)


@shaping_term
async def slow(completions, **columns):
    return [0.0] * len(completions)


@functools.wraps(slow)
async def wrapped(*args, **columns):
    return await slow(*args, **columns)


def model(**attributes):
    made = torch.nn.Linear(2, 1)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "reward",
    [
        format_reward,
        soft_overlong_reward(max_completion_length=10, buffer=5),
        shaping_term(functools.partial(brevity)),
        functools.partial(functools.partial(Penalty()), limit=3),
        Penalty(),
        Penalty().method,
        slow,
        wrapped,
        functools.wraps(Penalty())(lambda *args, **kwargs: []),
        functools.partial(functools.wraps(functools.partial(Penalty()))(lambda *args, **kwargs: [])),
        model(shaping=True),
    ],
)
def test_shaping_terms(reward):
    assert is_shaping(reward)


@pytest.mark.parametrize(
    "reward",
    [
        math_reward,
        MathReward(),
        answer_reward,
        brevity,
        functools.partial(brevity),
        functools.wraps(brevity)(lambda *args, **kwargs: []),
        model(),
        model(shaping=torch.ones(1)),
        "org/a-reward-model",
    ],
)
def test_rewards_of_the_outcome(reward):
    assert not is_shaping(reward)


def test_the_rewards_by_name():
    options = {"soft_overlong_reward": {"max_completion_length": 10, "buffer": 5}}
    marked = {name for name in REWARDS if is_shaping(make(name, **options.get(name, {})))}
    assert marked == {"format_reward", "soft_overlong_reward"}


def test_the_mark_leaves_the_reward_as_it_is():
    assert slow.__name__ == "slow"
    assert Penalty().method(["a"]) == [0.0]


def test_the_rewards_of_trl():
    """All that the installed TRL has: a new one of theirs must be told here which it is."""
    rewards = pytest.importorskip("trl.rewards")
    made = {
        "accuracy_reward": (rewards.accuracy_reward, False),
        "get_cosine_scaled_reward": (rewards.get_cosine_scaled_reward(10), False),
        "reasoning_accuracy_reward": (rewards.reasoning_accuracy_reward, False),
        "think_format_reward": (rewards.think_format_reward, True),
        "get_repetition_penalty_reward": (rewards.get_repetition_penalty_reward(), True),
        "get_soft_overlong_punishment": (rewards.get_soft_overlong_punishment(10, 5), True),
    }
    assert set(made) == {name for name in dir(rewards) if name.endswith(("_reward", "_punishment"))}
    assert {name: is_shaping(reward) for name, (reward, _) in made.items()} == {
        name: expected for name, (_, expected) in made.items()
    }
    own = functools.partial(rewards.think_format_reward)
    own.shaping = False
    assert not is_shaping(own)
