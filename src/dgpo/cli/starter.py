"""`dgpo starter`: make a small model that half knows a task."""

from __future__ import annotations

from dataclasses import dataclass, field

from dgpo.cli.arguments import parse
from dgpo.cli.errors import user_input


@dataclass
class StarterArguments:
    """Arguments of `dgpo starter`."""

    out: str = field(metadata={"help": "Folder for the model."})
    task: str = field(default="addition", metadata={"help": "Task to warm up on."})
    seed: int = field(default=0, metadata={"help": "Seed of the initialisation and the data order."})
    max_steps: int = field(default=3000, metadata={"help": "Upper bound on the supervised steps."})


def run(argv: list[str]) -> int:
    """Run `dgpo starter argv`."""
    (args,) = parse("dgpo starter", [StarterArguments], argv, __doc__ or "")
    from dgpo import tasks
    from dgpo.training.starter import make_starter

    with user_input():
        task = tasks.make(args.task)
    summary = make_starter(task, args.out, seed=args.seed, max_steps=args.max_steps)
    print(
        f"{args.out}: {summary['parameters']:,} parameters, {summary['validation_accuracy']:.1%} greedy on validation "
        f"after {summary['steps']} steps, {summary['seconds']} s"
    )
    return 0
