"""The text of the page: what stands in cards and cells is what was collected."""

from __future__ import annotations

import json
import re

import pytest

from dgpo.diagnostics import record
from dgpo.report import cards, collect, sections


@pytest.fixture(scope="module")
def data(runs, results):
    return collect(runs, [results])


def cells(markup, head):
    """The numbers that the cells of a column are sorted by, from the page."""
    columns = re.findall(r"<th scope=.col.[^>]*>(?:<button[^>]*>)?(.*?)<", markup)
    rows = re.findall(r"<tr[^>]*>(<th scope=.row.*?)</tr>", markup)
    found = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row)[columns.index(head)] for row in rows]
    return [(float(re.search(r'data-value="([^"]*)"', of)[1]), text) for of, text in found]


def test_every_cell_of_the_replay(data):
    columns = {
        "bias": "bias",
        "equal step": "bias_equal_step",
        "cosine": "cosine",
        "step": "step_size",
        "factor": "factor",
        "ESS": "ess",
        "w = 0": "zero_fraction",
        "max w": "weight_max",
        "top 1 %": "top_percent_share",
    }
    assert tuple(columns) == sections.REPLAY_HEAD[1:]
    run = data["runs"][0]
    markup = sections.replay(run, 0)
    for head, name in columns.items():
        assert [value for value, _ in cells(markup, head)] == [row[name] for row in run["replay"]["rows"]]
    for head in ("w = 0", "top 1 %"):
        assert [text for _, text in cells(markup, head)] == [
            f"{100 * row[columns[head]]:.1f} %" for row in run["replay"]["rows"]
        ]
    assert len({(row["zero_fraction"], row["top_percent_share"]) for row in run["replay"]["rows"]}) > 2
    assert "in training on every micro-batch: " in markup
    assert re.search(r"every micro-batch: [\w, ]*\bbapo\b", markup)


def test_a_card_goes_from_the_start_to_the_end(data):
    run = {**data["runs"][0], "headline": [], "summary": {**data["runs"][0]["summary"], "reward": [0.25, 0.5]}}
    markup = cards.header([run], [])
    assert '<span class="from">0.250</span>' in markup
    assert '<span class="to">0.500</span>' in markup
    assert "(+0.25)" in markup


def test_the_ends_of_intervals(data):
    markup = sections.evaluations(data["evaluations"])
    assert "76.0 to 84.0 %" in markup
    assert "47.0 to 53.0 %" in markup
    assert [(row["low"], row["high"]) for row in data["evaluations"]] == [(0.76, 0.84), (0.47, 0.53)]
    assert "80.0 %</strong> (76.0 to 84.0)" in cards.header([], data["evaluations"])


def test_the_doctor_is_not_content_with_a_log_that_it_cannot_read(tmp_path, data):
    rows = [{"step": i, "something/else": 1.0} for i in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = collect([tmp_path])["runs"]
    assert run["findings"] == []
    for markup in (cards.header([run], []), sections.findings(run, 0)):
        assert "annot tell" in markup
        assert "nothing wrong" not in markup
        assert "No rule" not in markup
    content = {**data["runs"][0], "findings": [], "unknown": {}}
    assert "✔ the doctor finds nothing wrong<" in cards.header([content], [])
    assert "Read: reward" in sections.findings(content, 0)
    content["unknown"] = {"whether the policy stays near the reference": "no KL in the log"}
    assert "✔ the doctor finds nothing wrong in what was read<" in cards.header([content], [])
    assert "<li>whether the policy stays near the reference: no KL in the log</li>" in sections.findings(content, 0)


def test_a_run_whose_objective_is_not_registered(make_batch, tmp_path):
    record(tmp_path, make_batch().tokens(), update=1)
    (tmp_path / "run.json").write_text('{"objective": {"name": "of_a_plugin"}}')
    (run,) = collect([tmp_path])["runs"]
    assert "of_a_plugin (not registered" in cards.header([run], [])
    assert "No row is the run's own: of_a_plugin" in sections.replay(run, 0).replace("&#x27;", "'")
    assert "of_a_plugin" in sections.top_tokens(run, 0)


def test_findings_of_many_runs_keep_causes_before_what_follows_from_them():
    def finding(rule, severity, follows=None):
        words = {name: f"{name} of {rule}" for name in ("title", "cause", "remedy")}
        return {
            **words,
            "rule": rule,
            "severity": severity,
            "evidence": [],
            "step": 3,
            "confidence": "likely",
            "follows": follows,
        }

    broken = [finding("rate", "warning"), finding("collapse", "error", "rate"), finding("length", "note")]
    others = [[finding("clipped", "warning")], [finding("clipped", "warning"), finding("length", "note")]]
    runs = [
        {"label": f"run {i}", "colour": i, "findings": found, "can_tell": True}
        for i, found in enumerate([broken, *others])
    ]
    markup = sections.findings_of_all(runs)
    assert re.findall(r"<code>(\w+)</code> in", markup) == ["rate", "collapse", "clipped", "length"]
    assert "(likely; follows from <code>rate</code>)" in markup
    alone = sections.findings(
        {**runs[0], "covered": "read: x", "remarks": [], "unknown": {"why": "no loss in the log"}}, 0
    )
    assert "<code>rate</code>, from update 3 (likely)</p>" in alone
    assert "(likely; follows from <code>rate</code>)</p>" in alone
