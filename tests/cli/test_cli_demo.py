"""`dgpo starter` and `dgpo demo`, cut short: the starter is accepted at once and trained for one generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.diagnostics import load
from dgpo.tasks import Addition
from dgpo.training import demo, starter


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few problems, a small model, and no accuracy to wait for."""
    problems = Addition.problems

    def few(self: Addition, split: Any) -> list[dict[str, str]]:
        return problems(self, split)[: 400 if split == "train" else 40]

    tiny_model = starter.tiny_model
    monkeypatch.setattr(Addition, "problems", few)
    monkeypatch.setattr(starter, "tiny_model", lambda tokenizer, seed: tiny_model(tokenizer, hidden=32, seed=seed))
    monkeypatch.setattr(starter, "TARGET_ACCURACY", 0.0)


def test_starter(dgpo: Callable[..., Any], short: None, output: Path) -> None:
    """An ordinary model folder, and starter.json, which says how it was made."""
    done = dgpo("starter", "--task", "addition", "--out", output, "--seed", 3)
    assert done.code == 0, done.err
    summary = json.loads((output / "starter.json").read_text())
    assert summary.keys() == {"task", "seed", "steps", "validation_accuracy", "parameters", "seconds"}
    assert (summary["task"], summary["seed"], summary["steps"]) == ("addition", 3, 50)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.num_parameters() == summary["parameters"]
    assert model.config.model_type == "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer("12+34=46")["input_ids"]) == "12+34=46"
    assert f"{output}: {summary['parameters']:,} parameters" in done.out


def test_demo(dgpo: Callable[..., Any], short: None, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that it promises; the second run finds the starter and gives the same results."""
    done = dgpo("demo", "--out", output, "--seed", 1, "--updates", 4)
    assert done.code == 0, done.err
    summary = json.loads((output / "summary.json").read_text())
    assert summary.keys() == {"before", "after", "objective", "updates", "seconds", "seed", "examples"}
    assert (summary["objective"], summary["updates"], summary["seed"]) == ("dgpo", 4, 1)
    for when in ("before", "after"):
        assert summary[when].keys() == {"greedy", "avg@8", "pass@8"}
        results = json.loads((output / when / "results.json").read_text())
        values = {
            name: round(results["benchmarks"]["addition"]["estimates"][name]["value"], 4) for name in summary[when]
        }
        assert values == summary[when]
        lines = (output / when / "generations.jsonl").read_text().splitlines()
        greedy = [row for row in map(json.loads, lines) if row["kind"] == "greedy"]
        assert [one["prompt"] for one in summary["examples"]] == [row["prompt"] for row in greedy[:3]]
        for one, row in zip(summary["examples"], greedy, strict=False):
            assert one[when] == {"completion": row["completion"], "correct": row["score"] > 0}
            assert f"{one['prompt']}{one['answer']}" in done.out
        assert (output / when / "generations.jsonl").is_file()
    for row in ("greedy", "avg@8", "pass@8", "before", "after"):
        assert row in done.out
    assert f"{output}/summary.json" in done.out
    assert load(output / "record").updates == [1, 2, 3, 4]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "greedy" in page
    assert f"{output}/report.html" in done.out
    AutoModelForCausalLM.from_pretrained(output / "model")
    assert "2603.14389" in (output / "model" / "README.md").read_text()

    def not_again(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the starter model is there already")

    written = (output / "starter" / "starter.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(demo, "make_starter", not_again)
        second = dgpo("demo", "--out", output, "--seed", 1, "--updates", 4)
    assert second.code == 0, second.err
    assert "found in" in second.out
    again = json.loads((output / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    # another seed is another starter
    third = dgpo("demo", "--out", output, "--seed", 2, "--updates", 1, "--objective", "grpo")
    assert third.code == 0, third.err
    assert (output / "starter" / "starter.json").stat().st_mtime_ns > written
    assert json.loads((output / "summary.json").read_text())["objective"] == "grpo"
