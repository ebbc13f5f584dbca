"""`dgpo demo`: make a starter model, evaluate it, train it with DGPO, evaluate again, and print a summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dgpo import objectives
from dgpo.cli.arguments import argument, parse
from dgpo.cli.errors import user_input
from dgpo.cli.parser import Parser
from dgpo.counts import counted
from dgpo.files import FolderInUse, printable
from dgpo.training.demo import UPDATES, require_own, run_demo


@dataclass
class DemoArguments:
    """Arguments of `dgpo demo`."""

    out: str = argument("outputs/demo", "Output folder.")
    seed: int = argument(0, "Seed of the starter model and of the training run.")
    objective: str = argument("dgpo", "Objective to train with; fields as in dgpo:n=2,m=2.")
    updates: int = argument(UPDATES, "Number of optimiser updates.")


def parser() -> Parser:
    """The flags of `dgpo demo`."""
    return Parser([DemoArguments], prog="dgpo demo", description=__doc__ or "")


def run(argv: list[str]) -> int:
    """Run `dgpo demo argv`."""
    (args,) = parse(parser(), argv)
    with user_input():
        objectives.make(args.objective)
        if args.updates < 1:
            raise ValueError(f"updates = {args.updates} is not allowed; expected >= 1")
        require_own(args.out)
        Path(args.out).mkdir(parents=True, exist_ok=True)
    console = Console()
    with user_input((FolderInUse,)):
        summary = run_demo(args.out, seed=args.seed, objective=args.objective, updates=args.updates, say=console.rule)
    console.print(_table(summary))
    console.print(_examples(summary))
    print(f"{args.out}/model, {args.out}/summary.json, {args.out}/record")
    print(f"report, to open in a browser: {args.out}/report.html")
    return 0


def _table(summary: dict[str, Any]) -> Table:
    rows = Table(
        title=f"two-digit addition, {counted(summary['updates'], 'update')} with {summary['objective']}, "
        f"seed {summary['seed']}",
        caption=f"500 held-out sums, {summary['seconds']:.0f} s in total",
    )
    rows.add_column("accuracy, %")
    for column in ("before", "after", "change"):
        rows.add_column(column, justify="right")
    for name, before in summary["before"].items():
        after = summary["after"][name]
        rows.add_row(name, f"{100 * before:.1f}", f"{100 * after:.1f}", f"{100 * (after - before):+.1f}")
    return rows


def _examples(summary: dict[str, Any]) -> Table:
    rows = Table(title="what it answers: the first held-out sums, greedily")
    for column in ("sum", "before", "after"):
        rows.add_column(column, justify="right")
    for one in summary["examples"]:
        answers = [
            # Text: what a model wrote is not markup
            Text(f"{printable(one[when]['completion'])} {'✓' if one[when]['correct'] else '✗'}")
            for when in ("before", "after")
        ]
        rows.add_row(Text(f"{printable(one['prompt'])}{one['answer']}"), *answers)
    return rows
