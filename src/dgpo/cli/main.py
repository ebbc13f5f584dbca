"""`dgpo`: picks the sub-command, and turns errors into exit codes.

0 done, 1 our error, 2 the user's input, 3 a plan that does not fit (`dgpo train --dry_run`), 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

from dgpo import __version__, installation
from dgpo.cli.errors import UserError
from dgpo.files import printable
from dgpo.registry import did_you_mean

COMMANDS = {
    "demo": ("train", "a first run: make a small model, evaluate, train, evaluate"),
    "train": ("train", "train a model on a task or data set"),
    "eval": ("eval", "evaluate a model: avg@k, pass@k and more, with intervals"),
    "compare": ("train", "compare objectives over seeds, each at its best setting"),
    "starter": ("train", "make a small model that solves a task some of the time"),
    "doctor": ("", "find out what went wrong in a run, and why"),
    "report": ("report", "write an HTML report of recorded runs"),
    "watch": ("report", "serve the report of runs that go on, on this machine"),
    "replay": ("report", "weigh the recorded tokens of a run by other objectives"),
    "plot": ("report", "draw a figure of recorded runs: SVG, PDF or PNG"),
    "compare-results": ("eval", "compare two evaluations problem by problem"),
    "objectives": ("", "list the objectives, or describe one"),
    "tasks": ("eval", "list what can be trained and evaluated on, or describe one"),
    "verl-overrides": ("", "print the overrides that put an objective into a verl run"),
    "completion": ("completion", "print a completion script for a shell"),
}
"""name -> (extra that it needs, help)"""

GROUPS = {
    "train and evaluate": ("demo", "train", "eval", "compare", "starter"),
    "look at runs": ("doctor", "report", "watch", "replay", "plot", "compare-results"),
    "look things up": ("objectives", "tasks", "verl-overrides", "completion"),
}
"""Title -> commands, in the order of the help."""

_REPORT = ("matplotlib", "plotly", "pyarrow")
EXTRAS = {
    "": (),
    "train": (
        *("torch", "trl", "transformers", "datasets", "rich", "yaml", "scipy", "math_verify", "packaging", "psutil"),
        *_REPORT,
    ),
    "eval": ("torch", "transformers", "datasets", "rich", "yaml", "scipy", "math_verify", "packaging"),
    "report": ("rich", "packaging", *_REPORT),
    "verl": ("verl", "ray", "hydra"),
    "completion": ("shtab", "packaging"),
}
"""extra -> the modules that its commands cannot do without"""


def usage() -> str:
    """The text of `dgpo --help`."""
    lines = ["usage: dgpo COMMAND [--FLAG VALUE] ...", "       dgpo --version"]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<17}{COMMANDS[name][1]}" for name in names)]
    lines += [
        "",
        "`dgpo COMMAND --help` lists the flags of a command, which are also keys of its",
        "--config YAML file. `dgpo demo` is a first run.",
    ]
    return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Run `dgpo argv` and return its exit code.

    Raises:
        SystemExit: from argparse: 0 after `--help`, 2 for a flag's value of the wrong type.
    """
    if not argv:
        print(f"dgpo: error: no command\n{usage()}", file=sys.stderr)
        return 2
    if argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"dgpo {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        print(f"dgpo: error: unknown command {name!r}{did_you_mean(name, COMMANDS)}\n{usage()}", file=sys.stderr)
        return 2
    extra = COMMANDS[name][0]
    # looked for before anything is imported: TRL and transformers turn a missing package into errors of their own
    if missing := [module for module in EXTRAS[extra] if not installation.is_installed(module)]:
        return _need(name, missing, extra)
    if extra and (wrong := installation.wrong_versions(extra, *EXTRAS[extra])):
        print(f"dgpo {name}: error: needs {wrong[0]}", file=sys.stderr)
        return 2
    try:
        # imported only now: a command must not need the packages of the others
        return int(importlib.import_module(f"dgpo.cli.{name.replace('-', '_')}").run(rest))
    except (UserError, installation.WrongVersionError) as error:
        print(f"dgpo {name}: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        module = (error.name or "dgpo").split(".")[0]
        extras = [extra for extra, modules in EXTRAS.items() if module in modules]
        if not extras:
            raise  # not what an extra is for: our bug
        return _need(name, [module], extras[0])
    except KeyboardInterrupt:
        print(f"dgpo {name}: interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it


def _need(name: str, modules: list[str], extra: str) -> int:
    missing = f"{', '.join(modules)}, which {'is' if len(modules) == 1 else 'are'} not installed"
    print(f"dgpo {name}: error: needs {missing}: {installation.hint(extra)}", file=sys.stderr)
    return 2


def _one_line(message: Warning | str, category: type[Warning], *where: object, **more: object) -> str:
    """A warning as a line of a program: where in the code it was raised does not help the user."""
    return f"{category.__name__.removeprefix('User').lower()}: {printable(str(message))}\n"


def main() -> None:
    """Console entry point. An exception that gets here is ours: traceback, exit code 1."""
    warnings.formatwarning = _one_line
    if not sys.warnoptions:  # given by -W or PYTHONWARNINGS
        # libraries address deprecations to the code that calls them, which is not the user's here
        warnings.simplefilter("ignore", FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # π and ± on a terminal without UTF-8
    try:
        code = run(sys.argv[1:])
        # `| head` may close the pipe only now: flushed here, where the error is caught
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; and nothing may be flushed into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
