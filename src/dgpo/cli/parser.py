"""The parser of commands whose flags are the fields of dataclasses, and the form of its help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

HELP_FLAGS = frozenset({"-h", "--help", "--help-all", "--help_all"})
"""Flags that print a help text and end the command."""

NOT_SETTINGS = ("help", "help_all", "config")
"""Flags that are no key of a file."""

Groups = Mapping[str, Sequence[str]]
"""Title -> flags, in the order of the help."""

_NEGATIVE = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^-inf$")
_WIDEST = 110
_VALUES = {int: "INT", float: "FLOAT"}


class Parser(HfArgumentParser):
    """Every field of the dataclasses is a flag, beside `--config FILE`.

    Args:
        dataclass_types: the dataclasses.
        prog: the command, such as `dgpo train`.
        description: what it does, as the first line of its module.
        groups: if given, `--help` shows these flags alone, under their titles, and `--help-all` every flag.
        texts: flag -> help, in place of what its dataclass says.
    """

    dataclass_types: list[type]

    def __init__(
        self,
        dataclass_types: Iterable[type],
        *,
        prog: str,
        description: str = "",
        groups: Groups | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            list(dataclass_types),
            prog=prog,
            # the first line of a module, without the name of the command
            description=description.replace("`", "").removeprefix(f"{prog}: "),
            allow_abbrev=False,
            usage=f"{prog} [--config FILE] [--FLAG VALUE] ...",
            formatter_class=_Formatter,
        )
        self._negative_number_matcher = _NEGATIVE  # its own takes -1e-5 for a flag
        self._groups = groups
        for action in self._actions:
            action.help = (texts or {}).get(action.dest, action.help)
        # read before all others, and listed here so that the help and shells know it
        self.add_argument("--config", metavar="FILE", help="YAML file with values of flags; flags win over it.")
        if groups is not None:
            self.add_argument(
                "--help-all", "--help_all", action=_HelpAll, nargs=0, help="show every flag, those of TRL too, and exit"
            )

    def format_help(self) -> str:
        return super().format_help() if self._groups is None else self._grouped(self._groups, everything=False)

    def format_full_help(self) -> str:
        """The text of `--help-all`."""
        return self._grouped(self._groups or {}, everything=True)

    def _grouped(self, groups: Groups, *, everything: bool) -> str:
        # the first action of a name: --no_x comes second, and is shown with --x
        actions: dict[str, argparse.Action] = {}
        for action in self._actions:
            actions.setdefault(action.dest, action)
        left = [
            name
            for name in actions
            if name not in {*NOT_SETTINGS, *(name for rest in groups.values() for name in rest)}
        ]
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, ())
        formatter.add_text(self.description)
        sections = {"": [name for name in NOT_SETTINGS if name in actions], **groups}
        if everything:
            sections["all other flags, in the order of TRL's ModelConfig and GRPOConfig"] = left
        for title, names in sections.items():
            formatter.start_section(title or "help")
            formatter.add_arguments([actions[name] for name in names])
            formatter.end_section()
        if not everything:
            formatter.add_text(
                f"{len(left)} more flags are those of TRL's GRPOConfig and ModelConfig, and all work: "
                f"{self.prog} --help-all lists them. Each flag is also a key of the --config file."
            )
        return str(formatter.format_help())


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.format_full_help(), end="")
        parser.exit()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """A flag once and with the kind of its value; defaults where the text does not name them and there is one."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=32, **options)
        self._width = min(self._width, _WIDEST)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        flag = action.option_strings[0]
        if action.type is string_to_bool and action.nargs == "?":
            return f"{flag}, --no_{action.dest}" if action.default is True else flag
        if action.metavar is not None:
            value = str(action.metavar)
        elif action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        elif action.type is string_to_bool:
            value = "BOOL"
        else:
            value = next((word for kind, word in _VALUES.items() if action.type is kind), "TEXT")
        return f"{flag} {value}" + (" ..." if action.nargs == "+" else "")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        absent = action.default is None or action.default is False or action.default in ("", [], argparse.SUPPRESS)
        if absent or "default" in text.lower() or not action.option_strings:
            return text
        return f"{text.rstrip('.')} (default: %(default)s)"
