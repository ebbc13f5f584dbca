"""`dgpo eval` on a tiny random model: what it prints and writes, where, and that it can be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.tasks import Addition


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_task(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    """The table and both files; only the first problems of the test split; greedy first, then the samples."""
    done = dgpo("eval", "--model", tiny, "--task", "addition", "--samples", 4, "--limit", 6, "--out", output)
    assert done.code == 0, done.err
    results = json.loads((output / "results.json").read_text())
    names = ["greedy", "avg@4", "pass@1", "pass@2", "pass@4"]
    assert list(results["estimates"]) == names
    assert all(set(estimate) == {"value", "low", "high"} for estimate in results["estimates"].values())
    assert (results["model"], results["data"], results["problems"]) == (str(tiny), "addition", 6)
    settings = results["settings"]
    assert (settings["samples"], settings["seed"], settings["max_new_tokens"]) == (4, 0, Addition.max_new_tokens)
    assert set(settings["versions"]) == {"dgpo", "torch", "transformers"}

    generations = rows(output)
    assert len(generations) == 6 * (1 + 4)
    problems = Addition().problems("test")[:6]
    assert [row["prompt"] for row in generations[::5]] == [problem["prompt"] for problem in problems]
    assert [row["kind"] for row in generations[:5]] == ["greedy"] + ["sample"] * 4
    graded = [Addition.grade(row["completion"], row["answer"]) for row in generations]
    assert [row["score"] for row in generations] == graded

    for name in ("6 problems", "95 % interval", *names):
        assert name in done.out
    assert done.out.splitlines()[-2:] == [str(output / "results.json"), str(output / "generations.jsonl")]


def test_the_same_seed_gives_the_same_samples(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    base = ["eval", "--model", tiny, "--task", "addition", "--samples", 3, "--limit", 5]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert dgpo(*base, "--seed", seed, "--out", output / name).code == 0
    first, again, other = (rows(output / name) for name in "abc")
    assert first == again
    assert first != other
    greedy = [[row for row in run if row["kind"] == "greedy"] for run in (first, other)]
    assert greedy[0] == greedy[1]


def test_greedy_alone(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    done = dgpo("eval", "--model", tiny, "--task", "addition", "--samples", 0, "--limit", 3, "--out", output)
    assert done.code == 0, done.err
    assert list(json.loads((output / "results.json").read_text())["estimates"]) == ["greedy"]
    assert "greedy only" in done.out
    assert len(rows(output)) == 3


def test_without_out_the_files_are_next_to_the_model(dgpo: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(model)
    assert dgpo("eval", "--model", model, "--task", "addition", "--samples", 0, "--limit", 2).code == 0
    assert (model / "eval-addition-first2" / "results.json").is_file()
    # and the folder still is that model
    assert dgpo("eval", "--model", model, "--task", "addition", "--samples", 0, "--limit", 2).code == 0


def test_a_hub_model_does_not_get_a_folder_of_its_name(
    dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Qwen/Qwen2.5-0.5B/eval-...` here would be taken for the model the next time."""
    from dgpo.cli import eval as command
    from dgpo.cli.models import load_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_model", lambda name, dtype: load_model(str(tiny), dtype))
    words = ["eval", "--model", "somebody/some-model", "--task", "addition", "--samples", 0, "--limit", 2]
    done = dgpo(*words)
    assert done.code == 0, done.err
    assert not Path("somebody").exists()
    results = Path("outputs/some-model/eval-addition-first2/results.json")
    assert json.loads(results.read_text())["model"] == "somebody/some-model"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_data_file(dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, output: Path, suffix: str) -> None:
    """Graded by its final answer, as text or as a number; the budget and the template are the flags'."""
    from datasets import Dataset

    data = Dataset.from_list([{"problem": f"{a}+{a}=", "answer": 2 * a} for a in range(5)])
    file = tmp_path / f"sums{suffix}"
    data.to_json(file) if suffix == ".jsonl" else data.to_parquet(file)
    flags = ["--samples", 2, "--max_new_tokens", 3, "--prompt_template", "Q: {prompt}", "--limit", 4]
    done = dgpo("eval", "--model", tiny, "--dataset", file, "--out", output, *flags)
    assert done.code == 0, done.err
    results = json.loads((output / "results.json").read_text())
    assert (results["data"], results["problems"], results["settings"]["max_new_tokens"]) == ("sums", 4, 3)
    generations = rows(output)
    assert generations[-1]["prompt"] == "Q: 3+3="
    assert generations[-1]["answer"] == "6"
    assert all(row["tokens"] <= 3 for row in generations)


def test_a_yaml_file(dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, output: Path) -> None:
    """A required argument may stand in the file."""
    file = tmp_path / "eval.yaml"
    file.write_text(f"model: {tiny}\ntask: addition\nsamples: 2\nlimit: 3\nout: {output}\ntemperature: 7e-1\n")
    done = dgpo("eval", "--config", file, "--samples", 0)
    assert done.code == 0, done.err
    results = json.loads((output / "results.json").read_text())
    assert (results["settings"]["samples"], results["settings"]["temperature"]) == (0, 0.7)
