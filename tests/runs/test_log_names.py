"""The vocabulary of logs: names of every framework, unknown names that look like one, and the page about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo.runs.log import Log
from dgpo.runs.names import QUANTITIES, as_markdown, find, offers, reward_functions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
NAMES = [(quantity, name.replace("*", "policy")) for quantity, about in QUANTITIES.items() for name in about.patterns]


def test_the_page_has_the_table() -> None:
    assert as_markdown() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_every_name_is_found_with_and_without_the_prefix_of_a_logger(prefix: str) -> None:
    for quantity, name in NAMES:
        assert find(quantity, [prefix + name]) == prefix + name


def test_no_name_is_that_of_two_quantities() -> None:
    for quantity, name in NAMES:
        also = [other for other in QUANTITIES if other != quantity and find(other, [name])]
        assert also == [], (quantity, name)


def test_evaluations_are_no_metrics_of_training() -> None:
    for quantity, name in NAMES:
        for prefix in ("eval_", "eval/", "val-core/", "val/", "test/"):
            assert find(quantity, [prefix + name]) is None


def test_the_first_name_counts() -> None:
    assert find("loss", ["loss", "policy_loss"]) == "policy_loss"
    assert find("reward", ["reward", "rollout/reward_mean"]) == "reward"
    # a name as it is comes before one with a prefix
    assert find("reward", ["train/reward", "critic/score/mean"]) == "critic/score/mean"


def test_reward_functions() -> None:
    keys = [
        "rewards/accuracy/mean",
        "rewards/accuracy/std",
        "train/rewards/format",
        "eval_rewards/accuracy/mean",
        "rewards/chosen",
        "rewards/margins",
        "train/agg/all/policy/rewards/tests/mean",
    ]
    assert reward_functions(keys) == {
        "accuracy": "rewards/accuracy/mean",
        "format": "train/rewards/format",
        "tests": "train/agg/all/policy/rewards/tests/mean",
    }


@pytest.mark.parametrize(
    ("quantity", "name"),
    [
        ("reward", "reward_mean"),
        ("reward", "mean_reward"),
        ("reward", "avgReward"),
        ("reward", "env/score"),
        ("reward_std", "rewards_std"),
        ("kl_reference", "kl_loss_value"),
        ("kl_reference", "kl_ref"),
        ("clipped", "clip_frac"),
        ("clipped", "ppo/clip-fraction"),
        ("grad_norm", "gnorm"),
        ("length", "avg_response_len"),
        ("length_max", "max_len"),
        ("learning_rate", "lr_policy"),
        ("truncated", "truncation_rate"),
        ("zero_std", "zero_variance_groups"),
        ("zero_std", "flat_reward_group_ratio"),
        ("kl_reference", "loss_kl"),
    ],
)
def test_names_that_look_like_a_quantity(quantity: str, name: str) -> None:
    assert offers(quantity, [name]) == (name,)


@pytest.mark.parametrize(
    ("quantity", "name"),
    [
        ("reward", "reward_std"),
        ("reward", "reward_max"),
        ("reward", "eval_reward_mean"),
        ("reward", "time_per_reward"),
        ("reward", "nonzero_reward_ratio"),
        ("reward", "reward_gap_raw_mean"),
        ("length", "length_max"),
        ("grad_norm", "weight_norm"),
        ("kl_reference", "kl_coef"),
        ("entropy", "entropy_coef"),
    ],
)
def test_names_that_do_not(quantity: str, name: str) -> None:
    assert offers(quantity, [name]) == ()


def test_the_closest_name_is_offered_first() -> None:
    assert offers("reward", ["format_reward_x", "mean_reward", "reward_of_format"])[0] == "mean_reward"


def test_only_what_is_missing_is_offered() -> None:
    rows = [{"step": step, "reward": 1.0, "mean_reward": 1.0, "clip_frac": 0.1, "note_kl_loss": "x"} for step in (1, 2)]
    log = Log.of(rows)
    assert log.offers == {"clipped": ("clip_frac",)}
    assert Log.of(rows, {"clipped": "clip_frac"})["clipped"].values == (0.1, 0.1)
    assert Log.of(rows, {"clipped": "clip_frac"}).offers == {}


def test_what_is_there_but_no_number_is_told_apart_from_what_is_absent() -> None:
    rows = [
        {"step": 1, "reward": None, "kl": float("nan"), "entropy": "n/a", "loss": 1.0},
        {"step": 2, "reward": None, "kl": float("inf"), "entropy": [1.0, 2.0], "loss": True},
    ]
    log = Log.of(rows)
    assert log["reward"].empty == (1, 2)
    assert log["kl_reference"].broken == (1, 2)
    assert log["entropy"].unreadable == (1, 2)
    assert log["loss"].values == (1.0, 1.0)
    assert set(log.names) == {"reward", "kl_reference", "entropy", "loss"}
    assert log["grad_norm"].key == ""
    assert "no number" in str(log["reward"])


def test_steps_that_are_logged_twice() -> None:
    rows = [
        {"step": 1, "reward": 1.0},
        {"step": 1, "loss": 1.0},
        {"step": 2, "reward": 1.0},
        {"step": 2, "reward": 3.0},
    ]
    log = Log.of([*rows, {"step": 2, "reward": None}])
    assert log.repeated == (2,)
    assert log["reward"].values == (1.0, 3.0)
