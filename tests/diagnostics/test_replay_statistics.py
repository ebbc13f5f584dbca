"""The statistics of one update under an objective: closed forms, and bounds that hold for any batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo import TokenBatch
from dgpo.diagnostics.replay import replay
from dgpo.diagnostics.weighed import QUANTILES, Valid, statistics
from dgpo.objectives import OBJECTIVES, Objective, make
from dgpo.regions import REGIONS
from dgpo.runs.run import load
from dgpo.runs.write import record

METHODS = list(OBJECTIVES)


def statistics_of(x: float, advantage: float, objective: Objective) -> dict[str, float]:
    old = torch.full((1, 1), -2.0, dtype=torch.float64)
    tokens = TokenBatch(old + x, old, torch.tensor([advantage], dtype=torch.float64), torch.ones(1, 1))
    valid = Valid.of(tokens)
    return {name: float(value) for name, value in statistics(valid, valid.weight(objective), 1.0).items()}


@given(st.floats(-3.0, -0.25), st.integers(1, 4))
def test_bias_of_the_power_decay_on_the_left(x: float, n: int) -> None:
    """|w - r| = lo·u·(1 - uⁿ) with u = r / lo, against |A|·r: 1 - uⁿ. Reference 2.7."""
    found = statistics_of(x, -1.5, make("dgpo", n=n))
    u = math.exp(x) / 0.8
    assert found["bias"] == pytest.approx(1 - u**n)
    assert found["bias/left"] == found["bias"]
    assert found["cosine"] == pytest.approx(1)
    assert found["bias_equal_step"] == pytest.approx(0, abs=1e-12)  # one token has all of every step
    assert found["step_size"] == pytest.approx(1.5 * 0.8 * u ** (n + 1) * -math.expm1(-2.0 + x))


@given(st.floats(0.2, 1.9), st.integers(1, 4))
def test_bias_of_the_root_on_the_right(x: float, m: int) -> None:
    """|w - r| / r = 1 - v^(-1/m) with v = r / hi."""
    found = statistics_of(x, 0.7, make("dgpo", m=m))
    assert found["bias"] == pytest.approx(1 - (math.exp(x) / 1.2) ** (-1 / m))
    assert found["bias/right"] == found["bias"]


@given(st.floats(-3.0, -0.25))
def test_a_hard_clip_loses_the_whole_token(x: float) -> None:
    found = statistics_of(x, -1.0, make("grpo"))
    assert found["bias"] == pytest.approx(1)
    assert found["weight/zero_fraction"] == 1
    assert found["step_size"] == found["cosine"] == found["weight/ess"] == found["top_percent_share"] == 0
    assert found["bias_equal_step"] == pytest.approx(1)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_bounds_that_hold_for_any_batch(name: str, make_batch: Callable[..., Any], seed: int) -> None:
    tokens = make_batch(seed=seed, spread=1.5).tokens()
    valid = Valid.of(tokens)
    found = {key: float(value) for key, value in statistics(valid, valid.weight(make(name)), 1.0).items()}
    unclipped = {key: float(value) for key, value in statistics(valid, valid.ratio, 1.0).items()}
    assert all(math.isfinite(value) for value in found.values())
    assert found["bias"] == pytest.approx(sum(found[f"bias/{region}"] for region in REGIONS))
    assert -1 - 1e-9 <= found["cosine"] <= 1 + 1e-9
    assert -1e-9 <= found["bias_equal_step"] <= 2 + 1e-9
    assert 0 <= found["weight/ess"] <= 1 + 1e-9
    assert sum(found[f"gradient/{region}"] for region in REGIONS) == pytest.approx(1 if found["step_size"] else 0)
    assert (unclipped["bias"], unclipped["bias_equal_step"]) == (0, 0)
    assert unclipped["cosine"] == pytest.approx(1)


def test_on_policy_nothing_can_differ(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    """At ratio 1 every method that has weight 1 there is unclipped importance sampling."""
    for update in (1, 2):
        record(tmp_path, make_batch(seed=update, spread=0.0).tokens(), update=update)
    rows = [row for row in replay(load(tmp_path)).rows if make(row.name).properties().unit_on_policy]
    assert len(rows) >= 15
    for row in rows:
        assert (row.bias, row.cosine, row.factor) == pytest.approx((0, 1, 1), abs=1e-6)
        assert row.gradient["inside"] == pytest.approx(1)
        assert list(row.weight.values()) == pytest.approx([1] * len(QUANTILES))
