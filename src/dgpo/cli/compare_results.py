"""`dgpo compare-results`: compare two results.json of `dgpo eval`, problem by problem."""

from __future__ import annotations

import argparse

from rich.console import Console

from dgpo.cli.errors import user_input
from dgpo.evaluation.compare import compare
from dgpo.files import write_json_atomic


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo compare-results`."""
    made = argparse.ArgumentParser(
        prog="dgpo compare-results",
        description="Paired per-problem differences B - A of two evaluations of the same problems, with intervals.",
    )
    made.add_argument("a", metavar="A", help="a results.json of `dgpo eval`, or its folder")
    made.add_argument("b", metavar="B", help="the results to compare with A")
    made.add_argument("--out", metavar="FILE.json", help="also write the full comparison to this file")
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo compare-results argv`."""
    arguments = parser().parse_args(argv)
    with user_input():
        comparison = compare(arguments.a, arguments.b)
        if arguments.out is not None:
            write_json_atomic(arguments.out, comparison.as_dict())
    if arguments.markdown:
        print(comparison.as_markdown())
        return 0
    Console().print(comparison.as_table())
    for warning in comparison.warnings:
        print(f"warning: {warning}")
    return 0
