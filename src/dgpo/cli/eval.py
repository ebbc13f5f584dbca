"""`dgpo eval`: greedy accuracy, avg@k and pass@k of a model, each with a 95 % interval over problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from dgpo.cli.arguments import parse
from dgpo.cli.data import DataArguments
from dgpo.cli.errors import user_input
from dgpo.cli.models import load_model
from dgpo.evaluation import evaluate, table, write
from dgpo.rewards import exact_match


@dataclass(kw_only=True)
class EvalArguments(DataArguments):
    """Arguments of `dgpo eval`."""

    model: str = field(metadata={"help": "Folder or hub name of the model."})
    samples: int = field(default=8, metadata={"help": "Sampled completions per problem: k of avg@k and pass@k."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the samples."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the samples."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Budget; the task's own, or 512 for data."})
    batch_size: int = field(default=256, metadata={"help": "Completions generated side by side."})
    limit: int | None = field(default=None, metadata={"help": "Only the first so many problems."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Precision of the weights."}
    )
    out: str | None = field(
        default=None,
        metadata={
            "help": "Folder for results.json and generations.jsonl; eval-NAME in the model's folder, or in "
            "outputs/MODEL for a model of the hub."
        },
    )


def run(argv: list[str]) -> int:
    """Run `dgpo eval argv`."""
    (args,) = parse("dgpo eval", [EvalArguments], argv, __doc__ or "")
    with user_input():
        name, problems, grade, budget = _problems(args)
        model, tokenizer = load_model(args.model, args.dtype)
        folder = _folder(args, name)
        folder.mkdir(parents=True, exist_ok=True)  # that it cannot be made is better known before than after
    with user_input((ValueError,)):
        evaluation = evaluate(
            model,
            tokenizer,
            problems,
            grade,
            samples=args.samples,
            temperature=args.temperature,
            top_p=args.top_p,
            max_new_tokens=budget if args.max_new_tokens is None else args.max_new_tokens,
            batch_size=args.batch_size,
            seed=args.seed,
        )
    results, generations = write(evaluation, folder, model=args.model, data=name)
    Console().print(table(evaluation))
    print(f"{results}\n{generations}")
    return 0


def _problems(args: EvalArguments) -> tuple[str, list[dict[str, Any]], Callable[[str, Any], float], int]:
    """Name, problems, grader and token budget."""
    if args.samples < 0 or (args.samples and args.temperature <= 0):
        raise ValueError(
            f"samples = {args.samples}, temperature = {args.temperature}: expected samples >= 0, and a temperature > 0 "
            "for them (samples = 0 gives greedy accuracy alone)"
        )
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"limit = {args.limit} is not allowed; expected >= 1")
    task = args.make_task()
    if task is not None:
        return task.name, task.problems("test")[: args.limit], task.grade, task.max_new_tokens
    assert args.dataset is not None
    return Path(args.dataset).stem, args.load_dataset("test").to_list()[: args.limit], exact_match, 512


def _folder(args: EvalArguments, name: str) -> Path:
    if args.out is not None:
        return Path(args.out)
    # a folder of a hub model's name would from then on be taken for the model
    beside = Path(args.model) if Path(args.model).is_dir() else Path("outputs", Path(args.model).name)
    # a quick look at a few problems must not take the place of the whole result
    return beside / (f"eval-{name}" if args.limit is None else f"eval-{name}-first{args.limit}")
