"""Warnings that point at the user's line, however many libraries lie between it and ours."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
import warnings
from pathlib import Path


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Folders whose code is nobody's own: this package, the standard library, and what pip installed."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return (str(Path(__file__).parent) + os.sep, *{sysconfig.get_path(name) + os.sep for name in names})


_RENAMED = r"`(is_)?gradient_checkpointing\w*` is deprecated"
"""transformers 5 about the name that TRL 1.16, and so every script for it, still uses."""


def ignore_renamings() -> None:
    """Silence what transformers says about a name that TRL's own code uses: the user can do nothing about it.

    Python's options -W and PYTHONWARNINGS win.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", _RENAMED, FutureWarning)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the nearest line outside of this package and of all that is installed.

    A configuration may be made by TRL's parser and a reward be called by a trainer: neither line would help. Where
    there is no line of the user's, as in the command line, it is that of the caller.

    Args:
        message: the text.
        category: of the warning.
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and not is_own(frame.f_code.co_filename):
        # Python does not count the frames of an import
        level += "importlib._bootstrap" not in frame.f_code.co_filename
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=2 if frame is None else level)


def is_own(file: str) -> bool:
    """Whether a file is somebody's own code: neither of this package, nor of Python, nor installed."""
    # "<string>" is the __init__ that dataclasses write, "<frozen ...>" the interpreter's own
    return not file.startswith(("<string>", "<frozen", *_libraries()))
