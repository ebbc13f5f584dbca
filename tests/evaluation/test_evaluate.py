import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import dgpo
from dgpo.evaluation import (
    Estimate,
    Evaluation,
    Sampling,
    Suite,
    TransformersBackend,
    evaluate,
    markdown,
    summarise,
    table,
    write,
)
from dgpo.evaluation.backends import Backend, Completion
from dgpo.evaluation.intervals import detectable_of_samples
from dgpo.evaluation.votes import same_by
from dgpo.grading import FunctionGrader, Verdict

PROBLEMS = [{"prompt": prompt, "answer": answer} for prompt, answer in [("1+1=", 2), ("7+8=", 15), ("a", "b")]]
FILES = ["generations.jsonl", "results.json", "results.md", "run.json"]


def vowels(text, answer):
    """Correct with two different vowels: random text is both."""
    return float(len(set(text) & set("aeiouAEIOU")) >= 2)


class Moody:
    """A grader that cannot use the reference of one problem, and runs out of time on every completion with a z."""

    version = "moody 1"

    def grade_many(self, responses, golds):
        return [self.grade(response, gold) for response, gold in zip(responses, golds, strict=True)]

    def usable(self, golds):
        return [gold != "15" for gold in golds]

    def grade(self, response, gold):
        if "z" in response:
            return Verdict(0.0, "timeout", 0.0, "z")
        return Verdict(vowels(response, gold), "match" if vowels(response, gold) else "no_answer", 0.0)


def suite(name="vowels", problems=PROBLEMS, grader=None, **options):
    return Suite(name, problems, grader or FunctionGrader(vowels, "vowels 1"), **options)


@pytest.fixture
def backend(model, tokenizer):
    return TransformersBackend(model, tokenizer, batch_size=5, name="tiny")


SAMPLING = Sampling(samples=6, max_new_tokens=20, seed=3)


@pytest.fixture
def evaluation(backend):
    return evaluate(suite(), backend, SAMPLING, progress=False)


def test_end_to_end(evaluation):
    rows = evaluation.generations
    (result,) = evaluation.benchmarks.values()
    assert result.problems == 3
    assert [row["index"] for row in rows] == [0] * 7 + [1] * 7 + [2] * 7
    assert [row["id"] for row in rows[::7]] == ["0", "1", "2"]
    assert [row["kind"] for row in rows[:7]] == ["greedy"] + ["sample"] * 6
    assert [row["sample"] for row in rows[:7]] == [None, *range(6)]
    assert [row["answer"] for row in rows[::7]] == ["2", "15", "b"]
    assert all(row["score"] == vowels(row["completion"], None) for row in rows)
    assert all(row["reason"] == ("match" if row["score"] else "mismatch") for row in rows)
    assert {row["score"] for row in rows} == {0.0, 1.0}

    correct = np.array([row["score"] == 1 for row in rows]).reshape(3, 7)
    answers = [[row["extracted"] for row in rows[7 * at + 1 : 7 * at + 7]] for at in range(3)]
    same = same_by(suite().grader)
    assert result.estimates == summarise(correct[:, 1:], correct[:, 0], answers=answers, same=same)
    assert result.detectable == {
        "metric": "avg@6",
        "unpaired": result.estimates["avg@6"].detectable,
        "paired": detectable_of_samples([(6, int(count)) for count in correct[:, 1:].sum(axis=1)]),
    }
    names = ["greedy", "avg@6", "pass@1", "pass@2", "pass@4", "pass@6", "best@6", "maj@6"]
    assert list(result.estimates) == names
    assert [one["correct"] for one in result.per_problem] == correct[:, 1:].sum(1).tolist()
    assert [one["greedy"] for one in result.per_problem] == correct[:, 0].tolist()
    assert result.rates["truncated"] == pytest.approx(np.mean([row["truncated"] for row in rows]))
    assert result.rates["mean_tokens"] == pytest.approx(np.mean([row["tokens"] for row in rows]))
    assert evaluation.timing["completions"] == 21
    assert evaluation.timing["seconds"] > 0


def test_the_records_say_how_to_get_the_results_again(evaluation, backend):
    versions = dict(evaluation.versions)
    assert versions.pop("python").startswith("3.")
    assert versions == {
        "dgpo": dgpo.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    assert (evaluation.model, evaluation.backend["batch_size"], evaluation.backend["dtype"]) == ("tiny", 5, "float32")
    sampling = dict(evaluation.sampling)
    again = evaluate(suite(), backend, greedy=sampling.pop("greedy"), sampling=Sampling(**sampling), progress=False)
    assert again.generations == evaluation.generations
    assert again.benchmarks == evaluation.benchmarks


def test_without_greedy_and_greedy_alone(backend):
    sampled = evaluate(suite(), backend, Sampling(samples=2, max_new_tokens=4), greedy=False, progress=False)
    names = ["avg@2", "pass@1", "pass@2", "best@2", "maj@2"]
    assert list(sampled.benchmarks["vowels"].estimates) == names
    assert {row["kind"] for row in sampled.generations} == {"sample"}
    assert all(one["greedy"] is None for one in sampled.benchmarks["vowels"].per_problem)
    alone = evaluate(suite(), backend, Sampling(samples=0, max_new_tokens=4), progress=False)
    assert list(alone.benchmarks["vowels"].estimates) == ["greedy"]
    assert len(alone.generations) == 3
    with_samples = evaluate(suite(), backend, Sampling(samples=2, max_new_tokens=4), progress=False)
    assert [row for row in with_samples.generations if row["kind"] == "sample"] == sampled.generations


def test_several_benchmarks(backend):
    """In one run, each with its grader; the average is over benchmarks, not over problems."""
    named = [{"id": f"p{at}", **problem} for at, problem in enumerate(PROBLEMS[:2])]
    other = suite("digits", named, FunctionGrader(lambda text, _: float(any(map(str.isdigit, text))), "digits 1"))
    found = evaluate([suite(), other], backend, SAMPLING, ks=[3], greedy=False, progress=False)
    assert list(found.benchmarks) == ["vowels", "digits"]
    assert [row["benchmark"] for row in found.generations] == ["vowels"] * 18 + ["digits"] * 12
    assert [row["id"] for row in found.generations[18::6]] == ["p0", "p1"]
    assert [result.grader for result in found.benchmarks.values()] == ["vowels 1", "digits 1"]
    assert list(found.average) == ["avg@6", "pass@3", "best@6", "maj@6"]
    means = [found.benchmarks[name].estimates["avg@6"] for name in found.benchmarks]
    assert found.average["avg@6"]["value"] == pytest.approx((means[0].value + means[1].value) / 2)
    assert found.average["avg@6"]["se"] == pytest.approx(np.hypot(means[0].se, means[1].se) / 2)
    assert means[0] != means[1]


def test_a_reference_that_cannot_be_used_counts_nowhere(backend):
    found = evaluate(suite(grader=Moody()), backend, SAMPLING, progress=False)
    (result,) = found.benchmarks.values()
    assert result.excluded == ["1"]
    assert [one["id"] for one in result.per_problem] == ["0", "2"]
    assert result.problems == 3
    assert result.rates["bad_gold"] == pytest.approx(1 / 3)
    correct = [[row["score"] == 1 for row in found.generations if row["id"] == name][1:] for name in "02"]
    assert result.estimates["avg@6"] == summarise(correct)["avg@6"]
    timeouts = sum(row["reason"] == "timeout" for row in found.generations)
    assert timeouts > 0
    assert result.rates["timeout"] == pytest.approx(timeouts / 21)
    text = markdown(found)
    assert "2 of 3" in text
    assert "vowels: not counted, the reference cannot be used: 1" in text
    assert f"timeout {100 * timeouts / 21:.2g} %" in text


def test_no_reference_can_be_used(backend):
    found = evaluate(suite(problems=PROBLEMS[1:2], grader=Moody()), backend, SAMPLING, progress=False)
    assert found.benchmarks["vowels"].estimates == {}
    assert found.average == {}
    assert "0 of 1" in markdown(found)


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([], "vowels: problems is empty"),
        (
            [PROBLEMS[0], {"prompt": "a", "solution": "b"}],
            r"vowels: problems\[1\] has no answer; its keys: prompt, solution",
        ),
        ([{"id": 1, **PROBLEMS[0]}, {"id": "1", **PROBLEMS[1]}], "duplicate id '1' of 2 problems"),
    ],
)
def test_refuses_problems(problems, message):
    with pytest.raises(ValueError, match=message):
        suite(problems=problems)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": -1}, r"Sampling: samples = -1 is not allowed; expected an integer in \[0, inf\)"),
        ({"samples": 2.5}, "samples = 2.5"),
        ({"temperature": 0.0}, "temperature = 0.0 makes 8 equal samples"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_p": 0.0}, r"top_p = 0.0 is not allowed; expected a number in \(0, 1\]"),
        ({"top_p": 1.01}, "top_p = 1.01"),
        ({"max_new_tokens": 0}, r"max_new_tokens = 0 is not allowed; expected an integer in \[1, inf\)"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{"max_new_tokens": 2, **settings})


@pytest.mark.parametrize(
    ("suites", "options", "message"),
    [
        ([], {}, "suites is empty"),
        ([suite(), suite()], {}, "duplicate name 'vowels' of 2 suites"),
        (suite(), {"ks": [1, 9]}, r"ks = \[1, 9\]: k = 9 with samples = 6"),
        (suite(), {"ks": [0]}, "k = 0"),
        (
            suite(grader=FunctionGrader(lambda text, answer: 0.5, "half")),
            {},
            "half graded .* with 0.5; expected 0 or 1",
        ),
    ],
)
def test_refuses(backend, suites, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(suites, backend, SAMPLING, progress=False, **options)


def test_refuses_to_do_nothing(backend):
    with pytest.raises(ValueError, match="samples = 0 with greedy = False"):
        evaluate(suite(), backend, Sampling(samples=0, max_new_tokens=2), greedy=False, progress=False)


def test_write(evaluation, tmp_path):
    results_path, generations_path = write(evaluation, tmp_path / "deep" / "er")
    assert results_path == tmp_path / "deep" / "er" / "results.json"
    results = json.loads(results_path.read_text())
    assert results["schema"] == "dgpo.evaluation/1"
    assert results["model"] == "tiny"
    assert "generations" not in results
    found = results["benchmarks"]["vowels"]
    assert {name: Estimate(**one) for name, one in found["estimates"].items()} == evaluation.benchmarks[
        "vowels"
    ].estimates
    assert found["per_problem"] == evaluation.benchmarks["vowels"].per_problem
    assert results["sampling"] == evaluation.sampling
    assert results["timing"] == evaluation.timing
    assert (results_path.parent / "results.md").read_text() == markdown(evaluation)
    lines = generations_path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == evaluation.generations
    assert sorted(path.name for path in results_path.parent.iterdir()) == FILES


def test_written_at_the_end_or_on_the_way_the_files_are_the_same(evaluation, backend, tmp_path):
    write(evaluation, tmp_path / "a")
    evaluate(suite(), backend, SAMPLING, out=tmp_path / "b", progress=False)
    for name in ("generations.jsonl", "run.json", "results.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    read = [json.loads((tmp_path / folder / "results.json").read_text()) for folder in "ab"]
    assert [one.pop("timing")["completions"] for one in read] == [21, 21]
    assert read[0] == read[1]


def test_write_that_fails_leaves_the_earlier_files(evaluation, tmp_path):
    write(evaluation, tmp_path)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    rows = evaluation.generations[:1]
    for changed, error in (
        ({"generations": rows, "prompt": {"template": object()}}, TypeError),
        ({"generations": rows, "timing": {"seconds": float("nan")}}, ValueError),
        ({"generations": [{"completion": object()}]}, TypeError),
    ):
        with pytest.raises(error):
            write(Evaluation(**{**vars(evaluation), **changed}), tmp_path)
        assert [(tmp_path / name).read_bytes() for name in FILES] == before
    assert len(list(tmp_path.iterdir())) == len(FILES)


def test_a_line_separator_in_a_completion_does_not_split_its_line(evaluation, tmp_path):
    rows = [{**evaluation.generations[0], "completion": "a\u2028b\n\x85c \ud800"}]
    _, path = write(Evaluation(**{**vars(evaluation), "generations": rows}), tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def shown(evaluation, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(evaluation))
    return console.export_text()


def test_table_of_one(evaluation):
    text = shown(evaluation)
    estimates = evaluation.benchmarks["vowels"].estimates
    assert all(name in text for name in estimates)
    found = estimates["avg@6"]
    assert f"{100 * found.value:.1f}" in text
    assert f"{100 * found.se:.1f}" in text
    assert f"{100 * found.low:.1f} .. {100 * found.high:.1f}" in text
    assert all(part in text for part in ("3 problems", "6 samples at temperature 1", "seed 3", "20 new tokens"))
    assert "graded by vowels 1" in text


def test_table_of_several(backend):
    """One row per benchmark and the average; which P@n it is, is said."""
    suites = [suite(), suite("olympiadbench", PROBLEMS[:2])]
    found = evaluate(suites, backend, SAMPLING, greedy=False, prompt={"name": "boxed"}, progress=False)
    text = " ".join(shown(found, width=80).split())
    assert "A@6 cut no mean benchmark N ± SE P@6 pass@6 maj@6 % answer, % tokens" in text
    assert "P@6 is best@6: n drawn with replacement, as verl does; pass@6 is unbiased" in text
    assert "prompt boxed" in text
    mean = found.average["avg@6"]
    assert f"average {100 * mean['value']:.1f} ± {100 * mean['se']:.1f} " in text
    assert "…" not in text
    lines = markdown(found).splitlines()
    rows = [line for line in lines if line.startswith(("| vowels |", "| olympiadbench |", "| average |"))]
    assert len(rows) == 3
    estimate = found.benchmarks["olympiadbench"].estimates["best@6"]
    assert f" {100 * estimate.value:.1f} " in rows[1]


class Server(Backend):
    """Completes a prompt with one of `texts`, whichever the temperature."""

    model = "served"

    def __init__(self, texts, kind="openai"):
        self.texts, self.kind = texts, kind

    def complete(self, requests, sampling, done=()):
        left = [at for at in range(len(requests)) if at not in done]
        yield [(at, Completion(self.texts[requests[at].seed % len(self.texts)], 1, False)) for at in left]

    def settings(self):
        return {} if self.kind is None else {"kind": self.kind}


@pytest.mark.parametrize(
    ("texts", "kind", "count", "samples", "warned"),
    [
        (["the same"], "openai", 8, 2, True),
        (["the same"], "openai", 7, 2, False),
        (["the same"], "openai", 8, 1, False),
        (["one", "another"], "openai", 8, 4, False),
        (["the same"], "transformers", 8, 2, False),  # which samples
        (["the same"], None, 8, 2, False),  # a back end of the user's, whose settings may be anything
    ],
)
def test_a_server_that_ignores_the_temperature_is_named(texts, kind, count, samples, warned):
    problems = [{"prompt": f"{number}+1=", "answer": number + 1} for number in range(count)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(
            suite("sums", problems), Server(texts, kind), Sampling(samples=samples, max_new_tokens=4), progress=False
        )
    assert [f"the {samples} samples of each problem are equal" in str(one.message) for one in caught] == [True] * warned
