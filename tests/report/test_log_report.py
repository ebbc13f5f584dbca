"""The report of a log alone, and the curves that depend on what a trainer logs."""

from __future__ import annotations

import json

import pytest
from browsing import traces

from dgpo.report import collect, page, series, write_report
from dgpo.runs.log import Log


def lines(count=60):
    """A log of TRL's with two reward functions, a spike in the gradient, and shares of 0 or 1."""
    return [
        {
            "step": step,
            "reward": 0.5,
            "rewards/right/mean": step / count,
            "rewards/format/mean": 1.0,
            "grad_norm": 900.0 if step == 30 else 1.0 + 0.01 * (step % 7),
            "frac_reward_zero_std": float(step % 3 == 0),
            "completions/clipped_ratio": 0.0,
            "num_tokens": 1000.0 * step,
            "step_time": 2.0,
            "kl": 0.001 * step,
            "learning_rate": 1e-5 * (1 - step / count),
        }
        for step in range(1, count + 1)
    ]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "trainer_state.json"
    path.write_text(json.dumps({"log_history": lines()}))
    return path


def test_curves_of_what_a_trainer_logs():
    found = series.charts(Log.of(lines()))
    assert [line["name"] for line in found["functions"]] == ["right", "format"]
    assert set(found["speed"][0]["y"]) == {500.0}
    assert found["kl_reference"][0]["y"][-1] == pytest.approx(0.06)
    for name in ("truncated", "learning_rate", "step_time"):
        assert len(found[name][0]["x"]) == 60, name
    assert found["kl"] == []
    assert not series.charts(Log.of([{"step": 1, "reward": 1.0, "rewards/only/mean": 1.0}]))["functions"]


def test_the_speed_counts_the_time_of_every_update_between_two_log_lines():
    rows = [{"step": step, "num_tokens": 100.0 * step**2, "step_time": 4.0} for step in (10, 20, 40)]
    found = series.speed(Log.of(rows))
    assert found.steps == (20, 40)
    assert found.values == (pytest.approx(100 * 300 / 40), pytest.approx(100 * 1200 / 80))
    assert not len(series.speed(Log.of([{"step": 1, "num_tokens": 5.0}, {"step": 2, "num_tokens": 9.0}])))


def test_the_page_of_a_log_has_what_is_there(log):
    data = collect([log])
    text = page(data)
    for name in ("curves", "doctor", "evaluation"):
        assert f'<section id="{name}"' in text
        assert f'href="#{name}"' in text
    for name in ("written", "regions", "overlay", "explorer", "replay", "tokens"):
        assert f'<section id="{name}"' not in text
        assert f'href="#{name}"' not in text
    assert "<dt>objective</dt>" not in text
    assert data["runs"][0]["summary"]["updates"] == 60


def test_its_curves_are_drawn_without_flattening_what_is_not_a_spike(open_page, log, tmp_path):
    shown = open_page(write_report([log], tmp_path / "page.html"))
    raw, smooth, beyond = traces(shown, "plot-grad_norm")
    assert (beyond["x"], beyond["meta"]["part"]) == ([30], "beyond")
    assert max(raw["y"]) == 900
    assert max(smooth["y"]) < 1.1, "a spike is no plateau"
    assert shown.evaluate("document.getElementById('plot-grad_norm').layout.yaxis.range[1]") < 3
    # of shares that are 0 or 1 at each step the mean is drawn, which a median is not
    smooth = traces(shown, "plot-zero_std")[1]["y"]
    assert all(0.15 < share < 0.55 for share in smooth[5:-5])
    note = shown.text_content("#curve-note")
    assert "cut off at the limit is 0 throughout" in note
    assert "Not in the log: entropy, KL divergence (from π_old, sampler to trainer), response length" in note
    assert [trace["name"] for trace in traces(shown, "plot-functions")][1::2] == ["right", "format"]
