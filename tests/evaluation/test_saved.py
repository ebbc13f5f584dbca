"""Completions that were generated elsewhere."""

import json

import pytest

from dgpo.evaluation import Sampling, Suite, TransformersBackend, evaluate, evaluate_saved, table
from dgpo.grading import FunctionGrader
from dgpo.rewards import MathGrader, exact_match

GRADER = FunctionGrader(exact_match, "exact_match")
SUMS = Suite(
    "sums",
    [
        {"id": f"s{n}", "problem": f"What is {n}+{n}?", "prompt": f"What is {n}+{n}?\nBox it.", "answer": str(2 * n)}
        for n in range(3)
    ],
    GRADER,
)
CHATS = Suite(
    "chats",
    [{"id": "c", "problem": "Two?", "prompt": [{"role": "user", "content": "Two?"}], "answer": "2"}],
    GRADER,
)
RIGHT, WRONG = r"so \boxed{%d}", r"\boxed{-1}"


def said(n, right):
    return RIGHT % (2 * n) if right else WRONG


def by_completion():
    return [{"id": f"s{n}", "completion": said(n, n >= k)} for k in range(2) for n in range(3)]


def by_list(key="completions", problem=lambda n: {"id": f"s{n}"}):
    return [{**problem(n), key: [said(n, n >= k) for k in range(2)]} for n in (2, 0, 1)]


SHAPES = {
    "id, completion": by_completion(),
    "id, completions": by_list(),
    "problem, responses": by_list("responses", lambda n: {"problem": f"What is {n}+{n}?"}),
    "prompt, responses": by_list("responses", lambda n: {"prompt": f"What is {n}+{n}?\nBox it."}),
    "problem, response": [
        {"problem": f" What is {n}+{n}?\n", "response": said(n, n >= k)} for k in range(2) for n in range(3)
    ],
    "messages": [
        {**row, "completion": [{"role": "assistant", "content": [{"type": "text", "text": row["completion"]}]}]}
        for row in by_completion()
    ],
    "mixed": [*by_list()[:2], *[row for row in by_completion() if row["id"] == "s1"]],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(tmp_path, shape):
    found = evaluate_saved(write(tmp_path / "gens.jsonl", SHAPES[shape]), SUMS, progress=False)
    (result,) = found.benchmarks.values()
    assert [(one["id"], one["n"], one["correct"]) for one in result.per_problem] == [
        ("s0", 2, 1),
        ("s1", 2, 2),
        ("s2", 2, 2),
    ]
    assert result.estimates["avg@2"].value == pytest.approx(5 / 6)
    assert [row["score"] for row in found.generations] == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert [row["sample"] for row in found.generations] == [0, 1] * 3
    assert result.rates["truncated"] is None
    assert result.rates["mean_tokens"] is None
    assert (found.model, found.sampling["samples"], found.sampling["temperature"]) == ("gens.jsonl", 2, None)
    assert found.backend["kind"] == "file"
    assert table(found).caption.startswith("2 samples; how they were drawn is not known")


def test_our_own_rows(model, tokenizer, tmp_path):
    """Graded again they give what they gave, and what is known of the run stays known."""
    suites = [Suite("sums", [{**one, "prompt": one["problem"]} for one in SUMS.problems], GRADER)]
    sampling = Sampling(samples=4, max_new_tokens=6, temperature=0.9)
    backend = TransformersBackend(model, tokenizer, name="tiny")
    ours = evaluate(suites, backend, sampling, out=tmp_path, progress=False)
    again = evaluate_saved(tmp_path / "generations.jsonl", suites, progress=False)
    assert again.generations == ours.generations
    assert again.benchmarks == ours.benchmarks
    assert (again.model, again.sampling) == (ours.model, ours.sampling)
    assert again.backend["generated_by"] == ours.backend
    content = (tmp_path / "generations.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds an evaluation that generated its own completions"):
        evaluate_saved(tmp_path / "generations.jsonl", suites, out=tmp_path, progress=False)
    assert (tmp_path / "generations.jsonl").read_bytes() == content


def test_several_benchmarks_and_chats(tmp_path):
    rows = [*by_list(), {"prompt": [{"role": "user", "content": "Two?"}], "responses": ["2", "2"]}]
    found = evaluate_saved(write(tmp_path / "gens.jsonl", rows), [SUMS, CHATS], progress=False)
    assert list(found.benchmarks) == ["sums", "chats"]
    assert found.benchmarks["chats"].estimates["avg@2"].value == 1.0
    assert found.average["avg@2"]["value"] == pytest.approx((5 / 6 + 1) / 2)


def test_lengths_that_are_there_are_reported(tmp_path):
    rows = [{"id": f"s{n}", "completion": "1", "tokens": n, "truncated": n == 2} for n in range(3)]
    (result,) = evaluate_saved(write(tmp_path / "g.jsonl", rows), SUMS, progress=False).benchmarks.values()
    assert (result.rates["mean_tokens"], result.rates["truncated"]) == (1.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*by_completion(), {"id": "s7", "completion": "1"}], "line 7 of .* has the id 's7', which no problem"),
        ([{"problem": "What?", "response": "1"}], "line 1 of .* has the problem 'What\\?', which no problem"),
        ([{"completion": "1"}], "line 1 of .* names no problem: expected id, problem or prompt; its keys: completion"),
        ([{"id": "s1", "text": "1"}], "line 1 of .* has no completion: .*its keys: id, text"),
        ([{"id": "s1", "completions": []}], "line 1 of .* has no completion"),
        ([{"id": "s1", "completions": [1]}], "line 1 of .* has no completion"),
        ([{"id": "s1", "completion": "1", "tokens": "9"}], "line 1 of .* has tokens = '9'"),
        ([["s1", "1"]], "line 1 of .* is a list"),
        (by_completion()[:2], "has no completion for problem 's2' of sums"),
        (by_completion()[:5], "has 1 sample and 0 greedy completions for problem 's2' of sums; expected 2"),
        ([*by_completion(), {"id": "s0", "completion": "1", "kind": "greedy"}], "problem 's1' .*expected 2 and 1"),
        ([], "has no completion for problem 's0'"),
    ],
)
def test_refuses(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        evaluate_saved(write(tmp_path / "gens.jsonl", rows), SUMS, progress=False)


def test_refuses_what_is_not_json(tmp_path):
    file = tmp_path / "gens.jsonl"
    file.write_text('{"id": "s0", "completion": "1"}\nhello\n')
    with pytest.raises(ValueError, match="line 2 of .* is not JSON"):
        evaluate_saved(file, SUMS, progress=False)
    with pytest.raises(FileNotFoundError):
        evaluate_saved(tmp_path / "none.jsonl", SUMS, progress=False)


def test_a_problem_of_two_benchmarks_needs_its_name(tmp_path):
    suites = [SUMS, Suite("again", SUMS.problems, GRADER)]
    rows = by_completion()
    with pytest.raises(ValueError, match="line 1 of .* has the id 's0', which 2 problems"):
        evaluate_saved(write(tmp_path / "g.jsonl", rows), suites, progress=False)
    named = [{**row, "benchmark": name} for name in ("again", "sums") for row in rows]
    found = evaluate_saved(write(tmp_path / "g.jsonl", named), suites, progress=False)
    assert found.benchmarks["again"].estimates == found.benchmarks["sums"].estimates


def test_the_folder(tmp_path):
    """May be used again: what it holds can be made again from the file."""
    file = write(tmp_path / "gens.jsonl", by_completion())
    first = evaluate_saved(file, SUMS, out=tmp_path / "a", progress=False)
    ours = tmp_path / "a" / "generations.jsonl"
    content = ours.read_bytes()
    assert [json.loads(line) for line in content.splitlines()] == first.generations
    for source in (file, ours):
        again = evaluate_saved(source, SUMS, out=tmp_path / "a", progress=False)
        assert again.benchmarks == first.benchmarks
        assert ours.read_bytes() == content


PAIR = Suite(
    "sums", [{"id": "0", "prompt": "1+1=", "answer": "2"}, {"id": "1", "prompt": "1+2=", "answer": "3"}], GRADER
)


def test_rows_of_other_problems_copies_and_left_out_ones(tmp_path):
    file = tmp_path / "g.jsonl"

    def graded(*rows, suite=PAIR, out=None):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return evaluate_saved(file, suite, out=out, progress=False)

    good = [{"id": "0", "sample": 0, "completion": "2"}, {"id": "1", "sample": 0, "completion": "4"}]
    assert graded(*good).benchmarks["sums"].estimates["avg@1"].value == 0.5
    with pytest.raises(ValueError, match="line 3 .* is sample 0 of a problem that line 1 .* has already"):
        graded(*good, good[0])
    with pytest.raises(ValueError, match="line 1 .* has the id '0', but another prompt: 'capital of France"):
        graded({**good[0], "prompt": "capital of France?"}, good[1])
    with pytest.raises(ValueError, match="kind = 'best'; expected 'greedy' or 'sample'"):
        graded({**good[0], "kind": "best"}, good[1])
    first = Suite("sums", PAIR.problems[:1], GRADER, left_out=PAIR.problems[1:])
    assert graded(*good, suite=first).benchmarks["sums"].problems == 1


def test_the_grades_of_another_file_are_not_replaced(tmp_path):
    for name, answer in (("a", "2"), ("b", "5")):
        rows = [{"id": "0", "completion": answer}, {"id": "1", "completion": "3"}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_saved(tmp_path / "a.jsonl", PAIR, out=tmp_path / "out", progress=False)
    evaluate_saved(tmp_path / "a.jsonl", PAIR, out=tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"holds the grades of another file, 'a.jsonl'; use another folder"):
        evaluate_saved(tmp_path / "b.jsonl", PAIR, out=tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError, match=r"is not a file; expected its generations.jsonl"):
        evaluate_saved(tmp_path / "out", PAIR, progress=False)


def test_which_problems_count_does_not_depend_on_the_completions(tmp_path):
    """A gold that cannot be read is left out also where a completion repeats it letter by letter."""
    golds = ["2", r"\frac{\foo}{+}"]
    problems = [{"id": str(n), "prompt": f"{n}?", "answer": gold} for n, gold in enumerate(golds)]
    with MathGrader(deadline=10.0) as grader:
        file = tmp_path / "g.jsonl"
        rows = [{"id": str(n), "completion": rf"\boxed{{{gold}}}"} for n, gold in enumerate(golds)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = evaluate_saved(file, Suite("two", problems, grader), progress=False).benchmarks["two"]
    assert result.excluded == ["1"]
    assert result.estimates["avg@1"].value == 1.0
    assert result.rates["bad_gold"] == 0.5


@pytest.mark.parametrize("reason", ["error", "abort", "content_filter", "tool_calls", None, 7])
def test_a_completion_that_did_not_end_is_none(tmp_path, reason):
    rows = by_completion()
    rows[1]["finish_reason"] = reason
    message = f"line 2 of .*gens.jsonl' holds no completion: finish_reason = {reason!r}; a completion ends by 'stop'"
    with pytest.raises(ValueError, match=message):
        evaluate_saved(write(tmp_path / "gens.jsonl", rows), SUMS, progress=False)


def test_a_finish_reason_says_what_was_truncated(tmp_path):
    rows = [{**row, "finish_reason": "length" if row["id"] == "s0" else "stop"} for row in by_completion()]
    found = evaluate_saved(write(tmp_path / "gens.jsonl", rows), SUMS, progress=False)
    assert found.benchmarks["sums"].rates["truncated"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("tokens", [True, -1, 1.5, "3"])
def test_counts_that_are_none(tmp_path, tokens):
    rows = [{**row, "tokens": tokens} for row in by_completion()]
    with pytest.raises(ValueError, match="line 1 of .* has tokens = .*; expected a whole number"):
        evaluate_saved(write(tmp_path / "gens.jsonl", rows), SUMS, progress=False)


def test_a_password_that_an_older_version_recorded_is_not_copied(tmp_path):
    backend = {"kind": "openai", "base_url": "http://me:password@host/v1?api_key=secret-one"}
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"model": "m", "backend": backend}))
    write(folder / "generations.jsonl", by_completion())
    evaluate_saved(folder / "generations.jsonl", SUMS, out=tmp_path / "new", progress=False)
    found = json.loads((tmp_path / "new" / "results.json").read_text())["backend"]["generated_by"]
    assert found["base_url"] == "http://***@host/v1?api_key=***"
    for file in (tmp_path / "new").iterdir():
        assert "password" not in file.read_text()
        assert "secret-one" not in file.read_text()
