"""Import of the user's own objectives that recordings name: only if a flag names them, never because a file does."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from dgpo import objectives, registry
from dgpo.imports import SYNTAX, is_path


def add_flag(parser: argparse.ArgumentParser) -> None:
    """`--objective`, for a command that reads recordings."""
    parser.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar=SYNTAX,
        help="import this objective of your own, which a RUN was trained with; may be repeated",
    )


def import_named(words: Iterable[str]) -> None:
    """Import the objectives of the flag, so that recordings that name them can be read.

    Raises:
        ValueError: one cannot be imported, or is not an objective.
    """
    for word in words:
        objectives.find(registry.parse("objective", word)[0])


def not_known(name: str) -> str:
    """A line for a command with `--objective`, about the objective of a recording that is not known here."""
    return f"the run's own objective, {name}, is not known here: no weights of it. {import_hint(name, '--objective')}"


def import_hint(name: str, flag: str) -> str:
    """What to do about an objective that a recording names and that is not known here.

    Args:
        name: of the recording.
        flag: of the command, before the import path.
    """
    if not is_path(name):
        return "Install the package that publishes it"
    if name.startswith("__main__:"):
        return "It was defined in a script: from Python, give it to dgpo.diagnostics.replay.replay as own=..."
    return f"The import path of a recording is not imported automatically; {flag} {name} imports it"
