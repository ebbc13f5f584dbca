"""Collapses of synthetic runs at known updates, and the AUROC of statistics that do and do not foresee them."""

from __future__ import annotations

import numpy as np
import pytest
from arms import Arm
from collapse import events, smoothed
from numpy.typing import NDArray
from recorded import Stack

T = 256


def stack(
    rewards: list[NDArray[np.float64]], start: float = 0.3, final: float = 0.5, **changed: NDArray[np.float32]
) -> Stack:
    """One member per reward series."""
    members = len(rewards)
    scores = np.full((17, members), start, dtype=np.float32)
    scores[-1] = final
    one = np.ones((T, members), dtype=np.float32)
    metrics = {"reward": np.stack(rewards, 1).astype(np.float32), "grad_norm": one, "informative": one}
    return Stack(
        arm=Arm("reverse", 16, "is"),
        phase="tuning",
        seeds=np.arange(members),
        rates=np.full(members, 1e-3),
        scores=scores,
        skipped=np.zeros(members, dtype=np.int64),
        metrics=metrics | changed,
        cpu_seconds=1.0,
    )


def steps(*pieces: tuple[int, float]) -> NDArray[np.float64]:
    """A reward that jumps: (first update, value) ..."""
    reward = np.empty(T)
    for first, value in pieces:
        reward[first:] = value
    return reward


def test_smoothed_is_the_mean_of_the_last_sixteen() -> None:
    reward = np.random.default_rng(0).random((40, 3))
    level = smoothed(reward)
    assert np.isnan(level[:15]).all()
    assert level[20] == pytest.approx(reward[5:21].mean(0))
    assert level[15] == pytest.approx(reward[:16].mean(0))


def test_a_collapse_is_dated_by_the_smoothed_reward() -> None:
    """Start 0.3 and peak 0.7: half of the gain is lost below 0.5, eight of sixteen updates after a fall to 0.29."""
    (event,) = events(stack([steps((0, 0.3), (50, 0.7), (100, 0.29))]))
    assert event.kind == "collapsed"
    # after 7 updates at 0.29 the mean is 0.7 - 7/16 * 0.41 = 0.5206, after 8 it is 0.495
    assert event.collapsed == 107


@pytest.mark.parametrize(("fall", "at"), [(0.25, 111), (0.5, 107), (0.75, 103)])
def test_the_sensitivities_date_it_later_or_earlier(fall: float, at: int) -> None:
    """With a fall to 0.29, 0.7 - i/16 * 0.41 is below 0.4 from i = 12, below 0.5 from 8, below 0.6 from 4."""
    (event,) = events(stack([steps((0, 0.3), (50, 0.7), (100, 0.29))]), fall=fall)
    assert event.collapsed == at


def test_a_dip_that_comes_back_is_not_a_collapse_and_the_one_after_it_is() -> None:
    back, again, partly = events(
        stack(
            [
                steps((0, 0.3), (50, 0.7), (100, 0.3), (140, 0.7)),
                steps((0, 0.3), (50, 0.7), (100, 0.3), (140, 0.7), (200, 0.1)),
                # back to 70 % of the gain, which is not enough
                steps((0, 0.3), (50, 0.7), (100, 0.29), (140, 0.58)),
            ]
        )
    )
    assert back.kind == "none"
    # 0.7 - i/16 * 0.6 is below 0.5 from i = 6
    assert again.collapsed == 205
    assert partly.collapsed == 107


def test_losing_the_start_is_a_collapse_only_from_a_start_of_a_tenth() -> None:
    fallen = steps((0, 0.3), (60, 0.0))
    (high,) = events(stack([fallen], start=0.3))
    # 0.3 - i/16 * 0.3 is below 0.15 from i = 9
    assert high.collapsed == 68
    (low,) = events(stack([fallen * 0.3], start=0.09, final=0.09))
    assert low.kind == "none"


def test_a_gain_below_a_tenth_cannot_be_lost() -> None:
    small, enough = events(
        stack([steps((0, 0.0), (50, 0.09), (100, 0.0)), steps((0, 0.0), (50, 0.11), (100, 0.0))], start=0.001)
    )
    assert small.kind == "none"
    assert enough.collapsed is not None


def test_what_is_counted_beside_a_collapse() -> None:
    flat = steps((0, 0.3))
    assert [event.kind for event in events(stack([flat], final=0.23))] == ["worse"]
    assert [event.kind for event in events(stack([flat], final=0.25))] == ["none"]
    assert [event.kind for event in events(stack([flat], final=np.nan))] == ["worse"]
    # no group with spread in the last sixteen updates
    informative = np.ones((T, 2), dtype=np.float32)
    informative[-16:, 0] = informative[-17:-1, 1] = 0
    quiet = events(stack([flat, flat], final=0.35, informative=informative))
    assert [event.kind for event in quiet] == ["stalled", "none"]
    solved = events(stack([flat, flat], final=0.9, informative=informative))
    assert [event.kind for event in solved] == ["none", "none"]


def test_an_update_that_was_skipped_is_dated_and_an_overflow_of_the_norm_is_not_one() -> None:
    norm = np.ones((T, 3), dtype=np.float32)
    norm[70, 0], norm[90, 0], norm[70, 1] = np.nan, np.inf, np.inf
    made = stack([steps((0, 0.3))] * 3, grad_norm=norm)
    made.skipped[0] = 2
    found = events(made)
    assert [event.kind for event in found] == ["non-finite", "none", "none"]
    assert found[0].non_finite == 70
