"""`dgpo eval`: greedy accuracy, avg@k and pass@k of a model, each with a 95 % interval over problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from dgpo import tasks
from dgpo.cli.arguments import parse
from dgpo.cli.errors import user_input
from dgpo.evaluation import evaluate, table, write
from dgpo.rewards import exact_match
from dgpo.tasks.data import load


@dataclass
class EvalArguments:
    """Arguments of `dgpo eval`."""

    model: str = field(metadata={"help": "Folder or hub name of the model."})
    task: str | None = field(default=None, metadata={"help": f"A task: {', '.join(tasks.TASKS)} (its test split)."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Or a hub data set, or a .jsonl/.parquet file, with prompt (or problem, question) and answer."
        },
    )
    dataset_split: str = field(default="test", metadata={"help": "Split of a hub data set."})
    prompt_template: str | None = field(
        default=None, metadata={"help": "Text around each prompt, with {prompt} in it."}
    )
    chat: bool = field(default=False, metadata={"help": "Make each prompt a user message (for chat templates)."})
    samples: int = field(default=8, metadata={"help": "Sampled completions per problem: k of avg@k and pass@k."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the samples."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the samples."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Budget; the task's own, or 512 for data."})
    batch_size: int = field(default=256, metadata={"help": "Completions generated side by side."})
    limit: int | None = field(default=None, metadata={"help": "Only the first so many problems."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the weights: auto, float32, bfloat16, ..."})
    out: str | None = field(
        default=None, metadata={"help": "Folder for results.json and generations.jsonl; default: MODEL/eval-NAME."}
    )


def run(argv: list[str]) -> int:
    """Run `dgpo eval argv`."""
    (args,) = parse("dgpo eval", [EvalArguments], argv, __doc__ or "")
    with user_input():
        name, problems, grade, budget = _problems(args)
        model, tokenizer = load_model(args.model, args.dtype)
    evaluation = evaluate(
        model,
        tokenizer,
        problems,
        grade,
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens or budget,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    folder = Path(args.out) if args.out else Path(args.model) / f"eval-{name}"
    results, generations = write(evaluation, folder, model=args.model, data=name)
    Console().print(table(evaluation))
    print(f"{results}\n{generations}")
    return 0


def load_model(name: str, dtype: str = "auto") -> tuple[Any, Any]:
    """A causal language model, on the GPU if there is one, and its tokenizer.

    Raises:
        ValueError: it cannot be loaded; says whether the folder is missing or holds no model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        kind = "the folder holds no model" if Path(name).is_dir() else "no such folder, and no such model on the hub"
        raise ValueError(f"cannot load model {name!r}: {kind} ({str(error).strip().splitlines()[0]})") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _problems(args: EvalArguments) -> tuple[str, list[dict[str, Any]], Callable[[str, Any], float], int]:
    """Name, problems, grader and token budget."""
    if (args.task is None) == (args.dataset is None):
        raise ValueError(f"give either --task or --dataset; got task = {args.task!r}, dataset = {args.dataset!r}")
    if args.samples < 0 or (args.samples and args.temperature <= 0):
        raise ValueError(
            f"samples = {args.samples}, temperature = {args.temperature}: expected samples >= 0, and a temperature > 0 "
            "for them (samples = 0 gives greedy accuracy alone)"
        )
    if args.task is not None:
        task = tasks.make(args.task)
        name, problems, grade, budget = args.task, list(task.problems("test")), task.grade, task.max_new_tokens
    else:
        assert args.dataset is not None
        data = load(args.dataset, args.dataset_split, template=args.prompt_template, chat=args.chat)
        name, problems, grade, budget = Path(args.dataset).stem, data.to_list(), exact_match, 512
    if args.limit is not None:
        if args.limit < 1:
            raise ValueError(f"limit = {args.limit} is not allowed; expected >= 1")
        problems = problems[: args.limit]
    return name, problems, grade, budget
