"""Rewards that TRL cannot call, or that return something else than a number each, and all kinds that it can call."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from dgpo.training import DGPOTrainer
from dgpo.training.reward_checks import RewardError, check_signatures, checked

DATA = {"the data": ["prompt", "answer", "level"]}


def check(reward, data=None, *, environments=False, more=False):
    check_signatures(reward, data or DATA, environments=environments, more=more)


class Instance:
    def __call__(self, completions, answer, **kwargs):
        return [0.0 for _ in completions]


def everything(
    prompts, completions, completion_ids, trainer_state, log_extra, log_metric, truncated, answer, level, own=1
):
    return [0.0] * len(completions)


def plain(completions, **kwargs):
    return [0.0] * len(completions)


async def later(completions, answer, **kwargs):
    return [0.0] * len(completions)


def with_an_option(completions, answer, scale, **kwargs):
    return [scale] * len(completions)


def only_completions(completions):
    return [0.0] * len(completions)


@functools.wraps(only_completions)
def wrapper(*args, **kwargs):
    return only_completions(kwargs["completions"])


SOUND = [
    *(plain, everything, later, wrapper, Instance(), lambda **given: [0.0]),
    functools.partial(with_an_option, scale=2.0),
]


@pytest.mark.parametrize("reward", [*SOUND, "org/reward-model", torch.nn.Linear(1, 1), None])
def test_what_can_be_called_is_accepted(reward):
    check(reward)
    check([reward, plain])


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            only_completions,
            "reward 'only_completions' takes no **kwargs; TRL passes prompts, completions, completion_ids, "
            "trainer_state, log_extra, log_metric, truncated, answer, level: add **kwargs to (completions)",
        ),
        (functools.partial(only_completions), "reward 'only_completions' takes no **kwargs"),
        (
            with_an_option,
            "reward 'with_an_option' needs 'scale', which is not passed: the data has the columns answer, level; TRL",
        ),
        (lambda completions, anwser, **kwargs: [], "needs 'anwser', which is not passed, did you mean 'answer'?: the"),
        (lambda completions, environments, **kwargs: [], "needs 'environments', which is not passed"),
        (lambda completions, /, **kwargs: [], "takes 'completions' by position alone, and TRL passes everything by"),
        (Instance, "Instance is a class: did you mean an instance of it?"),
        (3, "reward 3 is of type int; expected a function"),
    ],
)
def test_what_cannot_be_called_is_refused(reward, said):
    with pytest.raises(RewardError) as error:
        check([plain, reward])
    assert said in str(error.value)


def test_columns_that_are_not_known_yet_may_be_there():
    """A stream, a `rollout_func`, an environment; but whoever takes no **kwargs is refused all the same."""
    for options in ({"data": {"the data": None}}, {"more": True}):
        check(with_an_option, **options)
        with pytest.raises(RewardError, match=r"takes no \*\*kwargs"):
            check(only_completions, **options)
    check(lambda environments, **kwargs: [], environments=True)
    with pytest.raises(RewardError, match="the evaluation data has no column beside the prompt"):
        check(later, {**DATA, "the evaluation data": ["prompt"]})


@pytest.mark.parametrize(
    "returned",
    [
        [1, None, 0.5], (True, False, 1), np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0]), {1, 2, 3},
        iter([1.0, 2.0, 3.0]), [np.float32(1), torch.tensor(2.0), 3],
    ],
)  # fmt: skip
def test_every_kind_of_numbers_is_accepted(returned):
    assert len(checked("mine", lambda **given: returned)(prompts=["a", "b", "c"])) == 3


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("0.5", "returned '0.5' (str)"),
        (0.5, "returned 0.5 (float)"),
        (None, "returned None (NoneType)"),
        ({"a": 1}, "returned {'a': 1} (dict)"),
        (torch.tensor(1.0), "returned tensor(1.) (Tensor)"),
        ([1.0, 2.0], "returned 2 values"),
        ([1.0, "2", 3.0], "returned '2' (str) for completion 1"),
        ([1.0, [2.0], 3.0], "returned [2.0] (list) for completion 1"),
    ],
)
def test_what_is_not_a_number_each_is_named(returned, said):
    with pytest.raises(RewardError) as error:
        checked("mine", lambda **given: returned)(prompts=["a", "b", "c"])
    expected = "expected a list of 3 numbers, one for each completion (None: not scored)"
    assert str(error.value) == f"reward 'mine' {said}; {expected}"


def test_the_trainer_checks_both(build, monkeypatch):
    """Signatures before a model is loaded, which has no name here."""
    with pytest.raises(RewardError, match=r"reward 'only_completions' takes no \*\*kwargs"):
        build(DGPOTrainer, model="no-model-of-this-name", reward=only_completions)

    def text(completions, **kwargs):
        return "1" * len(completions)

    async def number(completions, **kwargs):
        return 1.0

    for reward, said in (
        (text, r"reward 'text' returned '1+' \(str\)"),
        (number, r"reward 'number' returned 1.0 \(fl"),
    ):
        with pytest.raises(RewardError, match=said):
            build(DGPOTrainer, reward=reward, max_steps=1).train()


def test_rewards_of_all_kinds_train_and_stay_who_they_are(build):
    rewards = [plain, later, Instance(), functools.partial(with_an_option, scale=2.0)]
    trainer = build(DGPOTrainer, reward=list(rewards), max_steps=1)
    trainer.train()
    assert trainer.reward_funcs == rewards
    row = trainer.state.log_history[0]
    assert row["rewards/with_an_option/mean"] == 2.0
    assert {"rewards/plain/mean", "rewards/later/mean", "rewards/Instance/mean"} <= row.keys()
