import json
import math

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import dgpo
from dgpo.evaluation import Estimate, Evaluation, evaluate, summarise, table, write

PROBLEMS = [{"prompt": prompt, "answer": answer} for prompt, answer in [("1+1=", 2), ("7+8=", 15), ("a", "b")]]


def vowels(text, answer):
    """Correct with three different vowels, half right with one: random text is all of 0, 0.5 and 1."""
    return {0: 0.0, 1: 0.5, 2: 0.5}.get(len(set(text) & set("aeiouAEIOU")), 1.0)


@pytest.fixture
def evaluation(model, tokenizer):
    return evaluate(model, tokenizer, PROBLEMS, vowels, samples=6, max_new_tokens=20, seed=3, progress=False)


def test_end_to_end(evaluation):
    rows = evaluation.generations
    assert evaluation.problems == 3
    assert [row["index"] for row in rows] == [0] * 7 + [1] * 7 + [2] * 7
    assert [row["kind"] for row in rows[:7]] == ["greedy"] + ["sample"] * 6
    assert [row["sample"] for row in rows[:7]] == [None, *range(6)]
    assert [row["answer"] for row in rows[::7]] == [2, 15, "b"]
    assert all(row["score"] == vowels(row["completion"], None) for row in rows)
    assert {row["score"] for row in rows} == {0.0, 0.5, 1.0}

    correct = np.array([row["score"] == 1 for row in rows]).reshape(3, 7)
    assert evaluation.estimates == summarise(correct[:, 1:], correct[:, 0])
    assert list(evaluation.estimates) == ["greedy", "avg@6", "pass@1", "pass@2", "pass@4", "pass@6"]
    assert evaluation.rates["truncated"] == pytest.approx(np.mean([row["truncated"] for row in rows]))
    assert evaluation.rates["mean_tokens"] == pytest.approx(np.mean([row["tokens"] for row in rows]))
    assert evaluation.seconds > 0


def test_settings_say_how_to_get_the_figures_again(evaluation, model, tokenizer):
    settings = dict(evaluation.settings)
    assert settings.pop("versions") == {
        "dgpo": dgpo.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    again = evaluate(model, tokenizer, PROBLEMS, vowels, progress=False, **settings)
    assert again.generations == evaluation.generations
    assert again.estimates == evaluation.estimates


def test_without_greedy_and_greedy_alone(model, tokenizer):
    options = {"max_new_tokens": 4, "progress": False}
    sampled = evaluate(model, tokenizer, PROBLEMS, vowels, samples=2, greedy=False, **options)
    assert list(sampled.estimates) == ["avg@2", "pass@1", "pass@2"]
    assert {row["kind"] for row in sampled.generations} == {"sample"}
    alone = evaluate(model, tokenizer, PROBLEMS, vowels, samples=0, **options)
    assert list(alone.estimates) == ["greedy"]
    assert len(alone.generations) == 3


@pytest.mark.parametrize(
    ("problems", "options", "message"),
    [
        ([], {}, "problems is empty"),
        (
            [PROBLEMS[0], {"prompt": "a", "solution": "b"}],
            {},
            r"problems\[1\] has no answer; its keys: prompt, solution",
        ),
        (PROBLEMS, {"samples": 0, "greedy": False}, "samples = 0 with greedy = False"),
        (PROBLEMS, {"samples": -1}, "samples = -1"),
        (PROBLEMS, {"temperature": 0}, "temperature = 0 makes 8 equal samples"),
        (PROBLEMS, {"grade": lambda text, answer: 2}, r"grade gave 2.0 for a completion of problems\[0\]"),
        (PROBLEMS, {"grade": lambda text, answer: math.nan}, "grade gave nan"),
    ],
)
def test_refuses(model, tokenizer, problems, options, message):
    grade = options.pop("grade", vowels)
    with pytest.raises(ValueError, match=message):
        evaluate(model, tokenizer, problems, grade, max_new_tokens=2, progress=False, **options)


def test_write(evaluation, tmp_path):
    results_path, generations_path = write(evaluation, tmp_path / "deep" / "er", model="tiny", task="addition")
    assert results_path == tmp_path / "deep" / "er" / "results.json"
    results = json.loads(results_path.read_text())
    assert results["model"] == "tiny"
    assert "generations" not in results
    assert {name: Estimate(**one) for name, one in results["estimates"].items()} == evaluation.estimates
    assert results["settings"] == evaluation.settings
    assert (results["problems"], results["seconds"]) == (3, evaluation.seconds)
    lines = generations_path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == evaluation.generations
    assert sorted(path.name for path in results_path.parent.iterdir()) == ["generations.jsonl", "results.json"]


@pytest.mark.parametrize(
    ("extra", "error"),
    [({"settings": {}}, ValueError), ({"generations": 1}, ValueError), ({"x": object()}, TypeError)],
)
def test_write_that_fails_leaves_the_earlier_files(evaluation, tmp_path, extra, error):
    paths = write(evaluation, tmp_path)
    before = [path.read_bytes() for path in paths]
    changed = Evaluation(**{**vars(evaluation), "generations": evaluation.generations[:1]})
    with pytest.raises(error):
        write(changed, tmp_path, **extra)
    assert [path.read_bytes() for path in paths] == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_separator_in_a_completion_does_not_split_its_line(evaluation, tmp_path):
    rows = [{**evaluation.generations[0], "completion": "a\u2028b\n\x85c \ud800"}]
    _, path = write(Evaluation(**{**vars(evaluation), "generations": rows}), tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_table(evaluation):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(evaluation))
    text = console.export_text()
    assert all(name in text for name in evaluation.estimates)
    found = evaluation.estimates["avg@6"]
    assert f"{100 * found.value:.1f}" in text
    assert f"{100 * found.low:.1f} .. {100 * found.high:.1f}" in text
    assert all(part in text for part in ("3 problems", "6 samples at temperature 1", "seed 3", "20 new tokens"))
