"""Benchmarks during training: the code of `dgpo eval`, and training that does not notice."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.evaluation import Sampling, Suite, TransformersBackend, evaluate
from dgpo.grading import FunctionGrader
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer

BENCHMARKS = Path(__file__).parents[2].parent / "shared" / "benchmarks"


@pytest.fixture
def trained(tiny_folder, quick, digit_reward, prompts, tmp_path):
    def trained(**options):
        config = DGPOConfig(output_dir=str(tmp_path), **{**quick, "max_steps": 6, **options})
        trainer = DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            digit_reward,
            config,
            train_dataset=prompts,
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
        )
        trainer.train()
        return trainer

    return trained


def rows_with(trainer, key):
    return [row for row in trainer.state.log_history if key in row]


def test_it_is_the_evaluation_of_dgpo_eval_and_training_does_not_notice(trained, tmp_path):
    options = {"samples": 3, "limit": 40, "batch_size": 50, "greedy": True, "seed": 5}
    watched = trained(
        eval_benchmarks=["addition"],
        eval_benchmark_steps=4,
        eval_benchmark_kwargs=options,
        eval_benchmark_on_start=True,
    )
    assert [row["step"] for row in rows_with(watched, "eval/addition/avg@3")] == [0, 4, 6]  # and one at the end
    assert watched.model.training

    task = Addition()
    suite = Suite("addition", task.problems("test")[:40], FunctionGrader(task.grade, "exact"))
    backend = TransformersBackend(watched.model, watched.processing_class, batch_size=50)
    again = evaluate(suite, backend, Sampling(samples=3, max_new_tokens=6, seed=5), progress=False)
    logged = rows_with(watched, "eval/addition/avg@3")[-1]
    for name, estimate in again.benchmarks["addition"].estimates.items():
        assert logged[f"eval/addition/{name}"] == estimate.value
        assert logged[f"eval/addition/{name}_se"] == estimate.se
    for name, rate in again.benchmarks["addition"].rates.items():
        assert logged[f"eval/addition/{name}"] == rate
    assert {"greedy", "avg@3", "pass@1", "pass@3", "best@3", "maj@3"} <= again.benchmarks["addition"].estimates.keys()

    written = [json.loads(line) for line in (tmp_path / "eval" / "6" / "generations.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in written] == [row["completion"] for row in again.generations]
    document = json.loads((tmp_path / "eval" / "6" / "results.json").read_text())
    assert document["benchmarks"]["addition"]["data"]["rows"] == 500
    assert document["benchmarks"]["addition"]["problems"] == 40

    plain = trained()
    losses = [[(row["loss"], row["grad_norm"]) for row in rows_with(t, "loss")] for t in (plain, watched)]
    assert losses[0] == losses[1]
    for ours, theirs in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not beside the project")
def test_a_benchmark_is_graded_as_mathematics(trained):
    options = {"samples": 2, "limit": 3, "data_dir": str(BENCHMARKS), "max_new_tokens": 4}
    trainer = trained(eval_benchmarks=["aime24", "gsm8k"], eval_benchmark_steps=6, eval_benchmark_kwargs=options)
    (row,) = rows_with(trainer, "eval/aime24/avg@2")
    assert row["eval/gsm8k/avg@2"] == row["eval/aime24/avg@2"] == 0.0
    assert row["eval/aime24/no_answer"] == 1.0  # a random model boxes nothing
    document = json.loads((Path(trainer.args.output_dir) / "eval" / "6" / "results.json").read_text())
    assert document["benchmarks"]["aime24"]["grader"].startswith("dgpo MathGrader")
    assert "boxed" in document["prompt"]["template"]


@pytest.mark.soak
def test_two_ranks_share_the_problems(tiny_folder, tmp_path, monkeypatch):
    from tests.training.test_two_processes import launch

    options = {
        "eval_benchmarks": ["addition"],
        "eval_benchmark_steps": 4,
        "eval_benchmark_kwargs": {"samples": 0, "greedy": True, "limit": 21},
    }
    launch(1, tiny_folder, tmp_path / "one", options)
    launch(2, tiny_folder, tmp_path / "two", options)
    one, two = (
        [json.loads(line) for line in (tmp_path / f"{name}-run" / "eval" / "4" / "generations.jsonl").open()]
        for name in ("one", "two")
    )
    assert len(one) == 21
    assert [row["id"] for row in two] == [row["id"] for row in one]
    same = sum(ours["completion"] == theirs["completion"] for ours, theirs in zip(one, two, strict=True))
    assert same >= 20  # parameters agree to 1e-5: a tie may fall the other way
    logs = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    assert all(any("eval/addition/greedy" in row for row in log) for log in logs)
    assert os.environ.get("WORLD_SIZE") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_benchmark_kwargs": {"samples": 2}}, "eval_benchmark_kwargs = {'samples': 2} needs eval_benchmarks"),
        (
            {"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"sample": 2}},
            "eval_benchmark_kwargs has no 'sample', did you mean 'samples'?",
        ),
        ({"eval_benchmarks": ["addition"], "eval_benchmark_steps": 0}, "eval_benchmark_steps = 0 is not allowed"),
        ({"eval_benchmarks": ["additio"]}, "unknown task 'additio', did you mean 'addition'?"),
        ({"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"samples": -1}}, "samples = -1"),
        ({"eval_benchmarks": ["aime24"], "eval_benchmark_kwargs": {"data_dir": "nowhere"}}, "nowhere"),
        # what the first evaluation would find
        ({"eval_benchmarks": ["addition", "addition"]}, "duplicate name 'addition' of 2 suites"),
        ({"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"samples": 0}}, "samples = 0 with greedy = False"),
        (
            {"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"limit": 0}},
            "limit = 0; expected a whole number",
        ),
        (
            {"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"batch_size": 0}},
            "batch_size = 0 is not allowed",
        ),
        (
            {"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"batch_size": "9"}},
            "batch_size = '9'; expected a",
        ),
        ({"eval_benchmarks": ["gsm8k"], "eval_benchmark_kwargs": {"chat": True}}, "tokenizer has no chat template"),
    ],
)
def test_wrong_options_are_found_before_training(trained, options, message, monkeypatch):
    if options.get("eval_benchmarks") == ["gsm8k"]:
        if not BENCHMARKS.is_dir():
            pytest.skip("the benchmark files are not beside the project")
        options["eval_benchmark_kwargs"]["data_dir"] = str(BENCHMARKS)

    def train(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(DGPOTrainer, "train", train)
    with pytest.raises((ValueError, OSError)) as error:
        trained(**options)
    assert message in str(error.value)
