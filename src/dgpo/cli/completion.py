"""`dgpo completion`: the script that lets a shell complete commands, flags, and the names of objectives and tasks."""

from __future__ import annotations

import argparse
import importlib

import shtab

from dgpo import installation, objectives, tasks
from dgpo.cli.main import COMMANDS, EXTRAS
from dgpo.imports import SYNTAX
from dgpo.objectives.presets import PRESETS

DIRECTORIES = frozenset({"output_dir", "out", "record", "data_dir", "evaluation", "resume_from_checkpoint"})
"""Flags whose value is a folder."""

FILES = frozenset({"config", "study", "runs", "run", "a", "b", "dataset", "accelerate_config", "generations"})
"""Flags and arguments whose value is a file, or a folder."""

HOW = {
    "bash": 'put eval "$(dgpo completion bash)" into ~/.bashrc',
    "zsh": "save the script as _dgpo in a folder of $fpath",
    "fish": "save it as ~/.config/fish/completions/dgpo.fish",
    "tcsh": "append it to ~/.tcshrc",
}


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo completion`."""
    made = argparse.ArgumentParser(
        prog="dgpo completion",
        description="Print a completion script for a shell, with the flags of this version. "
        + "; ".join(f"{shell}: {how}" for shell, how in HOW.items())
        + ".",
    )
    made.add_argument("shell", choices=list(HOW), help="the shell")
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo completion argv`."""
    arguments = parser().parse_args(argv)
    print(shtab.complete(everything(), arguments.shell))
    return 0


def everything() -> argparse.ArgumentParser:
    """One parser with every command; a command whose packages are missing has no flags."""
    whole = argparse.ArgumentParser(prog="dgpo", description="Policy optimisation for RLVR.")
    whole.add_argument("--version", action="store_true", help="show the version and exit")
    commands = whole.add_subparsers(dest="command")
    for name, (extra, text) in COMMANDS.items():
        parents = []
        if name == "completion":
            parents = [parser()]
        elif all(installation.is_installed(module) for module in EXTRAS[extra]):
            module = importlib.import_module(f"dgpo.cli.{name.replace('-', '_')}")
            parents = [module.parser()]
        _complete(commands.add_parser(name, parents=parents, help=text, add_help=not parents))
    return whole


def _complete(sub: argparse.ArgumentParser) -> None:
    """What the values of flags are: names, folders or files."""
    suites = [*tasks.TASKS, *tasks.BENCHMARKS]
    names = {"preset": list(PRESETS), "task": suites, "benchmarks": suites, "eval_benchmarks": suites}
    methods = list(objectives.OBJECTIVES)
    names |= {"objective": methods, "objectives": methods}
    for action in sub._actions:
        if action.dest in names and action.metavar != SYNTAX:  # there an import path alone is taken
            action.choices = names[action.dest]
        elif action.dest in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
