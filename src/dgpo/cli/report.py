"""`dgpo report`: one HTML page of what runs recorded."""

from __future__ import annotations

import argparse
from pathlib import Path

from dgpo.cli.errors import user_input
from dgpo.cli.own_objective import add_flag, import_named
from dgpo.report import write_report


def run(argv: list[str]) -> int:
    """Run `dgpo report argv`."""
    parser = argparse.ArgumentParser(
        prog="dgpo report",
        description=(
            "Write one self-contained HTML page about recorded runs: curves, regions, the tokens on the weight curves "
            "of any method, replay, the doctor's findings and the evaluations. It opens without a network."
        ),
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that runs were recorded to (record: FOLDER)")
    parser.add_argument("--out", metavar="FILE.html", help="output file (default: report.html in the first RUN)")
    parser.add_argument(
        "--eval", nargs="+", default=[], metavar="FOLDER", dest="evaluation", help="results of `dgpo eval` to show"
    )
    add_flag(parser)
    arguments = parser.parse_args(argv)
    out = Path(arguments.out) if arguments.out is not None else Path(arguments.runs[0]) / "report.html"
    with user_input():
        import_named(arguments.objective)
        path = write_report(arguments.runs, out, evaluation=arguments.evaluation)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
