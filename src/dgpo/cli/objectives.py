"""`dgpo objectives`: the methods, their fields and their properties."""

from __future__ import annotations

import argparse
import shutil

from dgpo import objectives, registry
from dgpo.objectives import conformance, table


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo objectives`."""
    made = argparse.ArgumentParser(prog="dgpo objectives", description="List the policy objectives.")
    made.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help=f"describe this method with its fields, defaults and ranges; or {registry.SYNTAX}, or an import path",
    )
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return made


def run(argv: list[str]) -> int:
    """Print the table of methods, or everything about one of them. Needs torch and nothing else."""
    arguments = parser().parse_args(argv)
    word: str | None = arguments.name
    width = shutil.get_terminal_size((100, 24)).columns
    if word is None:
        print(table.as_markdown() if arguments.markdown else table.as_text(width))
        return 0
    if arguments.markdown:
        parser().error("--markdown prints the whole table; leave NAME out")
    try:
        name, fields = registry.parse("objective", word)
        made = objectives.make(name, **fields) if fields else None
        described = table.describe(name)
    except ValueError as error:
        parser().error(str(error))
    print(f"{described}\n\nThe same gradient elsewhere:\n{conformance.as_text(objectives.find(name), width)}")
    if made is not None:
        print(f"\nWith these fields: {made}")
    return 0
