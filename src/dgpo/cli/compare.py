"""`dgpo compare`: train methods on the same seeds, each at its best setting, and say which differences are real."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dgpo.cli import yaml_file
from dgpo.cli.compare_cells import TrainProcess
from dgpo.cli.compare_plan import plan_lines
from dgpo.cli.compare_view import View
from dgpo.cli.errors import UserError, user_input
from dgpo.cli.models import check_loads
from dgpo.cli.study_file import Given, axes_of_flags, objectives_of_flag, read, seeds, study_of
from dgpo.comparison.about import about, mixed
from dgpo.comparison.cells import CellFolder
from dgpo.comparison.evaluations import outcomes, starting_scores
from dgpo.comparison.outcome import Outcome
from dgpo.comparison.runner import Interrupted, Runner
from dgpo.comparison.statistics import coverage_note
from dgpo.comparison.study import Cell, Study, words
from dgpo.comparison.summarise import summarise
from dgpo.comparison.summary import Tuned
from dgpo.comparison.tables import STDS, design_grid, grids, limits, table, write
from dgpo.comparison.tuning import Choices, NothingToChoose, choose
from dgpo.counts import counted

FAILURES = 1
"""Exit code if a run failed."""


def run(argv: list[str]) -> int:
    """Run `dgpo compare argv`."""
    args, given = _parse(argv)
    study = study_of(given)
    root = Path(args.out or given.out or Path("outputs", "compare", study.name))
    console = Console()
    devices = _devices()
    jobs = args.jobs or max(1, len(devices))
    with user_input():
        choices = Choices(root, study)
        _check_folders(root, study, choices)
    if args.summary:
        return _summarise(study, root, choices, console)
    for line in plan_lines(study, jobs=jobs, devices=devices):
        print(line)
    print(_there(study, root, choices))
    _print_design(study, choices, console)
    if (note := coverage_note(len(study.seeds))) is not None:
        console.print(note, markup=False, highlight=False)
    if args.dry_run:
        return 0
    with user_input():
        # what every run would stop at
        check_loads(study.options["model_name_or_path"], study.options.get("model_revision"))
    view = View(study, console, time.monotonic)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    runner = Runner(TrainProcess(study.keep_models), view, jobs=jobs, devices=devices, threads=threads)
    try:
        with view, user_input((ValueError, OSError)):
            known = choices.std()
            view.later = len(study.arms) * len(study.seeds) if study.tune else 0
            not_chosen = _tune(study, root, runner, choices)
            view.later = 0
            if choices.std() != known:
                # before the first final run, with the spread between seeds that the tuning runs have
                _print_design(study, choices, console)
            runner.run(_folders(root, study.final_cells(choices.settings())))
    except Interrupted:
        print("stopped; repeat the command to continue")
        return 130
    # before the summary, which is an error where no arm has a setting
    for line in not_chosen:
        print(line)
    _summarise(study, root, choices, console)
    return FAILURES if view.failed or not_chosen else 0


# --- flags -----------------------------------------------------------------------------------------------------------


def parser(*, study: bool = True, flags: bool = True) -> argparse.ArgumentParser:
    """The flags of `dgpo compare`: with the file of a study, with the flags that stand for one, or with both."""
    made = argparse.ArgumentParser(
        prog="dgpo compare",
        usage="dgpo compare STUDY.yaml [--summary | --dry_run] [--jobs N] [--out FOLDER]\n"
        "       dgpo compare --config RECIPE.yaml --objectives dgpo,grpo --seeds 0-4 [any flag of dgpo train] ...",
        description="Train every objective on the same seeds with `dgpo train`, after tuning each on other seeds with "
        "the same budget. Repeat the command to continue: finished runs are skipped, and killed ones resume.",
        allow_abbrev=False,
    )
    if study:
        made.add_argument("study", metavar="STUDY.yaml", type=Path, help="the study: docs/compare.md has its keys")
    made.add_argument("--out", help="folder of the runs (default: `out` of the study, or outputs/compare/NAME)")
    made.add_argument("--jobs", type=int, help="runs at a time (default: the number of GPUs, or 1)")
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--summary", action="store_true", help="summarise what is finished, and stop")
    instead.add_argument("--dry_run", "--dry-run", action="store_true", help="print the plan and stop")
    if flags:
        # "extend": a second --tune adds to the first
        axes: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE,VALUE"}
        made.add_argument("--config", type=Path, metavar="RECIPE.yaml", help="a recipe of dgpo train")
        made.add_argument("--objectives", required=True, help="such as dgpo,grpo or dgpo:n=2,m=2,grpo")
        made.add_argument("--seeds", required=True, help="such as 0-4 or 0,2,5")
        made.add_argument("--settings", **axes, help="further axes")
        made.add_argument("--baseline", help="what the others are compared with (default: the first)")
        made.add_argument("--tune", **axes, help="what each is tuned over")
        made.add_argument("--tuning_seeds", default="", help="seeds of the tuning runs, such as 100-103")
        made.add_argument("--criterion", default="final", help="choose by the 'final' score or the 'area'")
    return made


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Given]:
    with_flags = any(word == "--config" or word.startswith("--config=") for word in argv)
    args, rest = parser(study=not with_flags, flags=with_flags).parse_known_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} is not allowed; expected >= 1")
    if not with_flags:
        if rest:
            raise UserError(
                f"unknown argument {rest[0]!r}; options of the runs belong into the study's config, or give --config"
            )
        return args, read(args.study)
    with user_input():
        return args, Given(
            name=args.config.stem,
            config=yaml_file.read(args.config),
            flags=tuple(rest),
            objectives=objectives_of_flag(args.objectives),
            seeds=seeds(args.seeds),
            settings=axes_of_flags(args.settings),
            baseline=args.baseline,
            tune=axes_of_flags(args.tune),
            tuning_seeds=seeds(args.tuning_seeds) if args.tuning_seeds else (),
            criterion=args.criterion,
            evaluation={},
            keep_models=True,
            out=None,
        )


def _devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to, one GPU each; empty without GPUs."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(i) for i in range(count)]


# --- running ---------------------------------------------------------------------------------------------------------


def _folders(root: Path, cells: Sequence[Cell]) -> list[CellFolder]:
    return [CellFolder(root, cell) for cell in cells]


def _check_folders(root: Path, study: Study, choices: Choices) -> None:
    """Raise ValueError, before anything runs, for a changed study or a folder that cannot be written to."""
    for folder in _folders(root, [*study.tuning_cells(), *study.final_cells(choices.settings())]):
        folder.check()
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--out {str(root)!r}: cannot write to {str(there)!r}; give another folder")


def _there(study: Study, root: Path, choices: Choices) -> str:
    """How much of it is done already."""
    cells = [*study.tuning_cells(), *study.final_cells(choices.settings())]
    done = sum(folder.progress().state == "finished" for folder in _folders(root, cells))
    whole = len(study.tuning_cells()) + len(study.arms) * len(study.seeds)
    return f"{done} of {whole} are finished, in {root}"


def _print_design(study: Study, choices: Choices, console: Console) -> None:
    """The smallest difference that the seeds of a study find, for the spread of the tuning runs if it is known."""
    known = choices.std()
    grid = design_grid(len(study.seeds), len(study.arms) - 1, stds=STDS if known is None else (known,))
    source = "SD: supposed" if known is None else "SD: of the tuning runs at the chosen settings"
    console.print(table(replace(grid, caption=[*grid.caption, source])))


def _tune(study: Study, root: Path, runner: Runner, choices: Choices) -> list[str]:
    """Run what is missing of the tuning phase, and choose a setting for every arm whose runs have ended.

    Returns:
        a line for each arm that has no setting yet.
    """
    open_arms = [arm.label for arm in study.arms if study.tune and arm.label not in choices.of_arm]
    everything = _folders(root, study.tuning_cells())
    runner.run([folder for folder in everything if folder.cell.arm in open_arms])
    start, _ = starting_scores(everything)
    lines = []
    for arm in open_arms:
        folders = [folder for folder in everything if folder.cell.arm == arm]
        if any(folder.progress().state not in ("finished", "failed") for folder in folders):
            lines.append(f"{arm}: not tuned yet, as a tuning run was stopped; the same command goes on")
            continue
        found: dict[tuple[str, int], list[Outcome]] = {
            (words(folder.cell.setting), folder.cell.seed): outcomes(study, folder, start) for folder in folders
        }
        try:
            choice = choose(study, arm, found)
        except NothingToChoose as error:
            lines.append(f"{error}; the same command tries again")
            continue
        choices.fix(arm, choice)
    return lines


# --- the summary -----------------------------------------------------------------------------------------------------


def _summarise(study: Study, root: Path, choices: Choices, console: Console) -> int:
    """Print and write the summary of the runs that are finished; returns the exit code."""
    with user_input():
        folders = _folders(root, study.final_cells(choices.settings()))
        start, others = starting_scores(folders)
        found = [outcome for folder in folders for outcome in outcomes(study, folder, start)]
        if not found:
            raise ValueError(f"no final run in {str(root)!r} is finished; expected at least one")
        what = about(study, choices, folders, _folders(root, study.tuning_cells()))
        summary = summarise(
            found,
            baseline=study.baseline,
            tuning=_tuned(study, choices),
            same_runs=True,
            cells=[(arm.label, task, seed) for arm in study.arms for task in start for seed in study.seeds],
            measure=study.criterion,
            about=what,
        )
        notes = mixed(what)
        named = {folder.path for folder in folders}
        if left := sorted({file.parent for file in root.glob("final/*/*/cell.json")} - named):
            listed = ", ".join(str(path.relative_to(root)) for path in left)
            runs = counted(len(left), "run")
            notes.append(f"left out {runs} in the folder that the study no longer contains: {listed}")
        if others:
            notes.append(f"before training these do not score as the others do: {'; '.join(others)}")
        summary = replace(summary, warnings=(*summary.warnings, *notes))
        written = write(summary, root)
    for grid in grids(summary):
        console.print(table(grid))
        console.print()
    for line in limits(summary):
        console.print(f"* {line}", markup=False, highlight=False)
    print(", ".join(str(path) for path in written))
    return 0


def _tuned(study: Study, choices: Choices) -> list[Tuned]:
    return [
        Tuned(
            arm=arm.label,
            grid=study.tune,
            chosen=choice.setting,
            runs=len(study.settings) * len(study.tuning_seeds),
            seeds=study.tuning_seeds,
            criterion=study.criterion,
            diverged=sum(len(trial.diverged) for trial in choice.trials),
        )
        for arm in study.arms
        if (choice := choices.of_arm.get(arm.label)) is not None
    ]
