"""Collapses of synthetic runs at known updates, and the AUROC of statistics that do and do not foresee them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import collapse_view
import numpy as np
import pytest
from arms import Arm
from collapse import SERIES, breakdown, collapses, events, flat, smoothed, write
from collapse_view import COLOURS
from foresight import Estimate, alarms, auroc, below_each, counts, dangerous, pairs, threshold
from numpy.typing import NDArray
from recorded import Stack
from scipy.stats import mannwhitneyu
from signs import (
    HORIZONS,
    RECORDED,
    STATISTICS,
    aurocs,
    danger,
    drift,
    drift_limits,
    held_out,
    log_of,
    named,
    warned,
)

from dgpo.diagnostics.doctor.rules_weights import FAR_FROM_OLD
from dgpo.files import read_json

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
    reward = steps((0, 0.3), (50, 0.7), (100, 0.29))
    assert collapses(reward[:, None], np.array([0.3]), fall) == at


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


# --- what foresees it -------------------------------------------------------------------------------------------------


def auroc_of(values: NDArray[np.float64], events: int, at: int, **labels: NDArray[np.int64]) -> Estimate:
    """The first runs are the events, all at one update; the others are healthy."""
    rng = np.random.default_rng(1)
    runs = np.arange(len(values))
    found = pairs(values, runs[:events], np.full(events, at), runs[events:], **labels)
    ones = np.ones((len(values) - events, 1), dtype=np.float32)
    return auroc(found.shares(ones)[:, 0], found.shares(counts(rng, len(values) - events)), rng)


def test_a_running_median_reads_nan_as_the_worst_and_the_sign_as_danger() -> None:
    values = np.array([[5.0, 1.0, 4.0, 2.0, 3.0, np.nan, np.nan, np.nan, -np.inf]])
    high = dangerous(values, 1)
    assert np.isnan(high[0, :4]).all()
    assert high[0, 4:].tolist() == [3, 3, 4, np.inf, np.inf]
    low = dangerous(values, -1)
    assert low[0, 4:].tolist() == [-3, -2, -2, np.inf, np.inf]


def test_below_each_is_the_rank_statistic() -> None:
    rng = np.random.default_rng(2)
    # integers, so that there are ties, and infinities
    block, limits = rng.integers(0, 6, (7, 11)).astype(float), rng.integers(0, 6, 9).astype(float)
    block[0, :3], limits[:2] = np.inf, np.inf
    below = below_each(block, limits)
    expected = (block[None] < limits[:, None, None]).sum(-1) + (block[None] == limits[:, None, None]).sum(-1) / 2
    assert np.array_equal(below, expected)
    # the mean over all pairs is the statistic of Mann and Whitney
    statistic = mannwhitneyu(limits, block.ravel()).statistic
    assert below.sum() == pytest.approx(statistic)


def test_auroc_is_one_for_an_oracle_and_a_half_for_noise_and_for_ties() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((260, 20))
    noise = auroc_of(values, events=60, at=10)
    assert noise.runs == 60
    assert noise.low < 0.5 < noise.high
    # 60 uniform values have a mean with a standard error of 0.037
    assert noise.high - noise.low == pytest.approx(2 * 1.96 * 0.29 / np.sqrt(60), rel=0.3)
    values[:60] += 1
    assert auroc_of(values, events=60, at=10) == Estimate(1.0, 1.0, 1.0, 60)
    assert auroc_of(np.zeros((260, 20)), events=60, at=10) == Estimate(0.5, 0.5, 0.5, 60)
    worst = np.zeros((260, 20))
    worst[:30] = np.inf
    assert auroc_of(worst, events=60, at=10).value == pytest.approx(0.75)


def test_a_statistic_that_only_grows_within_a_generation_foresees_nothing_at_its_position() -> None:
    rng = np.random.default_rng(4)
    values = np.tile(np.arange(64) % 16, (100, 1)) + rng.normal(0, 0.01, (100, 64))
    period = np.full(100, 16)
    # the last update of a generation: above 15 of 16 others
    assert auroc_of(values, events=30, at=31).value == pytest.approx(15.5 / 16, abs=0.03)
    assert auroc_of(values, events=30, at=31, period=period).value == pytest.approx(0.5, abs=0.2)


def test_a_label_confines_the_comparison() -> None:
    """Two tasks on different scales: the statistic ranks the tasks, not the runs."""
    rng = np.random.default_rng(5)
    values = rng.random((240, 20))
    label = np.zeros(240, dtype=np.int64)
    label[:40] = label[220:] = 1
    values[label == 1] += 1
    assert auroc_of(values, events=60, at=10).value > 0.6
    alone = auroc_of(values, events=60, at=10, label=label)
    assert alone.low < 0.5 < alone.high
    nobody = auroc_of(values, events=60, at=10, label=np.arange(240))
    assert nobody.runs == 0
    assert np.isnan(nobody.value)


def test_a_threshold_catches_its_share_and_its_alarms_are_counted_by_their_beginnings() -> None:
    assert threshold(np.arange(1.0, 11.0)) == 3  # 8 of 10
    assert threshold(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == 2  # 4 of 5
    assert threshold(np.array([np.inf, 2.0, 2.0, 1.0])) == 1  # 3 of 4 are not 80 %
    healthy = np.zeros((2, 12))
    healthy[0, [0, 6, 7, 9]] = 3.0  # the first update has no running median and does not count
    found = alarms(3.0, np.array([2.0, 3.0, 4.0, np.inf]), healthy, np.random.default_rng(0))
    assert found.caught.value == 0.75
    assert found.alarms.value == 1.0
    assert found.alarmed.value == 0.5
    assert found.updates == pytest.approx(3 / 16)
    with pytest.raises(ValueError, match="no event"):
        threshold(np.array([]))


# --- the analysis of made-up runs -------------------------------------------------------------------------------------


EVENTS, HEALTHY = 10, 12


def made_up() -> list[Stack]:
    """Two tasks; runs that collapse at about update 120 and announce it by their entropy, and healthy ones."""
    rng = np.random.default_rng(6)
    found = []
    for task in ("reverse", "addition"):
        rewards = [steps((0, 0.3), (50, 0.7), (110 + i, 0.1)) for i in range(EVENTS)]
        made = stack([*rewards, *[steps((0, 0.3), (50, 0.7))] * HEALTHY], final=0.7)
        metrics = {name: rng.uniform(0.9, 1.0, made.metrics["reward"].shape).astype(np.float32) for name in SERIES}
        metrics["reward"] = made.metrics["reward"]
        metrics["entropy"][60:, :EVENTS] *= 0.1
        # ten updates that announce nothing, in a run that does not collapse
        metrics["entropy"][200:210, -1] *= 0.01
        metrics["informative"] = np.ones_like(metrics["reward"])
        made.scores[3:] = 0.7
        made.scores[8:, :EVENTS] = 0.1  # at update 128, after each of the events
        found.append(replace(made, arm=Arm(task, 16, "is"), metrics=metrics))
    return found


def test_the_analysis_finds_what_announces_a_collapse() -> None:
    runs, rng = flat(made_up()), np.random.default_rng(0)
    assert (runs.collapsed >= 0).sum() == 2 * EVENTS
    assert runs.healthy.sum() == 2 * HEALTHY
    # start 0.3, peak 0.7
    assert np.nanmax(np.abs(runs.line - 0.5)) < 1e-6
    values = {name: danger(runs)[name] for name in ("entropy", "largest weight")}
    rows = aurocs(runs, values, rng)
    by = {(r["task"], r["horizon"], r["statistic"], r["control"]): r for r in rows}
    for horizon in HORIZONS:
        low = by["all", horizon, "entropy", "none"]
        assert low["events"] == 2 * EVENTS
        # in the odd run ten updates, those whose median of five is one of the ten, are below them
        assert low["auroc"]["value"] == pytest.approx(1 - 10 / (HEALTHY * (T - 4)), abs=1e-4)
        assert low["not yet fallen"]["runs"] == 2 * EVENTS
        assert by["reverse", horizon, "entropy", "position"]["auroc"]["value"] > 0.98
        noise = by["all", horizon, "largest weight", "none"]["auroc"]
        assert noise["low"] < 0.5 < noise["high"]
    held = {(r["task"], r["horizon"], r["statistic"]): r for r in held_out(runs, values, rng)}
    entropy = held["addition", 20, "entropy"]
    events, at = runs.events(20)
    before = values["entropy"][events, at]
    here = runs.task[events] == "addition"
    assert entropy["threshold"] == threshold(before[~here])
    assert entropy["caught"]["value"] == (before[here] >= entropy["threshold"]).mean()
    assert entropy["alarms"]["value"] == pytest.approx(1 / HEALTHY)
    assert held["addition", 20, "largest weight"]["alarms"]["value"] > 10


def test_a_policy_that_has_fallen_before_its_samples_show_it_is_told_apart() -> None:
    made = made_up()
    for one in made:
        # at update 112, before all of the events, and at 96, 20 updates before some of them
        one.scores[7:, :EVENTS] = 0.1
        one.scores[6:, :5] = 0.1
    runs = flat(made)
    events, at = runs.events(20)
    assert runs.fallen(events, at).reshape(2, EVENTS)[:, 5:].any() == (at >= 112).any()
    assert np.array_equal(runs.fallen(events, at), (at >= 112) | ((at >= 96) & (events % (EVENTS + HEALTHY) < 5)))


def test_too_few_events_give_counts_only() -> None:
    few = made_up()
    # one event less in the second task
    few[1].metrics["reward"][:, 0] = few[1].metrics["reward"][:, -1]
    runs, rng = flat(few), np.random.default_rng(0)
    values = {"entropy": danger(runs)["entropy"]}
    rows = aurocs(runs, values, rng)
    assert {r["events"] for r in rows if r["task"] == "addition"} == {EVENTS - 1}
    assert all(np.isnan(r["auroc"]["value"]) for r in rows if r["task"] == "addition")
    assert not any(np.isnan(r["auroc"]["value"]) for r in rows if r["task"] == "reverse")
    assert held_out(runs, values, rng) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results of the made-up runs, analysed."""
    folder = tmp_path_factory.mktemp("results")
    for made in made_up():
        values = {name: getattr(made, name) for name in ("seeds", "rates", "scores", "skipped", "cpu_seconds")}
        keys = {f"{made.arm.name}/{made.phase}/{name}": value for name, value in (made.metrics | values).items()}
        np.savez(folder / f"{made.arm.task}.npz", **keys)
    write(folder)
    return folder


def test_the_doctor_is_asked_before_a_collapse_and_again_and_again_without_one(written: Path) -> None:
    found = read_json(written / "collapse.json")
    rows = {(r["rule"], r["horizon"], r["task"]): r for r in found["doctor"]}
    # a tenth of the entropy is below the rule's quarter, but a note, since the reward has risen until then
    assert rows["entropy_falling", 20, "all"]["caught"]["value"] == 0
    assert rows["drift", 20, "all"]["caught"]["value"] == 1
    assert rows["grad_spike", 20, "all"]["caught"]["value"] == 0
    # ten updates are over before the rule is asked the next time
    assert rows["entropy_falling", 20, "all"]["alarms"]["value"] == 0
    # the made-up "KL" is 0.9 and more
    assert rows["drift", 20, "reverse"]["alarmed"]["value"] == 1
    assert rows["drift", 20, "reverse"]["alarms"]["value"] == 1
    (everything, *_) = found["afterwards"]
    assert everything["collapsed"]["value"] == 1
    assert everything["healthy"]["value"] == 0


def test_the_drift_of_the_limits_is_what_the_rule_compares() -> None:
    """Asked after every update, the rule fires exactly where `drift` reaches its limit."""
    kl = np.random.default_rng(7).exponential(0.1, (3, 40)).astype(np.float32)
    far = drift(kl)
    (rule,) = named(["drift"])
    for run in range(3):
        log = log_of(dict.fromkeys(RECORDED.values(), kl[run]))
        fired = [warned([rule], log, n)[0] for n in range(1, 41)]
        # the rule says nothing about fewer than three points
        assert fired == [False, False, *(far[run, 2:] >= FAR_FROM_OLD)]
        assert len(set(fired[2:])) == 2


def test_limits_of_the_drift_are_counted() -> None:
    made = made_up()
    for one in made:
        # at update 60, those that collapse go beyond 0.2 for good
        one.metrics["kl_old"][:] = 0.0
        one.metrics["kl_old"][60:, :EVENTS] = 0.3
    rows = {r["limit"]: r for r in drift_limits(flat(made))}
    assert rows[0.2]["caught 5 before"]["value"] == 1
    assert rows[0.5]["caught 5 before"]["value"] == 0
    assert rows[0.2]["alarmed"]["value"] == 0
    assert rows[0.2]["collapse after it"] == {**rows[0.2]["collapse after it"], "value": 1.0, "runs": 2 * EVENTS}
    assert rows[0.5]["collapse without it"]["value"] == pytest.approx(EVENTS / (EVENTS + HEALTHY))


def test_the_tables_say_what_was_found(written: Path) -> None:
    text = collapse_view.tables(read_json(written / "collapse.json"))
    assert f"| reverse | 16 | {EVENTS + HEALTHY} | {EVENTS} ({EVENTS}, {EVENTS}) | 0 | {EVENTS} | 0 |" in text
    assert f"| is | {EVENTS} + 0 | {EVENTS} + 0 |" in text
    # 20 updates before, no policy has fallen: the evaluations show it at update 128
    assert f"| 16 | 0 of {2 * EVENTS} | 0 of {2 * EVENTS} | 0 of {2 * EVENTS} |" in text
    assert "| 20 | `drift` | all | 100% [" in text
    # low entropy is dangerous: the threshold is given as the statistic has it
    assert re.search(r"\| 20 \| entropy \| addition \| ≤ 0\.09\d* \| ", text)
    assert "nan" not in text
    assert "None" not in text


def test_the_figure_shows_every_statistic(written: Path) -> None:
    assert list(COLOURS) == list(STATISTICS)
    figure = collapse_view.figure(read_json(written / "collapse.json"))
    left, right = figure.axes
    assert left.get_legend_handles_labels()[1] == list(STATISTICS)
    assert [label.get_text() for label in right.get_xticklabels()] == [f"{h}\n{2 * EVENTS} runs" for h in HORIZONS]


def test_the_counts_add_up() -> None:
    rows = breakdown(made_up())
    assert [(r["task"], r["runs"], r["collapsed"], r["worse"]) for r in rows] == [
        ("reverse", EVENTS + HEALTHY, EVENTS, EVENTS),
        ("addition", EVENTS + HEALTHY, EVENTS, EVENTS),
    ]
