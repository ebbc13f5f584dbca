"""`dgpo objectives`: the methods, their fields and what they claim."""

from __future__ import annotations

import argparse
import shutil

from dgpo.objectives import OBJECTIVES, conformance, table
from dgpo.registry import did_you_mean


def run(argv: list[str]) -> int:
    """Print the table of methods, or everything about one of them. Needs torch and nothing else."""
    parser = argparse.ArgumentParser(prog="dgpo objectives", description="List the policy objectives.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the formula and the fields of this method")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args(argv)
    name: str | None = arguments.name
    width = shutil.get_terminal_size((100, 24)).columns
    if name is None:
        print(table.as_markdown() if arguments.markdown else table.as_text(width))
        return 0
    if arguments.markdown:
        parser.error("--markdown prints the whole table; leave NAME out")
    if name not in OBJECTIVES:
        parser.error(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}")
    print(f"{table.describe(name)}\n\nThe same gradient elsewhere:\n{conformance.as_text(name, width)}")
    return 0
