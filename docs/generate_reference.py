"""Write docs/cli.md from the parsers of the commands, and docs/config.md from the dataclasses of the trainer.

    python docs/generate_reference.py            write them
    python docs/generate_reference.py --check    exit 1 if one of them is not what would be written

Without shtab, which `dgpo completion` needs, the text about that command stays as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from dgpo import installation
from dgpo.cli.main import COMMANDS, EXTRAS, GROUPS
from dgpo.cli.parser import HELP_FLAGS, Parser
from dgpo.cli.train_help import TEXTS, groups
from dgpo.objectives import OBJECTIVES
from dgpo.training import DGPOConfig
from dgpo.training.async_trainer import AsyncDGPOConfig

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "figures"))

import drawing  # noqa: E402

COMMAND = "python docs/generate_reference.py"
COMMENT = f"<!-- Written by {COMMAND.removeprefix('python ')}. Edit what it reads, and run it again. -->\n\n"
CLI, CONFIG = DOCS / "cli.md", DOCS / "config.md"
TRL = "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig"

_CODE = re.compile(
    r"(?<![\w`-])("
    r"\{[^}]*\}"  # a mapping
    r"|--?[a-z][\w-]*"  # a flag
    r"|(?<=')[\w.-]+(?=')"  # a quoted value
    r"|[A-Za-z][\w.]*[:=]\w[\w=,.:]*(?<![.,:])"  # a name with fields, an import path
    r"|\w+_\w+(?:[./]\w+)*"  # a field, or a path that begins with one
    r")(?![\w`])",
    re.ASCII,
)
"""What is code in a help text."""

CLI_HEAD = """# The command line

`dgpo` has {count} commands. `dgpo --help` lists them, and `dgpo COMMAND --help` prints what is on this page. Which
extra a command needs is in [installation](install.md#what-to-install); one that is not installed is named.

* A flag may be written with `_` or `-`: `--output_dir` is `--output-dir`. Flags are not abbreviated.
* Each flag of `demo`, `train`, `eval` and `starter` is also a key of a YAML file, `--config FILE`; flags win over the
  file ([YAML and errors](training.md#yaml-and-errors)).
* An objective is a name with fields, `dgpo:n=2,m=2`, or the import path of [your own](own_objective.md).
* A command ends with 0 if it did what was asked, 2 if the input was wrong, and 1 if something failed
  ([all exit codes](training.md#yaml-and-errors)).
"""

CONFIG_HEAD = """# The configuration

`DGPOConfig` is TRL's `GRPOConfig` with the fields below: the factors of the policy gradient, recording, evaluation, and
what saves time and memory. Each is a keyword of `DGPOConfig(...)`, a flag of `dgpo train` and a key of its YAML file.

```python
from dgpo.training import DGPOConfig

config = DGPOConfig(output_dir="outputs/mine", objective="dgpo:n=2,m=2", learning_rate=1e-6, use_cpu=True, bf16=False)
print(config.objective, config.objective_kwargs, config.aggregation, config.updates_per_generation)
```

```text
dgpo {{'n': 2, 'm': 2}} token-mean 4.0
```

Everything is checked when the configuration is made: an unknown name or a value out of its range is an error that says
what is allowed. [Training](training.md) explains how the fields work together. All other fields of
[TRL's `GRPOConfig`]({trl})
keep their meaning and their defaults; those that most runs set are listed here and marked *TRL*.
"""

OF_THE_LOSS = """
## TRL's options about the loss

None by default, so that the objective's own values hold. What contradicts the objective is an error that says what to
write instead ([how they are treated](training.md#configuration)).
"""

ASYNCHRONOUS = """
## AsyncDGPOConfig

The fields that `AsyncDGPOConfig` adds to TRL's `AsyncGRPOConfig`, for
[TRL's asynchronous trainer](engines.md#trls-asynchronous-trainer).
"""


# --- the command line -------------------------------------------------------------------------------------------------


def cli(before: str) -> str:
    """The text of docs/cli.md.

    Args:
        before: the page as it is, for a command whose packages are missing.
    """
    text = COMMENT + CLI_HEAD.format(count=len(COMMANDS))
    for title, names in GROUPS.items():
        text += f"\n## {title[0].upper()}{title[1:]}\n"
        for name in names:
            text += "\n" + (command(name) if _installed(name) else _section(before, name))
    return text


def command(name: str) -> str:
    """A command: what it does, how it is called, and its arguments."""
    parser = importlib.import_module(f"dgpo.cli.{name.replace('-', '_')}").parser()
    usage = re.sub(r"^usage: ", "", parser.format_usage(), count=1) if parser.usage else _usage(parser)
    lines = [f"### dgpo {name}", "", _sentence(parser.description or COMMANDS[name][1]), ""]
    lines += ["```text", *(line.strip() for line in usage.strip().splitlines()), "```", ""]
    by_name: dict[str, argparse.Action] = {}
    for action in parser._actions:
        by_name.setdefault(action.dest, action)  # --no_x comes second, and is shown with --x
    if not isinstance(parser, Parser) or (shown := parser._groups) is None:
        return "\n".join([*lines, *arguments(parser, by_name.values())])
    for title, names in shown.items():
        lines += [f"**{title[0].upper()}{title[1:]}**", "", *arguments(parser, [by_name[one] for one in names])]
    lines += [
        "All other flags are those of TRL's `GRPOConfig` and `ModelConfig`, and work as there: "
        f"`dgpo {name} --help-all` lists them.",
        "",
    ]
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> list[str]:
    """A definition list."""
    formatter = parser._get_formatter()
    lines = []
    for action in actions:
        if HELP_FLAGS & set(action.option_strings):
            continue
        name = formatter._format_action_invocation(action)
        text = formatter._expand_help(action) if action.help else ""
        if action.choices is not None and not action.option_strings:
            name, text = action.dest, f"{text}: {', '.join(map(str, action.choices))}"
        # the page does not change with every method
        text = text.replace(", ".join(OBJECTIVES), "those that `dgpo objectives` lists")
        text = text[:1].upper() + text[1:]
        lines += [f"`{name}`", f": {_prose(text)}", ""]
    return lines


def _usage(parser: argparse.ArgumentParser) -> str:
    """argparse's own, without its line breaks and brackets of optional flags, which depend on the version of Python."""
    positional = [action for action in parser._actions if not action.option_strings]
    words = []
    for action in positional:
        word = str(action.metavar or action.dest)
        words.append({"?": f"[{word}]", "*": f"[{word} ...]", "+": f"{word} [...]"}.get(str(action.nargs), word))
    return " ".join([parser.prog, *words, "[--FLAG VALUE] ..."])


def _sentence(text: str) -> str:
    text = _prose(" ".join(text.split()))
    return text if "@" in text.split()[0] else f"{text[0].upper()}{text[1:]}"


def _prose(text: str) -> str:
    """A help text as Markdown: values, flags and names of fields as code, and nothing as markup."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    for i in range(0, len(pieces), 2):
        plain = re.split(_CODE, pieces[i])
        words = [re.sub(r"([*<>|])", r"\\\1", word) if j % 2 == 0 else f"`{word}`" for j, word in enumerate(plain)]
        pieces[i] = re.sub(r"'(`[^`]+`)'", r"\1", "".join(words))
    return "".join(pieces).rstrip(".") + "."


def _installed(name: str) -> bool:
    return all(installation.is_installed(module) for module in EXTRAS[COMMANDS[name][0]])


def _section(page: str, name: str) -> str:
    """A command's part of the page as it is."""
    start = page.index(f"### dgpo {name}\n")
    end = re.compile(r"^##", re.MULTILINE).search(page, start + 3)
    return page[start : end.start() - 1 if end else len(page)]


# --- the configuration ------------------------------------------------------------------------------------------------


def config() -> str:
    """The text of docs/config.md."""
    own = {field.name: field for field in dataclasses.fields(DGPOConfig)}
    of_trl = {field.name for field in dataclasses.fields(GRPOConfig)}
    text = COMMENT + CONFIG_HEAD.format(trl=TRL)
    for title, names in groups().items():
        chosen = [own[name] for name in names if name in own]
        if chosen:
            heading = "Other fields" if not set(names) & of_trl and "resum" in title else title
            text += f"\n## {heading[0].upper()}{heading[1:]}\n\n" + fields(DGPOConfig, chosen, of_trl)
    shown = {name for names in groups().values() for name in names}
    about_loss = [own[name] for name in DGPOConfig.__annotations__ if name in of_trl and name not in shown]
    text += OF_THE_LOSS + "\n" + fields(DGPOConfig, about_loss, set())
    theirs = {
        field.name
        for base in AsyncDGPOConfig.__mro__
        if base.__module__.startswith("trl.")
        for field in dataclasses.fields(base)
    }
    ours = [field for field in dataclasses.fields(AsyncDGPOConfig) if field.name not in theirs]
    return (text + ASYNCHRONOUS + "\n" + fields(AsyncDGPOConfig, ours, set())).rstrip("\n") + "\n"


def fields(cls: type, chosen: list[dataclasses.Field[Any]], of_trl: set[str]) -> str:
    """A definition list."""
    lines = []
    for field in chosen:
        help_text = TEXTS.get(field.name) or str(field.metadata.get("help", ""))
        mark = " *TRL*" if field.name in of_trl else ""
        lines += [f"`{field.name}: {_type(cls, field.name)} = {_default(field)}`{mark}", f": {_prose(help_text)}", ""]
    return "\n".join(lines)


def _type(cls: type, name: str) -> str:
    """As it is written: the parser of flags changes `dataclasses.fields`."""
    declared = next(found[name] for base in cls.__mro__ if name in (found := inspect.get_annotations(base)))
    text = declared if isinstance(declared, str) else str(declared) if "|" in str(declared) else declared.__name__
    return text.replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "..."


def main(argv: list[str] | None = None) -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    before = CLI.read_text(encoding="utf-8") if CLI.is_file() else ""
    files = {CLI: cli(before).encode(), CONFIG: config().encode()}
    return drawing.write(files, check=parser.parse_args(argv).check, command=COMMAND)


if __name__ == "__main__":
    sys.exit(main())
