"""`dgpo`: picks the sub-command, and turns errors into exit codes (0 done, 2 the user's input, 1 ours)."""

from __future__ import annotations

import importlib
import sys

from dgpo import __version__
from dgpo.cli.errors import UserError
from dgpo.registry import did_you_mean

COMMANDS = {
    "demo": ("train", "starter model, evaluate, train with DGPO, evaluate: a first run in minutes on a CPU"),
    "train": ("train", "train a model on a task or data set"),
    "eval": ("eval", "evaluate a model: greedy accuracy, avg@k, pass@k with intervals"),
    "starter": ("train", "make a small model that half knows a task"),
    "objectives": ("", "list the objectives with their fields and defaults"),
}
"""name -> (extra that it needs, help)"""


def usage() -> str:
    """The text of `dgpo --help`."""
    lines = ["usage: dgpo [--version] COMMAND [--help] ...", "", "commands:"]
    lines += [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "`dgpo COMMAND --help` lists the flags of a command; each is a key of its --config YAML file too."]
    return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Run `dgpo argv` and return its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"dgpo {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        print(f"dgpo: error: unknown command {name!r}{did_you_mean(name, COMMANDS)}\n{usage()}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(f"dgpo.cli.{name}")
        return int(command.run(rest))
    except UserError as error:
        print(f"dgpo {name}: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        missing = _missing_package(error)
        if missing is None:
            raise
        print(
            f"dgpo {name}: error: needs {missing}, which is not installed: pip install 'dgpo[{COMMANDS[name][0]}]'",
            file=sys.stderr,
        )
        return 2


def _missing_package(error: BaseException | None) -> str | None:
    """The package whose absence caused the error; None if it was something else (then it is our bug)."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("dgpo"):
            return error.name.split(".")[0]
        error = error.__cause__
    return None


def main() -> None:
    """Console entry point. An exception that gets here is ours: traceback, exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # π and ± on a terminal without UTF-8
    sys.exit(run(sys.argv[1:]))
