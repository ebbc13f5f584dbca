"""`dgpo report`: one HTML page of what runs recorded, or of a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

from dgpo.cli.errors import UserError, user_input
from dgpo.cli.own_objective import add_flag, import_named, not_known
from dgpo.files import write_text_atomic
from dgpo.report import collect, page, write_comparison_report
from dgpo.report.comparison import is_comparison
from dgpo.runs.locate import RECORD, find_log, is_run_folder
from dgpo.runs.results import GENERATIONS, RESULTS


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo report`."""
    made = argparse.ArgumentParser(
        prog="dgpo report",
        description=(
            "Write one self-contained HTML page about recorded runs: curves, regions, the tokens on the weight curves "
            "of any method, replay, the doctor's findings and the evaluations; or about a comparison: learning curves "
            "of every method over seeds, and the tables of its summary. It opens without a network."
        ),
    )
    made.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folders that runs were recorded to (record: FOLDER), logs that `dgpo doctor` reads, or one "
        "folder of `dgpo compare` with its summary",
    )
    made.add_argument("--out", metavar="FILE.html", help="output file (default: report.html in the first RUN)")
    made.add_argument(
        "--eval", nargs="+", default=[], metavar="FOLDER", dest="evaluation", help="results of `dgpo eval` to show"
    )
    add_flag(made)
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo report argv`."""
    arguments = parser().parse_args(argv)
    arguments.runs, arguments.evaluation = separated(arguments.runs, arguments.evaluation)
    first = Path(arguments.runs[0])
    out = (
        Path(arguments.out)
        if arguments.out is not None
        else (first if first.is_dir() else first.parent) / "report.html"
    )
    hints: list[str] = []
    with user_input():
        if compared := [path for path in arguments.runs if is_comparison(path)]:
            if len(arguments.runs) > 1 or arguments.evaluation or arguments.objective:
                raise UserError(
                    f"{compared[0]!r} is a comparison, which has its own page; give no other argument but --out"
                )
            path = write_comparison_report(first, out)
        else:
            import_named(arguments.objective)
            data = collect(arguments.runs, arguments.evaluation)
            path = write_text_atomic(out, page(data))
            hints = [f"{run['label']}: {not_known(run['unregistered'])}" for run in data["runs"] if run["unregistered"]]
    for hint in hints:
        print(hint)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def separated(runs: list[str], evaluation: list[str]) -> tuple[list[str], list[str]]:
    """Runs and evaluations, where `--eval A B RUN` has taken the runs that follow it.

    Raises:
        UserError: there is no run.
    """
    taken = [path for path in evaluation if not _is_evaluation(path) and _is_run(path)]
    found = [*runs, *taken]
    if not found:
        raise UserError("no RUN was given; expected a folder that a run was recorded to, or a log")
    return found, [path for path in evaluation if path not in taken]


def _is_evaluation(path: str) -> bool:
    """Whether a path is an evaluation, finished or not."""
    folder = Path(path)
    if folder.is_dir():
        return any((folder / name).is_file() for name in (RESULTS, GENERATIONS))
    return folder.name == RESULTS


def _is_run(path: str) -> bool:
    folder = Path(path)
    if is_comparison(folder) or any(is_run_folder(one) for one in (folder, folder / RECORD)):
        return True
    try:
        return any(file.is_file() for file in find_log(folder).files)
    except ValueError:  # none in there, or several
        return False
