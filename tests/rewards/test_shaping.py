"""Which rewards say of themselves that they are shaping terms."""

from __future__ import annotations

import functools

import pytest
import torch

from dgpo.rewards import (
    MathReward,
    answer_reward,
    format_reward,
    is_shaping,
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
        model(),
        model(shaping=torch.ones(1)),
        "org/a-reward-model",
    ],
)
def test_rewards_of_the_outcome(reward):
    assert not is_shaping(reward)


def test_the_mark_leaves_the_reward_as_it_is():
    assert slow.__name__ == "slow"
    assert Penalty().method(["a"]) == [0.0]
