"""Arguments as in TRL: every dataclass field is a flag, `--config file.yaml` sets defaults, flags win over the file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from dgpo.cli import yaml_file
from dgpo.cli.aliases import ALIASES
from dgpo.cli.errors import UserError, user_input
from dgpo.cli.parser import NOT_SETTINGS, Parser
from dgpo.cli.yaml_file import Entry
from dgpo.redaction import without_secrets
from dgpo.registry import did_you_mean, once

T = TypeVar("T")


def argument(default: T, text: str) -> T:
    """A dataclass field that is a flag, with its default and its help."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse(parser: Parser, argv: list[str], entries: Mapping[str, Entry] | None = None) -> tuple[Any, ...]:
    """One instance per dataclass of the parser, from flags over the YAML file over defaults.

    An `env:` mapping in the file is exported. `--help` prints and exits with 0. Unknown or malformed flags are reported
    before the first dataclass is made; dataclasses are made in the order given. `entries` take the place of the file,
    where it has been read already.

    Raises:
        UserError: an unreadable file, an unknown key or flag (with the nearest known one), a value of the wrong type in
            the file (with its line), a value that a dataclass refuses.
        SystemExit: 2, from argparse, for a flag's value of the wrong type, or a missing flag.
    """
    prog, dataclass_types = parser.prog, parser.dataclass_types
    mappings = {name for cls in dataclass_types for name in getattr(cls, "_VALID_DICT_FIELDS", ())}
    for action in parser._actions:
        if action.dest in mappings:
            action.type = _mapping  # TRL decodes these itself, but its error would not name the flag
    actions = {action.dest: action for action in parser._actions if f"--{action.dest}" in action.option_strings}
    for name in NOT_SETTINGS:
        actions.pop(name, None)
    argv, path = _take_config(argv)
    environment = {}
    if path is not None or entries is not None:
        assert path is None or entries is None
        entries = dict(entries or {}) if path is None else yaml_file.read(path)
        environment = _environment(entries.pop("env", None))
        for key, entry in entries.items():
            if key not in actions:
                nearest = did_you_mean(key, actions, ALIASES)
                raise UserError(f"unknown key {key!r} in {entry.where}{nearest}; `{prog} --help` lists the keys")
        _apply(parser, {actions[key]: entry for key, entry in entries.items()}, dataclass_types, mappings)
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False  # report a misspelled flag rather than the required one that is missing because of it
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(prog, unknown, actions))
    if missing := ["/".join(action.option_strings) for action in required if getattr(values, action.dest) is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    # after the flags are known to be right, before the dataclasses, which read the environment
    os.environ.update(environment)
    with user_input():
        return tuple(
            cls(**{field.name: getattr(values, field.name) for field in dataclasses.fields(cls) if field.init})
            for cls in dataclass_types
        )


def settings(argv: list[str]) -> dict[str, dict[str, str]]:
    """Origin -> key -> value: of each base, the file and the flags. A key is listed under the last origin that sets it.

    Secrets are hidden.

    Raises:
        UserError: what `parse` raises for the file.
    """
    words, path = _take_config(argv)
    found: dict[str, tuple[str, str]] = {}
    for key, entry in (yaml_file.read(path) if path is not None else {}).items():
        found[key] = (str(entry.path), _written(entry))
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, _, value = word[2:].partition("=")
            flag = flag.replace("-", "_")
            # HfArgumentParser has --no_x for a switch x that is on by default: the flag overrides the file's x
            found.pop(flag.removeprefix("no_"), None)
        else:
            # several words of one flag: --rewards a b
            value = f"{found[flag][1]} {word}".strip()
        found[flag] = ("flags", value)
    by_origin: dict[str, dict[str, str]] = {}
    for key, (origin, value) in found.items():
        by_origin.setdefault(origin, {})[key] = without_secrets(value or "true", key)
    return by_origin


def _written(entry: Entry) -> str:
    """A value on one line."""
    simple = entry.kind == "text" and entry.text.isprintable()
    return entry.text if simple else json.dumps(without_secrets(entry.value()), ensure_ascii=False)


def _unknown(prog: str, words: list[str], known: dict[str, argparse.Action]) -> str:
    flag = next((word for word in words if word.startswith("--")), words[0])
    nearest = did_you_mean(flag.lstrip("-").split("=")[0], [*known, "config"], ALIASES) if flag.startswith("-") else ""
    return f"unknown argument {flag!r}{nearest}; `{prog} --help` lists the flags"


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    rest, paths, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            value = next(words, None)
            if value is None:
                raise UserError("--config needs a file name")
            paths.append(Path(value))
        elif word.startswith("--config="):
            paths.append(Path(word.removeprefix("--config=")))
        else:
            rest.append(word)
    if len(paths) > 1:
        raise UserError(f"--config is given {len(paths)} times ({', '.join(map(str, paths))}); expected one file")
    return rest, paths[0] if paths else None


def _environment(entry: Entry | None) -> dict[str, str]:
    """The variables of `env:`, as written."""
    if entry is None or entry.kind == "nothing":
        return {}
    if entry.kind != "mapping":
        value = entry.value()
        raise UserError(f"'env' in {entry.where} is of type {type(value).__name__}; expected a mapping")
    found = {}
    for name, variable in entry.entries().items():
        if variable.kind != "text":
            what = "has no value" if variable.kind == "nothing" else f"is a {variable.kind}"
            raise UserError(f"env: {name!r} in {variable.where} {what}; expected text, '' for an empty one")
        if not name or {"=", "\0"} & set(name) or "\0" in variable.text:
            raise UserError(f"env: {name!r} in {variable.where} is not a valid variable name")
        found[name] = variable.text
    return found


def _apply(
    parser: HfArgumentParser, entries: dict[argparse.Action, Entry], types: Sequence[type], mappings: set[str]
) -> None:
    """Make the values of the file the defaults."""
    hints = {name: hint for cls in types for name, hint in get_type_hints(cls).items()}
    of_mappings = {name for cls in types for name in getattr(cls, "LISTS_OF_MAPPINGS", ())}
    for action, entry in entries.items():
        hint = hints[action.dest]
        # the arms of `list[str] | None`; those of a plain list[str] are (str,), and list is its origin
        arms = get_args(hint) or (hint,)
        kinds = {get_origin(arm) or arm for arm in arms} | {get_origin(hint)}
        if entry.kind == "nothing":
            if type(None) not in kinds and (action.required or action.default is not None):
                raise UserError(f"{action.dest} in {entry.where} has no value; give it one or remove the key")
            action.default = None
            continue
        if entry.kind == "mapping" and (dict in kinds or action.dest in mappings):
            action.default = entry.value()
        elif entry.kind == "list" and list in kinds:
            action.default = [_item(parser, action, item, action.dest in of_mappings) for item in entry.items()]
        elif entry.kind != "text":
            expected = "a list of values" if action.nargs == "+" else "one value"
            raise UserError(
                f"{action.dest} = {entry.value()!r} in {entry.where} is a {entry.kind}; expected {expected}"
            )
        else:
            converted = _convert(parser, action, entry)
            action.default = [converted] if action.nargs == "+" else converted
        # it has a default now
        action.required = False


def _item(parser: HfArgumentParser, action: argparse.Action, item: Entry, mapping: bool) -> Any:
    if item.kind == "text":
        return _convert(parser, action, item)
    if item.kind == "mapping" and mapping:
        return item.value()
    what = "an empty value" if item.kind == "nothing" else f"a {item.kind}"
    raise UserError(f"{action.dest} in {item.where} holds {what}; expected a list of values")


def _convert(parser: HfArgumentParser, action: argparse.Action, entry: Entry) -> Any:
    """The value as the flag would give it: `max_steps: 2.5` is as wrong as `--max_steps 2.5`."""
    try:
        # argparse does not check the choices of a default, and its error would not name the file
        converted = parser._get_value(action, entry.number if action.type is float else entry.text)
        parser._check_value(action, converted)
    except argparse.ArgumentError as error:
        raise UserError(f"{action.dest} in {entry.where}: {error.message}") from error
    return converted


def _mapping(text: str) -> str:
    text = text.strip()
    if text.startswith("{"):
        try:
            # checked here and decoded by the dataclass: TRL's fields take JSON as text
            json.loads(text, object_pairs_hook=lambda pairs: once(pairs, "JSON text"))
        except ValueError as error:
            wrong = f"is not valid JSON ({error})" if isinstance(error, json.JSONDecodeError) else f"is wrong: {error}"
            raise argparse.ArgumentTypeError(f"{text!r} {wrong}; expected JSON text such as '{{\"n\": 2}}'") from error
    return text
