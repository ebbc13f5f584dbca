"""Many runs: grouped by what differs apart from the seed, in one line and one band per group."""

from __future__ import annotations

import json

import pytest
from browsing import traces

from dgpo.regions import REGIONS
from dgpo.report import cards, collect, sections, write_report
from dgpo.report.grouping import group


def info(**changes):
    config = {"seed": 0, "learning_rate": 1e-4, "output_dir": "a"}
    return {"run": "x", "seed": 0, "config": {**config, **changes}}


def test_runs_that_differ_in_their_seed_alone_are_one_group():
    infos = [info(seed=0, output_dir="a"), info(seed=1, output_dir="b"), info(seed=0), info(seed=1)]
    found = group(["a", "b", "c", "d"], ["dgpo", "dgpo", "grpo", "grpo"], infos)
    assert (found.labels, found.of, found.several) == (("dgpo", "grpo"), (0, 0, 1, 1), True)
    assert found.differences == {"objective": ("dgpo", "dgpo", "grpo", "grpo"), "config.seed": ("0", "1", "0", "1")}


def test_what_else_differs_names_the_group():
    infos = [info(learning_rate=1e-4), info(learning_rate=1e-4, seed=3), info(learning_rate=3e-4, beta=0.1)]
    found = group(["a", "b", "c"], ["dgpo"] * 3, infos)
    assert found.labels == ("learning_rate = 0.0001, beta = –", "learning_rate = 0.0003, beta = 0.1")
    assert found.of == (0, 0, 1)


def test_what_differs_has_no_row_twice_and_none_for_null_against_nothing():
    """The reward functions are among it."""
    infos = [
        info(seed=0, model_init_kwargs=None, beta=None) | {"rewards": ["exact"]},
        info(seed=1, model_init_kwargs={"device_map": None, "dtype": None})
        | {"seed": 1, "rewards": ["exact", "short"]},
    ]
    assert group(["a", "b"], ["dgpo", "dgpo"], infos).differences == {
        "config.seed": ("0", "1"),
        "rewards": ('["exact"]', '["exact", "short"]'),
    }
    logs = [{"seed": 0}, {"seed": 1}]
    assert group(["a", "b"], [None, None], logs).differences == {"seed": ("0", "1")}


def test_runs_without_a_group_keep_their_names():
    found = group(["a", "b"], ["dgpo", "grpo"], [info(), info()])
    assert (found.labels, found.several) == (("a", "b"), False)
    found = group(["a", "b"], [None, None], [{}, {}])
    assert found.of == (0, 1), "of logs nothing is known that would make them one group"
    assert group(["a"], ["dgpo"], [info()]).labels == ("a",)
    found = group(["a", "b"], ["dgpo", "dgpo"], [info(), info(seed=1)])
    assert (found.labels, found.several) == (("dgpo",), False), "two runs are two lines"
    assert group(["a", "b", "c"], ["dgpo"] * 3, [info(seed=seed) for seed in range(3)]).several


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two methods, two seeds, from the log alone."""
    made, folder = [], tmp_path_factory.mktemp("four")
    for method, base in (("dgpo", 0.5), ("grpo", 0.3)):
        for seed in (0, 1):
            run = folder / f"{method}-{seed}"
            run.mkdir()
            (run / "run.json").write_text(json.dumps({**info(seed=seed), "objective": {"name": method}}))
            regions = {f"objective/fraction/{region}": 0.1 for region in REGIONS}
            rows = [{"step": step, "reward": base + 0.1 * seed, "entropy": 1.0 / step} for step in range(1, 41)]
            rows = [{**row, **regions} for row in rows]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            made.append(run)
    return made


def test_a_card_per_group_a_row_per_run_and_shared_sections_once(four):
    data = collect(four)
    markup = cards.header(data["runs"], data["evaluations"], data["groups"])
    assert markup.count("<article") == 2
    assert "median of 2 runs, from 0.500 to 0.600" in markup
    assert markup.count('<th scope="row"') == 4 + len(data["groups"]["differences"])
    assert [run["colour"] for run in data["runs"]] == [0, 0, 1, 1]
    shared = sections.findings_of_all(data["runs"])
    rules = {one["rule"] for run in data["runs"] for one in run["findings"]}
    assert rules
    for rule in rules:
        assert shared.count(f"<code>{rule}</code>") == 1


def test_one_line_and_one_band_per_group(open_page, four, tmp_path):
    shown = open_page(write_report(four, tmp_path / "page.html"))
    drawn = {}
    for one in traces(shown, "plot-reward"):
        if "group" in one["meta"]:
            drawn[one["meta"]["group"], one["meta"]["part"]] = one["y"]
    assert set(drawn) == {(at, part) for at in (0, 1) for part in ("low", "high", "median")}
    assert drawn[0, "median"][10] == pytest.approx(0.55)
    assert (drawn[1, "low"][10], drawn[1, "high"][10]) == (pytest.approx(0.3), pytest.approx(0.4))
    shown.uncheck("#runs input[value='1']")
    assert traces(shown, "plot-reward")[0]["y"][10] == pytest.approx(0.5), "the median of the runs that are shown"
    # sections about one run each show one at a time, chosen in any of them
    assert shown.is_visible("#regions-0")
    assert not shown.is_visible("#regions-2")
    shown.select_option("#regions select", "2")
    assert shown.is_visible("#regions-2")
    assert not shown.is_visible("#regions-0")
