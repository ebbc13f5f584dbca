"""A real language model learns on this device: evaluate, train as long as there is time, evaluate.

Model, data, recipe and evaluation are those of studies/real_model. Batches are larger on a GPU, and the learning rate
is constant, because nobody knows beforehand how many updates fit. `GPU_MODEL` names the folder of the model, which the
study's `model.py` makes; a rehearsal without it makes a tiny one with random weights. Training is stopped as a user
stops it, by a signal, after which it ends its update and saves a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from dgpo.cli import eval as evaluation
from dgpo.cli import train
from dgpo.training.callbacks import StopOnSignal
from dgpo.training.checkpoint_files import checkpoints
from gpu.piece import REHEARSAL, ROOT, Findings, NotPossible, free, pick

sys.path.append(str(Path(__file__).parents[2] / "studies" / "real_model"))
from learn import ON_A_GPU, RECIPE, WORDS, compared  # isort: skip
from words import write  # isort: skip

MODEL = os.environ.get("GPU_MODEL", str(ROOT / "outputs" / "llm" / "start"))
KEPT_FOR_AFTER = 25.0
"""Seconds for the last update, its checkpoint and the evaluation after training."""
SMALL = (
    *("--per_device_train_batch_size", "4", "--num_generations", "4", "--steps_per_generation", "1"),
    *("--max_completion_length", "4"),
)
TRAINING = (
    *("--lr_scheduler_type", "constant", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none"),
    *("--max_steps", "100000", *pick(ON_A_GPU, SMALL)),
)
EVALUATION = pick(
    ("--dtype", "bfloat16", "--batch_size", "1024"),
    ("--limit", "3", "--samples", "2", "--max_new_tokens", "4"),
)


def learn(found: Findings, method: str) -> None:
    """Evaluate, train with the method, evaluate; one row. The completions of both evaluations stay beside the file."""
    kept = found.folder / "learning" / method
    shutil.rmtree(kept, ignore_errors=True)  # of a piece that is run again
    with tempfile.TemporaryDirectory() as scratch:
        # weights and tokens of a run are large, and what is beside the file travels
        work = Path(scratch)
        model = starting_model(work)
        data, test = write(work / "data")
        evaluate(model, test, kept / "before")
        began = time.perf_counter()
        peak = training(found, method, model, data, work)
        seconds = time.perf_counter() - began
        evaluate(finished(work / "model"), test, kept / "after")
        report(found, method, kept, work / "record", seconds, peak)


def starting_model(work: Path) -> Path:
    """The folder of the model.

    Raises:
        NotPossible: there is none.
    """
    folder = Path(MODEL)
    if (folder / "config.json").is_file() and (not REHEARSAL or "GPU_MODEL" in os.environ):
        return folder
    if not REHEARSAL:
        raise NotPossible(f"no model in {folder}; GPU_MODEL names its folder, studies/real_model/model.py makes it")
    from dgpo.training.starter import character_tokenizer, tiny_model

    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    tiny_model(tokenizer, hidden=32, layers=1).save_pretrained(work / "start")
    tokenizer.save_pretrained(work / "start")
    return work / "start"


def command(name: str, *words: Any) -> None:
    """`dgpo NAME ...` in this process.

    Raises:
        RuntimeError: it failed.
    """
    print(f"$ dgpo {name} {' '.join(map(str, words))}", flush=True)
    # past the entry point, which wants all packages of an extra: the plots of a report are not needed here
    status = {"train": train, "eval": evaluation}[name].run(list(map(str, words)))
    if status != 0:
        raise RuntimeError(f"dgpo {name} ended with status {status}")


def evaluate(model: Path, test: Path, out: Path) -> None:
    """Of held-out problems."""
    command("eval", "--model", model, "--dataset", test, "--grader", "math", *WORDS, *EVALUATION, "--out", out)
    free()


def training(found: Findings, method: str, model: Path, data: Path, work: Path) -> float | None:
    """Train until too little time is left; the peak of allocated memory in MiB."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    ended = threading.Event()
    watch = threading.Thread(target=stop_in_time, args=(found, ended), daemon=True)
    watch.start()
    try:
        command(
            *("train", "--config", RECIPE, "--model_name_or_path", model, "--dataset", data, "--objective", method),
            *("--output_dir", work / "model", "--record", work / "record", *TRAINING),
        )
    finally:
        ended.set()
        watch.join()
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None
    free()
    return peak


def stop_in_time(found: Findings, ended: threading.Event) -> None:
    """Send the signal that a user would send, as soon as somebody listens who ends the update first."""
    # a rehearsal ends with its first update
    ended.wait(pick(max(found.left() - KEPT_FOR_AFTER, 0), 0))
    while not ended.is_set():
        if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), StopOnSignal):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        ended.wait(0.2)


def finished(folder: Path) -> Path:
    """The trained model: in the folder after the last update of a run, else in its newest checkpoint."""
    return folder if (folder / "config.json").is_file() else checkpoints(folder)[0]


def report(found: Findings, method: str, kept: Path, record: Path, seconds: float, peak: float | None) -> None:
    """Accuracies before and after, their difference problem by problem, in percent, and the reward of every update."""
    logged = [json.loads(line) for line in (record / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rewards = [row["reward"] for row in logged if "reward" in row]
    updates = max((row["step"] for row in logged if "step" in row), default=0)
    accuracies = compared(kept / "before", kept / "after")
    average = next(name for name in accuracies if name.startswith("avg@"))
    before, after, difference = (accuracies[average][name] for name in ("before", "after", "difference"))
    found.row(
        method=method,
        updates=updates,
        seconds=seconds,
        seconds_per_update=seconds / max(updates, 1),
        peak_mib=peak,
        metric=average,
        before=before,
        after=after,
        difference=difference,
        accuracies=accuracies,
        rewards=rewards,
    )
    found.headline = f"{average} {before:.1f} -> {after:.1f} % in {updates} updates, {seconds:.0f} s"
    # the lower end of the 95 % interval
    found.check(REHEARSAL or difference[1] > 0, f"{average} did not rise: {before:.1f} -> {after:.1f} %, {difference}")
