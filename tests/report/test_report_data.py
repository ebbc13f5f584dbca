"""`collect`: what it reads of runs, checked against the core; and what it says of runs that lack something."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from dgpo import TokenBatch, objectives
from dgpo.diagnostics import load, record
from dgpo.diagnostics.doctor import diagnose
from dgpo.diagnostics.replay import replay
from dgpo.regions import REGIONS
from dgpo.report import collect
from dgpo.report.data import labels
from dgpo.report.series import MAX_POINTS, thinned
from dgpo.report.weight_curves import weights


@pytest.fixture(scope="module")
def data(runs, results):
    return collect(runs, [results])


def test_curves_are_what_was_logged(data, runs):
    for path, run in zip(runs, data["runs"], strict=True):
        logged = [row for row in load(path).metrics if "reward" in row]
        (line,) = run["charts"]["reward"]
        assert line["x"] == [row["step"] for row in logged]
        assert line["y"] == pytest.approx([row["reward"] for row in logged], rel=1e-4)
        for name in ("reward", "zero_std", "entropy", "kl", "grad_norm", "length"):
            assert run["charts"][name], name


def test_the_summary(data):
    first, second = data["runs"]
    assert (first["objective"], second["objective"]) == ("dgpo:n=2", "grpo")
    for run in data["runs"]:
        assert run["summary"]["updates"] == run["summary"]["planned"] == 24
        assert run["summary"]["finished"] is True
        y = run["charts"]["reward"][0]["y"]
        assert run["summary"]["reward"] == pytest.approx([sum(y[:3]) / 3, sum(y[-3:]) / 3], rel=1e-3)


def test_findings_and_replay_are_those_of_the_diagnostics(data, runs):
    for path, run in zip(runs, data["runs"], strict=True):
        loaded = load(path)
        assert run["findings"] == [finding.as_dict() for finding in diagnose(loaded)]
        assert run["replay"] == replay(loaded).as_dict()


def test_regions_add_up_and_begin_on_policy(data):
    for run in data["runs"]:
        for part, length in (("over", 6), ("within", 4)):
            for kind in ("fraction", "mass"):
                found = run["regions"][part][kind]
                assert len(found["x"]) == length
                for i in range(length):
                    assert sum(found[region][i] for region in REGIONS) == pytest.approx(1, abs=1e-4)
        assert run["regions"]["within"]["fraction"]["inside"][0] == 1
        assert run["regions"]["within"]["fraction"]["inside"][3] < 1


def test_regions_from_the_log_where_there_are_no_tokens(data, runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run", ignore=shutil.ignore_patterns("tokens"))
    (run,) = collect([tmp_path / "run"])["runs"]
    assert run["regions"]["from"] == "log"
    assert run["regions"]["within"] == {}
    assert len(run["regions"]["over"]["fraction"]["x"]) == 24
    # each update of all of them was recorded, so that the two ways must agree; tokens without advantage are inside
    log = run["regions"]["over"]["mass"]["left"]
    by_tokens = data["runs"][0]["regions"]["over"]["mass"]["left"]
    assert [sum(log[i : i + 4]) / 4 for i in range(0, 24, 4)] == pytest.approx(by_tokens, abs=1e-3)
    assert run["histogram"] is run["replay"] is None
    assert "no recorded tokens" in run["no_tokens"]


def test_the_histogram_counts_every_token(data, runs):
    for path, run in zip(runs, data["runs"], strict=True):
        found, loaded = run["histogram"], load(path)
        assert found["tokens"] == sum(int((r.tokens.advantage != 0).sum()) for r in loaded.recorded())
        assert sum(found["negative"]) + sum(found["positive"]) == pytest.approx(1, abs=1e-3)


def test_weight_curves_are_the_objectives(data):
    found = data["weights"]
    methods = {method["label"]: method for method in found["methods"]}
    assert set(methods) == {*objectives.OBJECTIVES, "dgpo:n=2"}
    x = torch.tensor(found["log_ratio"], dtype=torch.float64)
    for q, level in enumerate(found["old_probs"]):
        old = torch.full((len(x), 1), math.log(level["value"]), dtype=torch.float64)
        reachable = (old[:, 0] + x) <= 1e-5
        for name, objective in (("dgpo:n=2", objectives.make("dgpo", n=2)), ("maspo", objectives.make("maspo"))):
            for sign, advantage in (("negative", -1.0), ("positive", 1.0)):
                ones = torch.ones(len(x), 1)
                batch = TokenBatch(old + x[:, None], old, advantage * ones[:, 0].double(), ones)
                expected = objective.weight(batch)[:, 0]
                drawn = methods[name][sign][q]
                for i in range(len(x)):
                    if drawn[i] is None:
                        assert old[i] + x[i] > -1e-5
                    else:
                        assert drawn[i] == pytest.approx(float(expected[i]), rel=1e-4)
                assert sum(value is not None for value in drawn) >= int(reachable.sum()) - 1


def test_a_method_that_drops_a_token_has_weight_zero_there():
    assert weights(objectives.make("grpo"), [-1.0, 0.0, 1.0], 0.1, -1.0) == [0.0, 1.0, pytest.approx(math.e, rel=1e-4)]
    assert weights(objectives.make("grpo"), [-1.0, 0.0, 1.0], 0.9, 1.0)[2] is None


def test_top_tokens_are_sorted_and_decoded(data):
    for run in data["runs"]:
        shares = [token["share"] for token in run["top_tokens"]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < shares[0] <= 1
        assert all(len(token["text"]) == 1 or token["text"].startswith("<") for token in run["top_tokens"])
        assert run["undecoded"] == ""


def test_evaluations(data):
    assert [(row["label"], row["estimate"], row["value"]) for row in data["evaluations"]] == [
        ("after", "greedy", 0.8),
        ("after", "avg@8", 0.5),
    ]


def test_a_run_with_a_broken_token_has_a_report(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    recorded = load(tmp_path / "run").tokens(7)
    recorded.tokens.logprob[0, 0] = math.nan
    record(tmp_path / "run", recorded.tokens, update=7, generation=1)
    (run,) = collect([tmp_path / "run"])["runs"]
    assert run["broken"] == [7]
    assert run["read"] == 23
    assert any(finding["severity"] == "error" for finding in run["findings"])


def test_tokens_alone(make_batch, tmp_path):
    record(tmp_path / "run", make_batch().tokens(), update=3)
    data = collect([tmp_path / "run"])
    (run,) = data["runs"]
    assert run["objective"] is None
    assert run["top_tokens"] == []
    assert set(run["regions"]["over"]) == {"fraction"}
    assert run["regions"]["within"] == {}
    assert not any(run["charts"].values())
    assert run["replay"]["reference"] is None


def test_a_log_with_the_names_of_another_trainer(tmp_path):
    rows = [{"step": i, "critic/score/mean": i / 10, "actor/entropy": 1.0, "actor/grad_norm": 0.5} for i in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = collect([tmp_path])["runs"]
    assert run["charts"]["reward"][0]["y"] == [i / 10 for i in range(1, 9)]
    assert run["summary"]["reward"] == pytest.approx([0.2, 0.7])
    assert run["summary"]["finished"] is None


def test_a_log_whose_steps_have_another_name(tmp_path):
    rows = [{"_step": i, "reward": i / 10} for i in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = collect([tmp_path])["runs"]
    assert run["summary"]["updates"] == 8


def test_what_was_not_finite_is_a_gap(tmp_path):
    rows = [{"step": i, "grad_norm": "nan" if i == 3 else 1.0} for i in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = collect([tmp_path])["runs"]
    assert run["charts"]["grad_norm"][0]["y"] == [1.0, 1.0, None, 1.0, 1.0]


def test_long_curves_keep_their_spikes():
    points = [(step, 1.0 if step == 12_345 else -2.0 if step == 20_000 else step % 7 / 100) for step in range(30_000)]
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert (12_345, 1.0) in kept
    assert (20_000, -2.0) in kept
    assert kept == sorted(kept)


def test_labels_tell_runs_apart():
    assert labels([Path("/a/dgpo/record"), Path("/a/grpo/record")]) == ["dgpo", "grpo"]
    assert labels([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert labels([Path("/a/x"), Path("/a/x/record")]) == ["x", "record"]
    assert labels([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    with pytest.raises(ValueError, match="given twice"):
        labels([Path("/a/x"), Path("/a/../a/x")])


def test_a_tokenizer_outside_the_run_is_not_read(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "tokenizer": str(runs[1] / "tokenizer")}))
    (run,) = collect([tmp_path / "run"])["runs"]
    assert "has no folder" in run["undecoded"]
    assert run["top_tokens"][0]["text"].startswith("#")


def test_nothing_to_report(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="neither metrics nor recorded tokens"):
        collect([tmp_path])
    with pytest.raises(FileNotFoundError, match="does not exist; expected a run folder or a log"):
        collect([tmp_path / "nowhere"])


def test_wrong_results(runs, tmp_path):
    with pytest.raises(ValueError, match=r"holds no results\.json"):
        collect(runs[:1], [tmp_path])
    (tmp_path / "results.json").write_text('{"schema": "other/1"}')
    with pytest.warns(UserWarning, match="left out: .*'other/1'"):
        assert collect(runs[:1], [tmp_path])["evaluations"] == []
