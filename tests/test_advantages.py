"""Group-relative advantages against plain Python, and the groups that have nothing to say."""

from __future__ import annotations

import json
import math
import statistics
from fractions import Fraction
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgpo.advantages import (
    ADVANTAGES,
    REWARD_AGGREGATIONS,
    SCALES,
    EntropyShaped,
    History,
    Smooth,
    degenerate_groups,
    entropy_shaped,
    group_advantage,
    make,
    smooth_advantage,
    total_rewards,
)

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
    # the built-in sum compensates for rounding from Python 3.12 on
    rounded = [reduce(add, [value] * 7) / 7 - value for value in (0.1, 0.7, 1 / 3, 0.3)]
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


# --- shaped by entropy ------------------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 12)), min_size=1, max_size=6),
    alpha=st.floats(0, 2),
    kappa=st.floats(1.01, 10),
)
def test_entropy_shaped_in_plain_python(rows: list[tuple[float, float]], alpha: float, kappa: float) -> None:
    advantage, entropy = torch.tensor(rows, dtype=torch.float64).unbind(1)
    shaped = entropy_shaped(advantage, entropy.unsqueeze(1), alpha, kappa).squeeze(1).tolist()
    for found, (a, h) in zip(shaped, rows, strict=True):
        assert found == pytest.approx(a + min(alpha * h, abs(a) / kappa), rel=1e-12, abs=1e-300)
        assert found >= a
        assert math.copysign(1, found) == math.copysign(1, a) or found == a == 0


def test_entropy_shaped_worked_example() -> None:
    """The paper's alpha 0.4 and kappa 2: half of |A| at most."""
    advantage = torch.tensor([1.0, -1.0, 0.0])
    entropy = torch.tensor([[0.5, 9.0], [0.5, 9.0], [0.5, 9.0]], requires_grad=True)
    shaped = entropy_shaped(advantage, entropy)
    assert not shaped.requires_grad
    torch.testing.assert_close(shaped, torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 0.0]]))
    by_token = entropy_shaped(advantage.unsqueeze(1).expand(3, 2), entropy)
    torch.testing.assert_close(by_token, shaped, rtol=0, atol=0)
    assert torch.equal(entropy_shaped(advantage, entropy, alpha=0.0), advantage.unsqueeze(1).expand(3, 2))


# --- smoothed over the steps of a prompt ------------------------------------------------------------------------------


def smoothed(steps: list[list[float]]) -> list[float]:
    """Advantages of the last step from the rewards of all steps of one prompt, NaN left out.

    Without a recursion: the cumulative mean is the mean of the steps' means, and the cumulative variance is the mean
    of the steps' variances plus the variance of their means.
    """
    scored = [[reward for reward in step if not math.isnan(reward)] for step in steps]
    scored = [step for step in scored if step]
    means = [statistics.fmean(step) for step in scored]
    deviations = [statistics.stdev(step) if len(step) > 1 and max(step) > min(step) else 0.0 for step in scored]
    i = len(scored)
    total = math.sqrt(statistics.fmean(d**2 for d in deviations) + statistics.pvariance(means))
    found = []
    for reward in steps[-1]:
        if math.isnan(reward):
            found.append(0.0)
            continue
        a_new = (reward - means[-1]) / deviations[-1] if deviations[-1] > 0 else 0.0
        a_total = (reward - statistics.fmean(means)) / total if total > 1e-9 else 0.0
        found.append(min(a_total / i + (1 - 1 / i) * a_new, a_new / i + (1 - 1 / i) * a_total, key=abs))
    return found


reward = st.one_of(st.integers(-8, 8).map(lambda k: k / 4), st.just(NAN))


@given(data=st.data())
def test_smooth_advantage_from_all_steps_at_once(data: st.DataObject) -> None:
    G, number = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    group = st.lists(reward, min_size=G, max_size=G)
    steps = {prompt: data.draw(st.lists(group, min_size=number, max_size=number)) for prompt in ("a", "b")}
    history: History = {}
    for step in range(number):
        rewards = torch.tensor([steps[prompt][step] for prompt in steps], dtype=torch.float64).flatten()
        found = smooth_advantage(rewards, G, list(steps), history).view(2, G).tolist()
        for row, prompt in zip(found, steps, strict=True):
            scored = any(not math.isnan(value) for value in steps[prompt][step])
            expected = smoothed(steps[prompt][: step + 1]) if scored else [0.0] * G
            # two candidates of equal size and opposite sign are a tie that rounding decides
            assert [abs(value) for value in row] == pytest.approx([abs(a) for a in expected], rel=1e-6, abs=1e-6)
    for prompt, groups in steps.items():
        count = sum(any(not math.isnan(value) for value in group) for group in groups)
        assert (history[prompt][0] if count else 0) == count
        assert (prompt in history) == (count > 0)


def test_smooth_advantage_of_the_first_step_is_the_standardised_one() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.25, 0.5, 0.75, 3.0], dtype=torch.float64)
    first = smooth_advantage(rewards, 4, ["a", "b"], {})
    torch.testing.assert_close(first, group_advantage(rewards, 4), rtol=1e-5, atol=0)


def test_smooth_advantage_worked_example() -> None:
    """Rewards 1 0 0 1, and then all right: that group has spread of its own in no step, but it is above its mean."""
    history: History = {}
    smooth_advantage(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), 4, ["a"], history)
    assert history["a"] == pytest.approx([1, 0.5, math.sqrt(1 / 3)])
    second = smooth_advantage(torch.ones(4, dtype=torch.float64), 4, ["a"], history)
    deviation = math.sqrt(1 / 6 + 1 / 16)
    assert history["a"] == pytest.approx([2, 0.75, deviation])
    assert second.tolist() == pytest.approx([0.25 / deviation / 2] * 4)  # a_new = 0, both mixtures are a_total / 2
    assert group_advantage(torch.ones(4), 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("G", [1, 5, 7, 8])
def test_a_prompt_that_never_had_spread_is_exactly_zero(G: int, dtype: torch.dtype) -> None:
    """Also where the cumulative mean of equal rewards rounds to another value (float64: 0.9 and 7 gave 0.94)."""
    for value in (0.1, 0.9, 1 / 3, 100.1, 123456.789):
        history: History = {}
        for step in range(12):
            rewards = torch.full((G,), value, dtype=dtype)
            if step % 3 == 2:
                rewards[0] = NAN
            assert smooth_advantage(rewards, G, ["a"], history).tolist() == [0.0] * G
        assert history["a"][0] == (12 if G > 1 else 8)


def test_a_prompt_that_occurs_twice_counts_as_two_steps() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    twice: History = {}
    together = smooth_advantage(rewards, 2, ["a", "a"], twice)
    apart: History = {}
    one_by_one = torch.cat([smooth_advantage(group, 2, ["a"], apart) for group in rewards.split(2)])
    assert torch.equal(together, one_by_one)
    assert twice == apart
    assert twice["a"][0] == 2


def test_prompts_do_not_see_each_other() -> None:
    history: History = {}
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    smooth_advantage(rewards, 2, ["a", "b"], history)
    before = list(history["b"])
    smooth_advantage(rewards[:2], 2, ["a"], history)
    assert history["b"] == before
    assert history["a"][0] == 2


def test_a_response_without_a_reward_is_left_out_of_the_history() -> None:
    with_it: History = {}
    without: History = {}
    first = smooth_advantage(torch.tensor([1.0, NAN, 0.0]), 3, ["a"], with_it)
    second = smooth_advantage(torch.tensor([1.0, 0.0]), 2, ["a"], without)
    assert first[1] == 0
    assert first[[0, 2]].tolist() == pytest.approx(second.tolist(), rel=1e-6)
    assert with_it["a"] == pytest.approx(without["a"], rel=1e-6)
    assert smooth_advantage(torch.tensor([NAN, NAN]), 2, ["b"], with_it).tolist() == [0.0, 0.0]
    assert "b" not in with_it


def test_the_history_survives_json() -> None:
    history: History = {}
    rewards = torch.rand(12, dtype=torch.float64)
    smooth_advantage(rewards[:8], 4, ["a", '[{"role": "user"}]'], history)
    restored = json.loads(json.dumps(history))
    assert restored == history
    continued = [smooth_advantage(rewards[8:], 4, ["a"], kept) for kept in (history, restored)]
    assert torch.equal(*continued)
    assert restored == history


@pytest.mark.parametrize(
    ("rewards", "group_size", "prompts", "message"),
    [
        (torch.zeros(4), 2, ["a"], "got 1 prompt for 2 groups of 2"),
        (torch.zeros(4), 1, ["a"] * 3, "got 3 prompts for 4 groups of 1; expected one prompt per group"),
        (torch.zeros(5), 2, ["a"] * 2, "group_size = 2 does not divide the batch of 5 rewards"),
    ],
)
def test_smooth_advantage_refuses(rewards: torch.Tensor, group_size: int, prompts: list[str], message: str) -> None:
    history: History = {}
    with pytest.raises(ValueError, match=message):
        smooth_advantage(rewards, group_size, prompts, history)
    assert history == {}


# --- as values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCALES, "entropy_shaped", "smooth"])
def test_values_are_the_functions(name: str) -> None:
    rewards, entropy = torch.rand(8), torch.rand(8, 3)
    value = make(name)
    history: History = {}
    found = value.of_groups(rewards, 4, ["a", "b"] if "history" in value.reads else [], history)
    expected = smooth_advantage(rewards, 4, ["a", "b"], {}) if name == "smooth" else None
    if expected is None:
        expected = group_advantage(rewards, 4, name if name in SCALES else "std")
    assert torch.equal(found, expected)
    shaped = value.shaped(found, entropy)
    assert torch.equal(shaped, entropy_shaped(found, entropy) if name == "entropy_shaped" else found)
    assert bool(history) == ("history" in value.reads) == (name == "smooth")


@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_advantage_reads_what_it_declares_and_nothing_else(name: str) -> None:
    """The entropies change what is shaped, the history and the teacher the advantages, exactly where declared."""
    made = make(name)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    histories: list[History] = [{}, {"a": [3, 0.2, 0.1], "b": [5, 0.9, 0.3]}]
    first, second = (made.of_groups(rewards, 3, ["a", "b"], history) for history in histories)
    assert torch.equal(first, second) == ("history" not in made.reads)
    assert (histories[0] == {}) == ("history" not in made.reads)
    shaped = [made.shaped(first, entropy) for entropy in (torch.full((6, 4), 0.1), torch.full((6, 4), 0.2))]
    assert torch.equal(*shaped) == ("entropy" not in made.reads)
    assert (shaped[0] is first) == ("entropy" not in made.reads)
    if "teacher" in made.reads:
        old, teachers = torch.zeros(6, 4), (torch.full((6, 4), -0.1), torch.full((6, 4), -0.2))
        assert not torch.equal(*(made.of_tokens(first, old, teacher) for teacher in teachers))
    else:
        with pytest.raises(NotImplementedError, match="reads no teacher"):
            made.of_tokens(first, torch.zeros(6, 4), torch.zeros(6, 4))


def test_every_scale_is_a_value() -> None:
    assert set(SCALES) <= set(ADVANTAGES)
    assert (make("entropy_shaped", alpha=0.1), make("smooth")) == (EntropyShaped(alpha=0.1), Smooth())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("smoth", {}, "unknown advantage 'smoth', did you mean 'smooth'?; known: std, none"),
        ("std", {"alpha": 1}, "advantage 'std' has no field 'alpha'; its fields: none"),
        ("entropy_shaped", {"alfa": 1}, "advantage 'entropy_shaped' has no field 'alfa', did you mean 'alpha'?"),
        (
            "entropy_shaped",
            {"alpha": -0.1},
            "EntropyShaped: alpha = -0.1 is not allowed; expected a number in [0, inf)",
        ),
        ("entropy_shaped", {"kappa": 1}, "EntropyShaped: kappa = 1 is not allowed; expected a number in (1, inf]"),
    ],
)
def test_make_names_what_is_wrong(name: str, fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:
        make(name, **fields)
    assert message in str(error.value)


# --- several rewards per response -------------------------------------------------------------------------------------


def totalled(group: list[list[float]], weights: list[float], aggregation: str) -> list[float]:
    """The formulas of `total_rewards` for one group of responses, in plain Python and exact arithmetic.

    The square root of `normalize_then_sum` is rounded once; nothing else is.
    """
    rows = [[None if math.isnan(r) else Fraction(r) for r in row] for row in group]
    columns = [[r for r in column if r is not None] for column in zip(*rows, strict=True)]
    shift, slope = [Fraction(0)] * len(weights), [Fraction(w) for w in weights]
    if aggregation == "normalize_then_sum":
        for k, column in enumerate(columns):
            if len(set(column)) < 2:
                slope[k] = Fraction(0)
                continue
            shift[k] = sum(column, Fraction(0)) / len(column)
            variance = sum((r - shift[k]) ** 2 for r in column) / (len(column) - 1)
            slope[k] /= Fraction(math.sqrt(variance)) + Fraction(1e-4)
    return [
        NAN
        if all(r is None for r in row)
        else float(sum(s * (r - m) for r, s, m in zip(row, slope, shift, strict=True) if r is not None))
        for row in rows
    ]


rows_of_rewards = st.lists(
    st.lists(st.one_of(st.integers(-8, 8).map(lambda k: k / 4), st.just(NAN)), min_size=3, max_size=3),
    min_size=4,
    max_size=4,
)


@pytest.mark.parametrize("aggregation", REWARD_AGGREGATIONS)
@given(group=rows_of_rewards, weights=st.lists(st.sampled_from([1.0, 0.5, 2.0, 0.0, -1.0]), min_size=3, max_size=3))
def test_total_rewards(aggregation: str, group: list[list[float]], weights: list[float]) -> None:
    found = total_rewards(torch.tensor(group), torch.tensor(weights), 4, aggregation)
    assert found.dtype == torch.float64
    expected = totalled(group, weights, aggregation)
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)
    scored = [total for total in expected if not math.isnan(total)]
    alike = not scored or max(scored) - min(scored) < 1e-9
    assert degenerate_groups(found, 4).tolist() == [alike]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        # the inputs on which spread was decided per reward
        ([[1, 2], [1, 2], [1, NAN], [1, NAN]], [3**0.5 / 2, 3**0.5 / 2, -(3**0.5) / 2, -(3**0.5) / 2]),
        ([[1, 0], [NAN, 0], [NAN, 0], [NAN, 0]], [1.5, -0.5, -0.5, -0.5]),
        ([[NAN, 0], [1, 0], [NAN, 0], [NAN, 0]], [-0.5, 1.5, -0.5, -0.5]),
        # rewards that cancel: spread in each, none in their sum
        ([[1, 0], [0, 1], [1, 0], [0, 1]], [0, 0, 0, 0]),
        ([[0.1, 0.2], [0.3, 0.0], [0.0, 0.3], [0.2, 0.1]], [0, 0, 0, 0]),
        # no reward at all in one row, and in all but one
        ([[1, NAN], [NAN, NAN], [0, NAN], [NAN, 0.5]], [1, 0, -1, 0]),
        ([[NAN, NAN], [NAN, NAN], [1, 1], [NAN, NAN]], [0, 0, 0, 0]),
    ],
)
def test_advantages_of_two_rewards(group: list[list[float]], expected: list[float]) -> None:
    totals = total_rewards(torch.tensor(group), torch.ones(2), 4)
    assert group_advantage(totals, 4).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert degenerate_groups(totals, 4).tolist() == [not any(expected)]


@pytest.mark.parametrize("aggregation", REWARD_AGGREGATIONS)
def test_rewards_that_cancel_leave_exactly_nothing(aggregation: str) -> None:
    """Sums that are equal in exact arithmetic and not in floating point: no advantage may divide what is left."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(4000, generator=generator) * 10.0 ** torch.randint(-3, 4, (4000,), generator=generator)
    constant = rewards.view(-1, 8)[:, :1].expand(-1, 8).reshape(-1)
    totals = total_rewards(torch.stack([rewards, constant - rewards], 1), torch.ones(2), 8, aggregation)
    assert degenerate_groups(totals, 8).all()
    assert group_advantage(totals, 8).abs().max() == 0
    weights = torch.tensor([0.1, -0.3])
    totals = total_rewards(torch.stack([rewards, rewards / 3], 1), weights, 8, aggregation)
    if aggregation == "sum_then_normalize":
        assert degenerate_groups(totals, 8).all()


def test_one_reward_is_compared_exactly() -> None:
    """No sum, no rounding: the smallest difference that float32 knows is spread, also beside a constant reward."""
    close = torch.tensor([1.0, 1.0000001])
    assert close[0] != close[1]
    for column in (torch.zeros(2), torch.full((2,), 100.0), torch.full((2,), NAN)):
        totals = total_rewards(torch.stack([close, column], 1), torch.tensor([1.0, 2.0]), 2)
        assert degenerate_groups(totals, 2).tolist() == [False]


@pytest.mark.parametrize(
    ("rewards", "weights", "aggregation", "message"),
    [
        (torch.zeros(4), torch.ones(1), "sum_then_normalize", r"rewards has shape \(4,\) and weights \(1,\)"),
        (torch.zeros(4, 2), torch.ones(3), "sum_then_normalize", r"shape \(4, 2\) and weights \(3,\)"),
        (torch.zeros(5, 1), torch.ones(1), "sum_then_normalize", "group_size = 2 does not divide the batch of 5"),
        (torch.zeros(4, 1), torch.ones(1), "sum", "aggregation = 'sum' is not known; expected one of sum_then"),
        (torch.full((4, 1), math.inf), torch.ones(1), "sum_then_normalize", "an infinity; expected finite numbers"),
    ],
)
def test_total_rewards_refuses(rewards: torch.Tensor, weights: torch.Tensor, aggregation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total_rewards(rewards, weights, 2, aggregation)
