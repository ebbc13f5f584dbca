"""`dgpo starter`: train a small model that partly solves a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dgpo import tasks
from dgpo.cli.arguments import argument, parse
from dgpo.cli.errors import UserError, user_input
from dgpo.cli.parser import Parser
from dgpo.counts import counted
from dgpo.files import FolderInUse
from dgpo.training.starter import NotReached, make_starter, require_own


@dataclass
class StarterArguments:
    """Arguments of `dgpo starter`."""

    out: str = field(metadata={"help": "Folder for the model."})
    task: str = argument("addition", f"Task for supervised warm-up: {', '.join(tasks.TASKS)}.")
    seed: int = argument(0, "Seed of the initialisation and the data order.")
    max_steps: int = argument(3000, "Maximum number of supervised steps.")


def parser() -> Parser:
    """The flags of `dgpo starter`."""
    return Parser([StarterArguments], prog="dgpo starter", description=__doc__ or "")


def run(argv: list[str]) -> int:
    """Run `dgpo starter argv`."""
    (args,) = parse(parser(), argv)
    with user_input():
        task = tasks.make(args.task)
        if not isinstance(task, tasks.Procedural):
            raise ValueError(f"task = {args.task!r} is a {task.kind} task; expected one of {', '.join(tasks.TASKS)}")
        if args.max_steps < 1:
            raise ValueError(f"max_steps = {args.max_steps} is not allowed; expected >= 1")
        require_own(args.out)
        Path(args.out).mkdir(parents=True, exist_ok=True)
    try:
        summary = make_starter(task, args.out, seed=args.seed, max_steps=args.max_steps)
    except (NotReached, FolderInUse) as error:
        raise UserError(str(error)) from error
    print(
        f"{args.out}: {counted(summary['parameters'], 'parameter')}, {summary['validation_accuracy']:.1%} greedy "
        f"on validation after {counted(summary['steps'], 'step')}, {summary['seconds']} s"
    )
    return 0
