"""The headline of a run: which evaluations are its own, and what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dgpo.evaluation.estimates import interval
from dgpo.evaluation.paired import paired
from dgpo.report import cards, collect
from dgpo.report.evaluations import Results
from dgpo.report.headline import evaluated, logged, update_of
from dgpo.runs.log import Log
from dgpo.runs.results import SCHEMA

RUN = {"model": {"name": "models/base"}, "config": {"output_dir": "outputs/mine"}}


def results(model, correct, n=4, benchmark="sums", sha="1"):
    """Of P problems with n samples each; greedy is right where all samples are."""
    means = [c / n for c in correct]
    greedy = [int(c == n) for c in correct]
    estimates = {"greedy": interval(greedy), f"avg@{n}": interval(means), "pass@1": interval(means)}
    estimates["pass@4"] = interval([float(c > 0) for c in correct])
    rows = [{"id": i, "n": n, "correct": c, "greedy": g} for i, (c, g) in enumerate(zip(correct, greedy, strict=True))]
    document = {
        "schema": SCHEMA,
        "model": model,
        "benchmarks": {
            benchmark: {
                "problems": len(correct),
                "estimates": {name: vars(one) for name, one in estimates.items()},
                "data": {"sha256": sha},
                "grader": "1",
                "per_problem": rows,
                "excluded": [],
            }
        },
    }
    return Results(folder=Path(model), document=document, estimates={benchmark: (len(correct), estimates)})


@pytest.mark.parametrize(
    ("model", "update"),
    [
        ("models/base", 0),
        ("/home/me/models/base", 0),
        ("outputs/mine", float("inf")),
        ("./outputs/mine/", float("inf")),
        ("/home/me/outputs/mine", float("inf")),
        ("outputs/mine at update 0", 0),
        ("outputs/mine at update 40", 40),
        ("outputs/mine/checkpoint-40", 40),
        ("base", None),
        ("mine", None),
        ("outputs/mine/other", None),
        ("their/outputs/mine", None),
        ("outputs/other/checkpoint-40", None),
        ("", None),
    ],
)
def test_whose_model_was_evaluated(model, update):
    assert update_of(RUN, model) == update
    assert update_of({}, model) is None


def test_the_difference_is_paired_and_the_last_update_counts():
    first, middle, last = [0, 1, 2, 4, 0, 1], [4, 4, 4, 4, 4, 4], [2, 3, 4, 4, 1, 4]
    given = [
        results("outputs/mine", last),
        results("outputs/mine/checkpoint-9", middle),
        results("models/base", first),
        results("models/another", middle),
    ]
    main, *others = evaluated(RUN, given)
    assert main.name == "sums avg@4"
    assert [one.estimate for one in others] == ["greedy", "pass@4"]
    assert main.problems == 6
    assert main.before.value == pytest.approx(8 / 24)
    assert main.after.value == pytest.approx(18 / 24)
    assert main.difference == paired((first, 4), (last, 4)).difference
    assert others[0].difference.value == pytest.approx(3 / 6 - 1 / 6)
    assert others[1].difference is None, "pass@k is not paired by the comparison"


def test_other_problems_are_not_subtracted():
    given = [results("models/base", [0, 1, 2, 3]), results("outputs/mine", [4, 4, 3, 4], sha="2")]
    main = evaluated(RUN, given)[0]
    assert main.difference is None
    assert (main.before.value, main.after.value) == (6 / 16, 15 / 16)
    markup = cards._evaluated([_as_json(main)])
    assert "95 % intervals" in markup


def test_the_trained_model_alone_and_the_base_alone():
    (main, *_) = evaluated(RUN, [results("outputs/mine", [1, 2, 3, 4])])
    assert main.before is None
    assert evaluated(RUN, [results("models/base", [1, 2, 3, 4])]) == []


def test_logged_evaluations_go_from_the_first_to_the_last():
    log = Log.of(
        [
            {
                "step": 0,
                "eval/sums/greedy": 0.5,
                "eval/sums/avg@4": 0.2,
                "eval/sums/avg@4_se": 0.05,
                "eval_reward": 9.0,
            },
            {"step": 10, "eval/sums/avg@4": 0.6, "eval/sums/avg@4_se": 0.04},
            {"step": 20, "eval/sums/avg@4": 0.7, "eval/sums/avg@4_se": 0.03, "eval/sums/truncated": 0.1},
        ]
    )
    main, greedy = logged(log)
    assert (main.before.update, main.before.value, main.after.update, main.after.value) == (0, 0.2, 20, 0.7)
    assert main.after.low == pytest.approx(0.7 - 1.96 * 0.03)
    assert main.before.high == pytest.approx(0.2 + 1.96 * 0.05)
    assert (greedy.before, greedy.after.value, greedy.after.low) == (None, 0.5, None)
    (held_out,) = logged(Log.of([{"step": 5, "eval_reward": 0.25}, {"step": 9, "eval_reward": 0.5}]))
    assert (held_out.name, held_out.before.value, held_out.after.value) == ("held-out reward", 0.25, 0.5)
    assert logged(Log.of([{"step": 5, "reward": 0.25}])) == []


def test_the_card_leads_with_the_evaluation_and_says_so_where_there_is_none(tmp_path):
    record = tmp_path / "record"
    record.mkdir()
    (record / "run.json").write_text(json.dumps(RUN))
    rows = [{"step": step, "reward": step / 40} for step in range(1, 41)]
    (record / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = []
    for name, model, correct in (
        ("before", "models/base", [0, 1, 2, 4, 0, 1]),
        ("after", "outputs/mine", [2, 3, 4, 4, 1, 4]),
        ("other", "models/another", [4] * 6),
    ):
        given.append(tmp_path / name)
        given[-1].mkdir()
        (given[-1] / "results.json").write_text(json.dumps(results(model, correct).document))
    data = collect([record], given)
    markup = cards.header(data["runs"], data["evaluations"])
    assert '<span class="from">33.3</span>' in markup
    assert '<span class="to">75.0\u00a0%</span>' in markup
    ends = [100 * data["runs"][0]["headline"][0]["difference"][end] for end in ("low", "high")]
    low, high = (f"{end:+.1f}".replace("-", "−") for end in ends)
    assert f"difference +41.7 [{low}, {high}] points, 95 % interval, paired on 6 problems" in markup
    assert "training reward" in markup
    assert re.search(r"<li>sums, greedy: <strong>100.0 %</strong> \([\d.]+ to 100.0\), other</li>", markup)
    assert markup.count("<li>sums, ") == 1, "what is in the headline is not listed once more"

    data = collect([record])
    markup = cards.header(data["runs"], data["evaluations"])
    assert '<span class="from">0.0625</span>' in markup
    assert "mean of the first 4 points of the log and of the last. There is no evaluation." in markup


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ({"before": "models/base"}, ["before"]),
        ({"before": "models/base", "again": "models/base", "after": "outputs/mine"}, ["again"]),
        ({"middle": "outputs/mine/checkpoint-9", "after": "outputs/mine"}, ["middle"]),
        ({"before": "models/base", "after": "outputs/mine"}, []),
    ],
)
def test_what_no_headline_shows_is_listed(tmp_path, given, listed):
    record = tmp_path / "record"
    record.mkdir()
    (record / "run.json").write_text(json.dumps(RUN))
    (record / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    for name, model in given.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(model, [0, 1, 2, 3]).document))
    data = collect([record], [tmp_path / name for name in given])
    markup = cards.header(data["runs"], data["evaluations"])
    assert re.findall(r"<li>sums, .*</strong> \(.*\), (\w+)</li>", markup) == listed


def _as_json(change):
    ends = {name: None if (end := getattr(change, name)) is None else vars(end) for name in ("before", "after")}
    return {**vars(change), **ends, "name": change.name}
