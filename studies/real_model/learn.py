"""SmolLM2-135M-Instruct learns word problems: evaluate, train with DGPO, evaluate again, report. `make llm` runs it.

    python studies/real_model/learn.py [--seed 0] [--out outputs/llm] [--gsm8k FOLDER]

Every stage is a command that is printed and can be run by hand. A stage that is complete is not repeated: interrupt
and run again at will. The evaluation before training is shared by all seeds. `--gsm8k FOLDER` also evaluates GSM8K
before and after, from `gsm8k_test.jsonl` in that folder (512 problems, 4 samples each), which takes longer than
everything else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from model import SUMMARY
from rich.console import Console
from rich.table import Table
from words import write

from dgpo.evaluation.compare import compare
from dgpo.files import read_json, write_json_atomic
from dgpo.runs.metrics import read_metrics
from dgpo.runs.results import read_results

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "words.yaml"
STAGING = "_saving"
"""What the trainer calls the folder in which it writes: `dgpo.training.resumable.STAGING`, whose import takes long."""
ON_A_GPU = ("--use_cpu", "false", "--per_device_train_batch_size", "128", "--dataloader_pin_memory", "true")
"""What differs from the recipe on a GPU: 64 prompts x 8 completions per generation in place of 16 x 8."""

WORDS = ("--samples", "8", "--temperature", "0.7", "--max_new_tokens", "48")
PROBLEMS = "gsm8k_test.jsonl"
"""The file of GSM8K."""
GSM8K = ("--limit", "512", "--temperature", "0.7", "--top_p", "1", "--max_new_tokens", "256")


def main() -> None:
    """Run the stages that are missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the training run (default 0)")
    parser.add_argument("--out", type=Path, default=Path("outputs/llm"), help="default: outputs/llm")
    parser.add_argument("--threads", type=int, default=cores(), help="of a computation (default: all cores)")
    parser.add_argument("--gsm8k", type=Path, help="folder with gsm8k_test.jsonl, to evaluate GSM8K before and after")
    parser.add_argument("--gsm8k_samples", type=int, default=4, help="of each problem (default 4)")
    args = parser.parse_args()
    for name in ("threads", "gsm8k_samples"):
        if (number := getattr(args, name)) < 1:
            parser.error(f"--{name} {number}: expected a positive whole number")
    # now, and not after half an hour
    if args.gsm8k is not None and not (args.gsm8k / PROBLEMS).is_file():
        parser.error(f"--gsm8k {args.gsm8k}: there is no {PROBLEMS} in this folder")
    started = time.perf_counter()
    # bound: the two threads of a product may otherwise share one of two cores. One thread waits for no other, and
    # where cores are left over, all that compute at once would be bound to the same few
    bound = {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"} if args.threads == cores() > 1 else {}
    os.environ.update({"OMP_NUM_THREADS": str(args.threads), **bound})
    if on_a_gpu():  # the first one: a trainer without a launcher refuses several
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    out, run = args.out, args.out / f"seed-{args.seed}"
    start, model, record = out / "start", run / "model", run / "record"
    command(HERE / "model.py", start)
    train, test = write(out / "data")

    evaluate(start, test, out / "before")
    if not finished(model):
        begun = any(model.glob("checkpoint-*"))
        if not begun:
            shutil.rmtree(record, ignore_errors=True)  # of a run that was interrupted before its first checkpoint
        dgpo("train", "--config", RECIPE, "--model_name_or_path", start, "--dataset", train, "--output_dir", model,
             "--record", record, "--seed", args.seed, *(ON_A_GPU if on_a_gpu() else ()),
             *(["--resume"] if begun else []))  # fmt: skip
        if not finished(model):  # it was told to stop, and has saved a checkpoint
            sys.exit("training was stopped; the same command continues it")
    evaluate(model, test, run / "after")
    dgpo("report", record, "--eval", out / "before", run / "after", "--out", run / "report.html")
    dgpo("doctor", record, accepted=(0, 1))  # 1: it found an error in the run, and says so
    if args.gsm8k is not None:
        for folder, of in ((out, start), (run, model)):
            evaluate(of, None, folder / "gsm8k", data=args.gsm8k, samples=args.gsm8k_samples)
    summary = {
        "seed": args.seed,
        "model": read_json(start / SUMMARY),
        "hardware": hardware(args.threads),
        **figures(out, run),
    }
    write_json_atomic(run / "summary.json", summary)
    Console().print(table(summary))
    print(f"{time.perf_counter() - started:.0f} s in this call")
    print(f"report, to open in a browser: {run}/report.html")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finished(model: Path) -> bool:
    """Whether training has ended and its model is there, whole: the trainer moves it file by file out of `STAGING`."""
    return (model / "config.json").exists() and not (model / STAGING).exists()


def dgpo(*arguments: Any, accepted: tuple[int, ...] = (0,)) -> None:
    """Print and run one `dgpo` command."""
    command("-m", "dgpo", *arguments, accepted=accepted)


def command(*arguments: Any, accepted: tuple[int, ...] = (0,)) -> None:
    """Print and run one command of Python; a status that is not accepted, or Ctrl-C, ends the script.

    Ctrl-C reaches the command as well, which ends by itself: training ends its update and saves a checkpoint.
    """
    words = [str(argument) for argument in arguments]
    shown = words[1:] if words[0] == "-m" else ["python", *words]
    print(f"\n$ {shlex.join(shown)}", flush=True)
    # `subprocess.run` would kill it a quarter of a second after Ctrl-C
    process, interrupted, status = subprocess.Popen([sys.executable, *words]), False, None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        sys.exit(130)  # 128 + SIGINT, as shells have it
    if status not in accepted:
        sys.exit(status)


def evaluate(model: Path, words: Path | None, out: Path, data: Path | None = None, samples: int = 4) -> None:
    """Evaluate `model` on the JSONL file `words`, or on the GSM8K problems in the folder `data`; resumes."""
    if words is not None:
        what = ["--dataset", words, "--grader", "math", *WORDS]
    else:
        what = ["--benchmarks", "gsm8k", "--data_dir", data, "--samples", samples, *GSM8K]
    dgpo("eval", "--model", model, *what, "--dtype", "bfloat16", "--batch_size", "128", "--out", out)


def figures(out: Path, run: Path) -> dict[str, Any]:
    """Accuracies and seconds of a finished seed, from what its stages recorded in `out` and in its folder `run`."""
    names = {"words": ("before", "after"), "gsm8k": ("gsm8k", "gsm8k")}
    pairs = {task: (out / before, run / after) for task, (before, after) in names.items()}
    found = {task: compared(*pair) for task, pair in pairs.items() if (pair[1] / "results.json").exists()}
    # every logged step of a run that was interrupted and resumed
    steps = {
        line["step"]: line["step_time"] for line in read_metrics(run / "record/metrics.jsonl") if "step_time" in line
    }
    seconds = {
        name: read_results(folder)["timing"]["seconds"]
        for name, folder in zip(names["words"], pairs["words"], strict=True)
    }
    return found | {
        "seconds": {name: round(value) for name, value in (seconds | {"training": sum(steps.values())}).items()}
    }


def compared(before: Path, after: Path) -> dict[str, Any]:
    """Estimates before and after, and their differences problem by problem, in points."""
    rows = {row.metric: row.paired for row in compare(before, after).rows}
    documents = [read_results(folder) for folder in (before, after)]
    (first,), (second,) = (document["benchmarks"].values() for document in documents)
    found: dict[str, Any] = {"problems": first["problems"]}
    drawn = documents[0]["sampling"]["samples"]
    for name in ("greedy", f"avg@{drawn}", f"pass@{drawn}"):
        if name not in first["estimates"] or name == "pass@1":  # which is avg@1
            continue
        values = [100 * side["estimates"][name]["value"] for side in (first, second)]
        found[name] = {"before": round(values[0], 1), "after": round(values[1], 1)}
        if name in rows:
            change = rows[name].difference
            found[name]["difference"] = [round(100 * x, 1) for x in (change.value, change.low, change.high)]
    return found


def on_a_gpu() -> bool:
    """Whether one computes. Asking creates no context on it, which the memory of the commands would miss."""
    import torch

    return torch.cuda.is_available()


def hardware(threads: int) -> str:
    """What computed it."""
    import torch

    return torch.cuda.get_device_name() if on_a_gpu() else f"{threads} of {os.cpu_count()} CPU cores"


def cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """Before, after and difference of one estimate, the last with its interval where it has one."""
    change = f"{row['after'] - row['before']:+.1f}"
    if "difference" in row:
        value, low, high = row["difference"]
        change = f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"{row['before']:.1f}", f"{row['after']:.1f}", change


def table(summary: dict[str, Any]) -> Table:
    """The summary for a terminal, in percent."""
    shown = Table(
        title=f"SmolLM2-135M-Instruct, DGPO, seed {summary['seed']}",
        caption=f"differences with 95 % intervals, by problem; {summary['hardware']}",
    )
    shown.add_column("problems")
    shown.add_column("%")
    for column in ("before", "after", "difference"):
        shown.add_column(column, justify="right")
    for task in (name for name in ("words", "gsm8k") if name in summary):
        for metric, row in summary[task].items():
            if metric == "problems":
                continue
            shown.add_row(f"{summary[task]['problems']} {task}", metric, *cells(row))
    return shown


if __name__ == "__main__":
    main()
