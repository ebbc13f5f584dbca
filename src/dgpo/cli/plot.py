"""`dgpo plot`: one static figure of recorded runs, for a paper."""

from __future__ import annotations

import argparse

from dgpo.cli.errors import user_input
from dgpo.cli.replay import parse
from dgpo.report.figures import KINDS, plot


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo plot`."""
    made = argparse.ArgumentParser(prog="dgpo plot", description="Draw one figure of recorded runs: SVG, PDF or PNG.")
    made.add_argument("kind", choices=list(KINDS), help="what to draw")
    made.add_argument("runs", nargs="+", metavar="RUN", help="folders that runs were recorded to (record: FOLDER)")
    made.add_argument("--out", required=True, metavar="FILE", help="output file: .svg, .pdf or .png")
    made.add_argument(
        "--objectives",
        nargs="+",
        default=[],
        metavar="NAME",
        help="for weights and histogram: objectives to draw, such as dgpo:n=2 grpo, or all (default: of the runs)",
    )
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo plot argv`."""
    arguments = parser().parse_args(argv)
    with user_input():
        methods = [objective for word in arguments.objectives for objective in parse(word)]
        path = plot(arguments.kind, arguments.runs, arguments.out, methods=methods)
    print(path)
    return 0
