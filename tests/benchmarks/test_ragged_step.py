"""benchmarks/ragged_step.py compares the same thing: one batch, one gradient, each trainer of its own checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import ragged_step
import torch
import updates
import workers
from updates import OURS, STOCK, Case, check, summary, train

import dgpo

SCRIPT = Path(ragged_step.__file__)
TINY = Case(layers=0, mean=8, longest=24, prompt=4, group=4, rows=2, accumulation=4)
SOURCES = {name: Path(dgpo.__file__).parents[2] for name in updates.OPTIONS}


@pytest.fixture(scope="module")
def rounds() -> dict[str, dict]:
    return {name: train(TINY, name, 0) for name in (STOCK, OURS)}


def test_stock_and_ours_train_on_one_batch_with_one_gradient(rounds):
    check("tiny", rounds, SOURCES)
    assert all(len(row["norms"]) == 1 and row["norms"][0] > 0 for row in rounds.values())
    assert rounds[STOCK]["tokens"] == rounds[OURS]["tokens"] > 8 * 5
    # stock computes every row up to the longest of the generation
    assert rounds[STOCK]["positions"] % 8 == 0
    # ours computes no padding, and each of two prompts of 4 tokens at least once in place of four times
    assert rounds[STOCK]["positions"] > rounds[OURS]["positions"] >= rounds[OURS]["tokens"] - 6 * 4
    assert summary([rounds[STOCK]])["padding"] == 1 - rounds[STOCK]["tokens"] / rounds[STOCK]["positions"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": "0"}, "DGPOTrainer and GRPOTrainer .TRL. have trained on different batches"),
        ({"norms": [123.0]}, "the first gradient of DGPOTrainer has the norm 123, that of GRPOTrainer"),
        ({"norms": [float("nan")]}, "the first gradient of DGPOTrainer has the norm nan"),
        ({"source": "/elsewhere/dgpo/__init__.py"}, "DGPOTrainer imported /elsewhere/dgpo/__init__.py; expected"),
    ],
)
def test_a_trainer_that_does_something_else(rounds, change, message):
    with pytest.raises(RuntimeError, match=message):
        check("tiny", rounds | {OURS: rounds[OURS] | change}, SOURCES)


def test_rounds_have_batches_of_their_own(rounds):
    other = train(TINY, OURS, 1)
    assert other["batches"] != rounds[OURS]["batches"]
    assert other["norms"] != rounds[OURS]["norms"]


def test_a_part_of_an_update_of_stock(rounds):
    part = train(Case(**{**vars(TINY), "stock_micro_batches": 1}), STOCK, 0)
    assert (part["share"], part["norms"], part["batches"]) == (0.25, [], rounds[STOCK]["batches"])
    assert part["positions"] == rounds[STOCK]["positions"]


def test_lengths_have_the_mean_and_the_limit_that_the_case_names():
    case = ragged_step.CASES["2 layers"]
    drawn = [length for seed in range(100) for length in case.lengths(64, torch.Generator().manual_seed(seed))]
    assert max(drawn) == case.longest
    # cut at four times the mean
    assert fmean(drawn) == pytest.approx(63, rel=0.03)


def test_a_process_answers_in_turn_and_says_why_it_ended(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import os\nfrom workers import serve\n"
        "def answer(request):\n"
        "    print('noise')\n"
        "    return {'sum': sum(request['numbers']), 'path': os.environ['PYTHONPATH']}\n"
        "serve(answer)\n"
    )
    with workers.Worker(script, [], tmp_path) as process:
        assert process.ask(numbers=[1, 2]) == {"sum": 3, "path": str(tmp_path / "src")}
        assert process.ask(numbers=[4])["sum"] == 4
        with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*KeyError: 'numbers'"):
            process.ask(digits=1)


def test_an_earlier_commit_is_unpacked(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "src").mkdir(parents=True)
    (repository / "src" / "one.py").write_text("x = 1\n")

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(repository), *identity, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "One")
    monkeypatch.setattr(workers, "ROOT", repository)
    (repository / "src" / "one.py").write_text("x = 2\n")
    assert (workers.unpack("HEAD", tmp_path / "before") / "src" / "one.py").read_text() == "x = 1\n"
    head = workers.commit_of(repository)
    assert len(head) == 41
    assert head.endswith("+")
    with pytest.raises(RuntimeError, match="commit 1234567 is not in the history at .* name a checkout of it"):
        workers.unpack("1234567", tmp_path / "other")


@pytest.mark.soak
def test_the_script_measures_and_keeps_what_was_there(tmp_path):
    out = tmp_path / "ragged_step.json"
    out.write_text(json.dumps({"cases": {"earlier": {}}}))
    case = "demo, equal lengths, groups of 2"
    words = ["--cases", case, "--rounds", "1", "--trainers", STOCK, OURS, "--before", str(workers.ROOT)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--out", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    cases = json.loads(out.read_text())["cases"]
    assert cases.keys() == {"earlier", case}
    assert list(cases[case]["trainers"]) == [STOCK, OURS]
    assert cases[case]["trainers"][OURS]["padding"] == 0
