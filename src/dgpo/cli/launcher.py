"""The command that resumes a run, including its launcher."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_SWITCHES = ("resume", "overwrite_output_dir")
_VALUES = ("resume_from_checkpoint",)
# what transformers' string_to_bool takes as the value of a switch
_BOOLEANS = ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")


def continuing(argv: Sequence[str], more: Sequence[str]) -> str:
    """The shell command that runs `dgpo train argv` again, with other resume flags.

    The launcher is read from the command lines of the parent processes: the outermost that ends with just these words,
    `torchrun --nproc_per_node 2 .../dgpo train ...`, `accelerate launch --config_file ...`, `timeout`, `uv run`. Where
    they cannot be read, torchrun's environment gives the number of processes.

    Args:
        argv: the words after `dgpo train`.
        more: the resume flags, which replace `--resume`, `--resume_from_checkpoint` and
            `--overwrite_output_dir` in them.
    """
    return shlex.join([*launcher(argv), "train", *without_resume(argv), *more])


def launcher(argv: Sequence[str]) -> list[str]:
    """The words before `train`."""
    tail = ["train", *argv]
    found = None
    for words in _ancestors():
        if len(words) > len(tail) and words[-len(tail) :] == tail:
            # nearest first, so that the last match is the outermost
            found = words[: -len(tail)]
    return _short(found) if found is not None else _of_environment(os.environ)


def _ancestors() -> list[list[str]]:
    """Command lines of the parent processes, nearest first, as far as they are readable."""
    try:
        return [process.cmdline() for process in psutil.Process().parents()]
    except psutil.Error:
        return []


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return ["dgpo"]
    ranks, here = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
    machines = ["--standalone"] if ranks == here else ["--nnodes", str(ranks // here)]
    return ["torchrun", *machines, "--nproc_per_node", str(here), sys.argv[0]]


def _short(words: list[str]) -> list[str]:
    """`torchrun` for `/.../python /.../torchrun`, if the shell would find the same program."""
    interpreted = len(words) > 1 and Path(words[0]).name.startswith("python") and Path(words[1]).is_absolute()
    rest = words[1:] if interpreted else words
    name = Path(rest[0]).name
    where = shutil.which(name)
    if where is not None and Path(where).exists() and Path(rest[0]).exists() and os.path.samefile(where, rest[0]):
        return [name, *rest[1:]]
    return words


def resume_flags(argv: Sequence[str]) -> set[str]:
    """The resume flags among the words."""
    return {name for word in argv if (name := _name(word)) in _SWITCHES + _VALUES}


def without_resume(argv: Sequence[str]) -> list[str]:
    """The words without resume flags, in all forms of a flag."""
    kept: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name = _name(word)
        if name not in _SWITCHES + _VALUES:
            kept.append(word)
        # the value of the flag; a switch has one only if the next word is a boolean
        elif "=" not in word and words and (name in _VALUES or words[0].lower() in _BOOLEANS):
            words.pop(0)
    return kept


def _name(word: str) -> str | None:
    return word.split("=")[0].removeprefix("--").replace("-", "_") if word.startswith("--") else None
