"""`dgpo verl-overrides`: the arguments that put an objective into a verl run."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from dgpo import objectives, registry
from dgpo.cli.errors import UserError, user_input
from dgpo.engines.verl_overrides import must_stay, overrides
from dgpo.registry import did_you_mean


def parser(declared: Iterable[dataclasses.Field[Any]] = ()) -> argparse.ArgumentParser:
    """The flags of `dgpo verl-overrides`; the fields of an objective are flags too."""
    made = argparse.ArgumentParser(
        prog="dgpo verl-overrides",
        description="Print the hydra overrides that put an objective into a verl run, one per line: "
        "`python -m verl.trainer.main_ppo ... $(dgpo verl-overrides --objective NAME)`. "
        "With --objective, --help lists the fields of that objective, which are flags too.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument(
        "--objective",
        required=True,
        metavar="NAME",
        help=f"optionally with fields, {registry.SYNTAX}; an import path package.module:Class, or one of: "
        + ", ".join(objectives.OBJECTIVES),
    )
    made.add_argument("--no-reward", action="store_true", help="leave the reward function of the run as it is")
    made.add_argument("--record", metavar="FOLDER", help="write the tokens of every micro-batch, for `dgpo replay`")
    for field in declared:
        # both spellings of a field, once where they are the same
        spellings = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        said = "required" if registry.is_required(field) else f"default {field.default}"
        made.add_argument(*spellings, dest=field.name, type=registry.as_value, metavar="VALUE", help=said)
    return made


def run(argv: list[str]) -> int:
    """Print one override per line on stdout, and what has to stay as it is on stderr. Needs torch and nothing else."""
    # a first look at --objective alone: its fields become flags of the parser
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--objective")
    word: str | None = first.parse_known_args(argv)[0].objective
    with user_input((ValueError,)):
        chosen, written = ("", {}) if word is None else registry.parse("objective", word)
        declared = dataclasses.fields(objectives.find(chosen)) if word is not None else ()
    names = [field.name for field in declared]
    given, unknown = parser(declared).parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0], chosen, names))
    flags = {name: value for name, value in vars(given).items() if name in names}
    with user_input((ValueError,)):
        fields = registry.once([*written.items(), *flags.items()], f"objective {chosen!r}")
        lines = overrides(chosen, fields, reward="no_reward" not in given, record=vars(given).get("record"))
    for line in lines:
        print(shlex.quote(line))
    print(f"note: {must_stay()}", file=sys.stderr)
    return 0


def _unknown(word: str, objective: str, fields: list[str]) -> str:
    flags = [f"--{name}" for name in ("objective", "record", *fields)]
    nearest = did_you_mean("--" + word.lstrip("-").split("=")[0].replace("-", "_"), flags)
    return f"unknown argument {word!r}{nearest}; the fields of {objective!r}: {', '.join(fields) or 'none'}"
