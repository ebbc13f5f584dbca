"""Arguments as in TRL: every dataclass field is a flag, `--config file.yaml` sets defaults, flags win over the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from dgpo.cli.errors import UserError, user_input
from dgpo.registry import did_you_mean


def parse(prog: str, dataclass_types: Sequence[type], argv: list[str], description: str = "") -> tuple[Any, ...]:
    """One instance per dataclass, from flags over the YAML file over defaults.

    An `env:` mapping in the file is exported. `--help` prints and exits with 0.

    Raises:
        UserError: an unreadable file, an unknown key or flag (with the nearest known one), a value that a dataclass
            refuses.
        SystemExit: 2, from argparse, for a value of the wrong type.
    """
    parser = HfArgumentParser(
        list(dataclass_types),
        prog=prog,
        description=description,
        allow_abbrev=False,
        usage=f"{prog} [--config FILE] ...",
    )
    known = {action.dest for action in parser._actions if action.dest != "help"}
    argv, path = _take_config(argv)
    if path is not None:
        _apply(parser, _read(path, known), path)
    with user_input():
        *instances, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        flag = next((word for word in unknown if word.startswith("--")), unknown[0])
        name = flag.lstrip("-").split("=")[0].replace("-", "_")
        raise UserError(f"unknown argument {flag!r}{did_you_mean(name, known)}")
    return tuple(instances)


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    rest, path, words = [], None, iter(argv)
    for word in words:
        if word == "--config":
            value = next(words, None)
            if value is None:
                raise UserError("--config needs a file")
            path = Path(value)
        elif word.startswith("--config="):
            path = Path(word.removeprefix("--config="))
        else:
            rest.append(word)
    return rest, path


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config file {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"the config file {str(path)!r} holds a {type(config).__name__}; expected a mapping of keys")
    environment = config.pop("env", {})
    if not isinstance(environment, dict):
        raise UserError(f"'env' in {str(path)!r} is a {type(environment).__name__}; expected a mapping")
    for key in config:
        if key not in known:
            raise UserError(f"unknown key {key!r} in {str(path)!r}{did_you_mean(key, known)}")
    os.environ.update({name: str(value) for name, value in environment.items()})
    return config


def _apply(parser: HfArgumentParser, config: dict[str, Any], path: Path) -> None:
    for action in parser._actions:
        if action.dest in config:
            action.default = config[action.dest]
            action.required = False
