"""Group-relative advantages against plain Python, and the groups that have nothing to say."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgpo.advantages import SCALES, degenerate_groups, group_advantage

NAN = math.nan
every_scale = pytest.mark.parametrize("scale", SCALES)


def closed_form(group: list[float], scale: str) -> list[float]:
    """The formulas of the docstring for one group, in plain Python; NaN is a response without a reward."""
    scored = [reward for reward in group if not math.isnan(reward)]
    if len(scored) < 2 or max(scored) == min(scored):
        return [0.0] * len(group)
    found = []
    for reward in group:
        if math.isnan(reward):
            found.append(0.0)
        elif scale == "std":
            found.append((reward - statistics.mean(scored)) / (statistics.stdev(scored) + 1e-6))
        elif scale == "none":
            found.append(reward - statistics.mean(scored))
        else:
            others = sum(scored) - reward
            found.append(reward - others / (len(scored) - 1))
    return found


@every_scale
@given(data=st.data())
def test_closed_form(scale: str, data: st.DataObject) -> None:
    G, number = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    # multiples of 1/8: exact sums, so that "no spread" means the same in both computations
    reward = st.one_of(st.integers(-40, 40).map(lambda k: k / 8), st.just(NAN))
    groups = data.draw(st.lists(st.lists(reward, min_size=G, max_size=G), min_size=number, max_size=number))
    rewards = torch.tensor(groups, dtype=torch.float64).flatten()
    expected = [a for group in groups for a in closed_form(group, scale)]
    assert group_advantage(rewards, G, scale).tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_worked_example() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    std = [math.sqrt(1 / 3), 0.5]
    expected = [a / (std[0] + 1e-6) for a in (0.5, -0.5, -0.5, 0.5)]
    expected += [a / (std[1] + 1e-6) for a in (0.25, 0.25, 0.25, -0.75)]
    assert group_advantage(rewards, 4).tolist() == pytest.approx(expected, rel=1e-12)
    assert group_advantage(rewards, 4, "none").tolist() == [0.5, -0.5, -0.5, 0.5, 0.25, 0.25, 0.25, -0.75]
    assert group_advantage(rewards, 4, "leave_one_out").tolist() == pytest.approx(
        [2 / 3, -2 / 3, -2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, -1.0], rel=1e-12
    )


@every_scale
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("G", [2, 3, 7, 8, 64])
def test_a_group_without_spread_is_exactly_zero(scale: str, dtype: torch.dtype, G: int) -> None:
    """Also where the mean of equal values rounds to another value: the mean of ten times 0.1 need not be 0.1."""
    for value in (0.0, 1.0, 0.1, 1 / 3, -0.7, 1e-30, 1e30, 123456.789):
        rewards = torch.full((G,), value, dtype=dtype)
        assert group_advantage(rewards, G, scale).tolist() == [0.0] * G
        assert degenerate_groups(rewards, G).tolist() == [True]


def test_the_zero_of_a_group_without_spread_is_not_luck() -> None:
    """There are such values whose distance from their own mean is not 0."""
    rewards = torch.full((3, 7), 0.1, dtype=torch.float64)
    rounded = [sum([value] * 7) / 7 - value for value in (0.1, 0.7, 1 / 3, 0.3)]
    assert any(distance != 0 for distance in rounded)
    assert group_advantage(rewards.flatten(), 7).abs().max() == 0


@every_scale
def test_a_singleton_has_nothing_to_be_compared_with(scale: str) -> None:
    rewards = torch.tensor([5.0, -2.0, 0.1])
    assert group_advantage(rewards, 1, scale).tolist() == [0.0, 0.0, 0.0]
    assert degenerate_groups(rewards, 1).tolist() == [True, True, True]


@every_scale
def test_a_response_without_a_reward_is_left_out(scale: str) -> None:
    """It gets 0, and the others get what they would get without it."""
    rewards = torch.tensor([1.0, NAN, 0.0, 0.5], dtype=torch.float64)
    with_it = group_advantage(rewards, 4, scale)
    without = group_advantage(torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), 3, scale)
    assert with_it[1] == 0
    torch.testing.assert_close(with_it[[0, 2, 3]], without, rtol=1e-14, atol=1e-16)


@every_scale
def test_groups_with_fewer_than_two_rewards_are_zero(scale: str) -> None:
    rewards = torch.tensor([NAN, NAN, 3.0, NAN, 2.0, 2.0, 1.0, 2.0])
    advantage = group_advantage(rewards, 2, scale)
    assert advantage[:6].tolist() == [0.0] * 6
    assert advantage[6] < 0 < advantage[7]
    assert degenerate_groups(rewards, 2).tolist() == [True, True, True, False]


def test_degenerate_groups_are_counted() -> None:
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.1, 0.1])
    assert degenerate_groups(rewards, 2).tolist() == [True, False, True]
    assert degenerate_groups(rewards, 3).tolist() == [True, False]


@every_scale
def test_groups_do_not_see_each_other(scale: str) -> None:
    rewards = torch.randn(12, dtype=torch.float64)
    whole = group_advantage(rewards, 4, scale)
    apart = torch.cat([group_advantage(group, 4, scale) for group in rewards.split(4)])
    torch.testing.assert_close(whole, apart, rtol=0, atol=0)
    torch.testing.assert_close(whole.view(3, 4).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given_dtype", "returned"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
    ],
    ids=str,
)
def test_dtype_and_detachment(given_dtype: torch.dtype, returned: torch.dtype) -> None:
    rewards = torch.tensor([1, 0, 1, 1]).to(given_dtype)
    advantage = group_advantage(rewards, 4, "none")
    assert (advantage.dtype, advantage.requires_grad) == (returned, False)
    assert advantage.tolist() == [0.25, -0.75, 0.25, 0.25]
    assert not group_advantage(torch.rand(4, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize(
    ("rewards", "group_size", "message"),
    [
        (torch.zeros(10), 4, "group_size = 4 does not divide the batch of 10 rewards"),
        (torch.zeros(3), 8, "group_size = 8 does not divide the batch of 3 rewards"),
        (torch.zeros(4), 0, "group_size = 0 does not divide the batch of 4 rewards"),
        (torch.zeros(4), -2, "group_size = -2 does not divide"),
        (torch.zeros(2, 2), 2, r"rewards has shape \(2, 2\); expected \[B\]"),
    ],
)
def test_groups_that_do_not_fit_are_refused(rewards: torch.Tensor, group_size: int, message: str) -> None:
    for call in (group_advantage, degenerate_groups):
        with pytest.raises(ValueError, match=message):
            call(rewards, group_size)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale = 'mean' is not known; expected one of std, none, leave_one_out"):
        group_advantage(torch.zeros(4), 2, "mean")
