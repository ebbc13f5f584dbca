"""Runs that are interrupted, continued, repeated, or mixed up with others."""

import json

import pytest
import torch

from dgpo.evaluation import Backend, Completion, Sampling, Suite, TransformersBackend, evaluate
from dgpo.evaluation.folder import RunFolder, differences
from dgpo.evaluation.suite import plan
from dgpo.grading import FunctionGrader

PROBLEMS = [{"id": f"p{n}", "prompt": "what is " * (n % 3) + f"{n}+{n}=", "answer": str(2 * n)} for n in range(7)]
SAMPLING = Sampling(samples=3, max_new_tokens=8, seed=5)


class Interrupted(Exception):
    pass


class StopsAfter(TransformersBackend):
    """Breaks down before its (batches + 1)-th batch."""

    def __init__(self, *args, batches, **options):
        super().__init__(*args, **options)
        self.batches = batches

    def complete(self, requests, sampling, done=()):
        for number, group in enumerate(super().complete(requests, sampling, done)):
            if number == self.batches:
                raise Interrupted
            yield group


class Reversed(Backend):
    """Finishes the last request first, two at a time."""

    model = "reversed"

    def complete(self, requests, sampling, done=()):
        left = [position for position in reversed(range(len(requests))) if position not in done]
        for start in range(0, len(left), 2):
            yield [(at, Completion(f"{at} {requests[at].seed}", 2, False)) for at in left[start : start + 2]]

    def settings(self):
        return {"kind": "reversed"}


def suite(version="last digit 1", problems=PROBLEMS):
    return Suite("doubles", problems, FunctionGrader(lambda text, answer: float(answer[-1] in text), version))


def run(backend, out, suites=None, sampling=SAMPLING, **options):
    return evaluate(suites or suite(), backend, sampling, out=out, progress=False, **options)


@pytest.fixture
def backend(model, tokenizer):
    return TransformersBackend(model, tokenizer, batch_size=4, name="tiny")


def test_broken_off_anywhere_and_continued_it_is_the_same_run(model, tokenizer, backend, tmp_path):
    whole = run(backend, tmp_path / "whole")
    content = (tmp_path / "whole" / "generations.jsonl").read_bytes()
    torch.manual_seed(123)
    for batches in range(9):  # of 2 greedy and 6 sampled ones
        folder = tmp_path / str(batches)
        breaks = StopsAfter(model, tokenizer, batches=batches, batch_size=4, name="tiny")
        if batches < 8:
            with pytest.raises(Interrupted):
                run(breaks, folder)
            assert not (folder / "results.json").exists()
            kept = len((folder / "generations.jsonl").read_bytes().splitlines())
            assert kept == [0, 4, 7, 11, 15, 19, 23, 27][batches]
        torch.rand(batches)  # another state of the generators
        continued = run(backend, folder)
        assert (folder / "generations.jsonl").read_bytes() == content
        assert continued.benchmarks == whole.benchmarks


@pytest.mark.parametrize("cut", [0, 1, 57, -1])
def test_a_torn_line_and_a_part_of_a_batch_are_generated_again(backend, tmp_path, cut):
    run(backend, tmp_path)
    file = tmp_path / "generations.jsonl"
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:11]) + lines[11][:cut])
    (tmp_path / "results.json").unlink()
    again = run(backend, tmp_path)
    assert file.read_bytes() == content
    assert again.timing["completions"] == len(lines) - 11


def test_a_finished_run_is_read_and_not_repeated(backend, tmp_path, monkeypatch):
    first = run(backend, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(**arguments):
        raise AssertionError("generates")

    monkeypatch.setattr(backend._model, "generate", fail)
    again = run(backend, tmp_path)
    assert again == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    other = run(backend, tmp_path, ks=[2])  # estimates may be computed anew
    assert "pass@2" in other.benchmarks["doubles"].estimates
    assert "pass@3" not in other.benchmarks["doubles"].estimates


def test_the_file_is_in_order_at_the_end(tmp_path):
    found = run(Reversed(), tmp_path, greedy=False)
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert rows == found.generations
    assert [(row["id"], row["sample"]) for row in rows] == [(f"p{n}", at) for n in range(7) for at in range(3)]
    assert [int(row["completion"].split()[0]) for row in rows] == list(range(21))
    assert len({row["completion"].split()[1] for row in rows}) == 21  # every request has a seed of its own


def test_the_seed_of_a_request_does_not_depend_on_the_others(tmp_path):
    def seeds(out, problems, sampling):
        rows = run(Reversed(), tmp_path / out, suite(problems=problems), sampling).generations
        return {(row["id"], row["sample"]): row["completion"].split()[1] for row in rows}

    whole = seeds("a", PROBLEMS, SAMPLING)
    assert seeds("b", PROBLEMS[4:], Sampling(samples=1, max_new_tokens=8, seed=5)).items() <= whole.items()
    assert not set(seeds("c", PROBLEMS, Sampling(samples=3, max_new_tokens=8, seed=6)).values()) & set(whole.values())


def test_another_configuration_is_an_error_that_names_every_difference(backend, model, tokenizer, tmp_path):
    run(backend, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(*parts, backend=backend, **options):
        with pytest.raises(ValueError, match="completions of another configuration") as error:
            run(backend, tmp_path, **options)
        assert str(error.value).partition("(there -> now): ")[2].split("; ") == list(parts)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    refused(
        "sampling.temperature: 1.0 -> 0.5",
        "sampling.seed: 5 -> 0",
        sampling=Sampling(samples=3, max_new_tokens=8, temperature=0.5),
    )
    refused("sampling.greedy: true -> false", greedy=False)
    refused('benchmarks.doubles.grader: "last digit 1" -> "last digit 2"', suites=suite("last digit 2"))
    refused('prompt.name: null -> "boxed"', prompt={"name": "boxed"})
    other = TransformersBackend(model, tokenizer, batch_size=3, name="tiny")
    refused("backend.batch_size: 4 -> 3", backend=other)
    changed = [dict(problem) for problem in PROBLEMS]
    changed[3]["answer"] = "8"
    with pytest.raises(ValueError, match=r"benchmarks.doubles.data.sha256: .*benchmarks.doubles.data.evaluated.sha256"):
        run(backend, tmp_path, suite(problems=changed))
    with torch.no_grad():  # trained on, in the same place
        model.lm_head.weight[3, 5] += 1e-3
    with pytest.raises(ValueError, match=r"now\): backend.weights: \"\w+\" -> \"\w+\"$"):
        run(backend, tmp_path)


def test_a_configuration_without_completions_is_replaced(backend, tmp_path):
    problems = [*PROBLEMS[:2], {"prompt": "", "answer": "0"}]
    with pytest.raises(ValueError, match=r"prompts\[2\] = '' has no tokens"):
        run(backend, tmp_path, suite(problems=problems))
    assert len(run(backend, tmp_path).generations) == 28


def test_two_processes_in_one_folder(backend, tmp_path):
    run(backend, tmp_path)
    with (
        RunFolder(tmp_path, json.loads((tmp_path / "run.json").read_text()), plan([suite()], SAMPLING, True)),
        pytest.raises(ValueError, match="another process is evaluating into"),
    ):
        run(backend, tmp_path)


def spoiled(path, how):
    file = path / "generations.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    if how == "twice":
        lines.append(lines[4])
    elif how == "foreign":
        lines[4] = json.dumps({**json.loads(lines[4]), "id": "q9"}).encode() + b"\n"
    elif how == "garbage":
        lines[4] = b"\x00\x00\n"
    else:
        (path / "run.json").unlink()
    file.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", r"line 29 of .*\(doubles, p1, sample None\) occurs twice"),
        ("foreign", r"line 5 of .*\(doubles, q9, sample None\) does not belong to this run"),
        ("garbage", "line 5 of .* is not a row of an evaluation"),
        ("no run.json", "holds a generations.jsonl without run.json"),
    ],
)
def test_files_that_somebody_spoiled(backend, tmp_path, how, message):
    run(backend, tmp_path)
    spoiled(tmp_path, how)
    content = (tmp_path / "generations.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(backend, tmp_path)
    assert (tmp_path / "generations.jsonl").read_bytes() == content
    spoiled_files = sorted(path.name for path in tmp_path.iterdir())
    assert ".lock" in spoiled_files
    with open(tmp_path / ".lock", "ab") as file:  # and it was let go
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_bar_starts_where_the_run_was(model, tokenizer, backend, tmp_path, capfd):
    with pytest.raises(Interrupted):
        run(StopsAfter(model, tokenizer, batches=3, batch_size=4, name="tiny"), tmp_path)
    capfd.readouterr()
    evaluate(suite(), backend, SAMPLING, out=tmp_path)
    shown = capfd.readouterr().err
    assert "| 11/28 [" in shown
    assert "| 28/28 [" in shown
    assert "tokens/s" in shown
    assert "doubles:" in shown


def test_differences():
    assert differences({"a": {"b": 1, "c": [2]}, "d": 0}, {"a": {"b": 1, "c": [3]}, "e": None, "d": 0}) == [
        "a.c: [2] -> [3]"
    ]
    (line,) = differences({"a": "x" * 200}, {"a": None})
    assert len(line) < 100
