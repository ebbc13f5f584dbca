"""The demo: a language model gets better at a verifiable task under DGPO, in minutes on a CPU."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.counts import counted
from dgpo.evaluation import Evaluation, Sampling, Suite, TransformersBackend, evaluate, write
from dgpo.files import FolderLock, write_json_atomic
from dgpo.report import write_report
from dgpo.tasks import Addition
from dgpo.tasks.task import grader_of
from dgpo.training.callbacks import RewardProgress
from dgpo.training.config import DGPOConfig
from dgpo.training.starter import SUMMARY as STARTER
from dgpo.training.starter import make_starter, one_thread
from dgpo.training.starter import require_own as require_own_starter
from dgpo.training.trainer import DGPOTrainer

UPDATES = 800
SAMPLES = 8
EXAMPLES = 3
"""Problems whose answers the summary has."""

SETTINGS: dict[str, Any] = {
    # 32 prompts x 8 completions are generated together and serve 4 updates of 64 completions: off-policy by up to 3
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "steps_per_generation": 4,
    "max_completion_length": Addition.max_new_tokens,
    # falling to 0: at a constant rate the greedy accuracy swings by 10 points from one hundred updates to the next
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 10,
    "save_strategy": "no",
}
"""What the demo trains with, beside the objective, the number of updates and the seed; `recipes/addition.yaml` too."""


@one_thread()
def run_demo(
    out: str | Path, *, seed: int = 0, objective: str = "dgpo", updates: int = UPDATES, say: Any = print
) -> dict[str, Any]:
    """Starter model -> evaluate -> train -> evaluate; writes everything under `out` and returns the summary.

    Args:
        out: folder for `starter/` (re-used if it is complete and of this seed), `model/`, `before/`, `after/`,
            `record/` (for `dgpo doctor`, `replay` and `report`), `report.html` and `summary.json`.
        seed: of the starter model and of the training run; the split of the task is always the same.
        objective: any name of `dgpo.objectives.OBJECTIVES`, with its defaults.
        updates: optimiser updates.
        say: called with a line of text before each stage.

    Raises:
        FolderInUse: another process runs it there.
        ValueError: the folder contains something that the demo did not write and would overwrite.
    """
    with FolderLock(out, "running the demo in"):
        require_own(out)
        return _run(Path(out), seed, objective, updates, say)


def require_own(out: str | Path) -> None:
    """Raise ValueError for a folder with something that the demo did not write and would overwrite."""
    out = Path(out)
    there = [name for name in ("model", "before", "after", "record", "summary.json") if (out / name).exists()]
    if there and not (out / "starter" / STARTER).exists():  # what a demo writes first
        raise ValueError(f"{str(out)!r} contains {there[0]!r}, which the demo did not write; give another folder")
    require_own_starter(out / "starter")


def _run(out: Path, seed: int, objective: str, updates: int, say: Any) -> dict[str, Any]:
    started = time.perf_counter()
    task, model = Addition(), out / "starter"
    if _starter_seed(model) == seed:
        say(f"1/4 starter model: found in {model}")
    else:
        say("1/4 starter model: supervised warm-up to 45 % greedy accuracy")
        make_starter(task, model, seed=seed)
    say("2/4 evaluate it on 500 held-out sums")
    before = _evaluate(model, task, out / "before")
    say(f"3/4 train it with {objective}, {counted(updates, 'update')}")
    _train(model, task, out, seed=seed, objective=objective, updates=updates)
    say("4/4 evaluate it again")
    after = _evaluate(out / "model", task, out / "after")
    summary = {
        "before": _values(before),
        "after": _values(after),
        "objective": objective,
        "updates": updates,
        "seed": seed,
        "examples": _examples(before, after),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json_atomic(out / "summary.json", summary)
    write_report([out / "record"], out / "report.html", evaluation=[out / "before", out / "after"])
    return summary


def _starter_seed(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / STARTER).read_text())["seed"])
    except FileNotFoundError:
        return None


def _evaluate(model: Path, task: Addition, out: Path) -> Evaluation:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = TransformersBackend(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device),
        AutoTokenizer.from_pretrained(model),
    )
    grader = grader_of(task)
    assert grader is not None
    suite = Suite(task.name, task.problems("test"), grader, task.provenance("test"))
    evaluation = evaluate(suite, backend, Sampling(samples=SAMPLES, max_new_tokens=task.max_new_tokens))
    # all at once: a demo that is run again in the same folder starts over
    write(evaluation, out)
    return evaluation


def _train(model_folder: Path, task: Addition, out: Path, *, seed: int, objective: str, updates: int) -> None:
    shutil.rmtree(out / "record", ignore_errors=True)  # of a demo before this one
    config = DGPOConfig(
        output_dir=str(out / "model"),
        record=str(out / "record"),
        objective=objective,
        max_steps=updates,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        **SETTINGS,
    )
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trainer = DGPOTrainer(model, task.reward, config, train_dataset=task.dataset("train"))
    RewardProgress.install(trainer, "reward")
    trainer.data_name = task.name
    trainer.train()
    trainer.save_model(config.output_dir)
    trainer.create_model_card(model_name="addition")


def _examples(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """The first problems with what the model answered before and after, greedily."""
    greedy = [
        {row["id"]: row for row in evaluation.generations if row["kind"] == "greedy"} for evaluation in (before, after)
    ]
    return [
        {
            "prompt": row["prompt"],
            "answer": row["answer"],
            **{
                when: {"completion": rows[name]["completion"], "correct": rows[name]["score"] > 0}
                for when, rows in zip(("before", "after"), greedy, strict=True)
            },
        }
        for name, row in list(greedy[0].items())[:EXAMPLES]
    ]


def _values(evaluation: Evaluation) -> dict[str, float]:
    names = ("greedy", f"avg@{SAMPLES}", f"pass@{SAMPLES}")
    (result,) = evaluation.benchmarks.values()
    return {name: round(result.estimates[name].value, 4) for name in names}
