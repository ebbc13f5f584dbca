"""Whose fault it was: exit code 2 for the user's input, 1 for ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dgpo.files import one_line
from dgpo.redaction import redacted


class UserError(Exception):
    """Wrong input: printed as one line, exit code 2."""


@contextmanager
def user_input(kinds: tuple[type[Exception], ...] = (ValueError, TypeError, OSError)) -> Iterator[None]:
    """Around code that only reads and validates what the user gave: its errors are the user's, not ours.

    Args:
        kinds: the exceptions that mean wrong input. Libraries that say what to install, because an option needs it,
            count as well.
    """
    try:
        yield
    except kinds as error:
        raise UserError(redacted(one_line(error))) from error
    except (ImportError, RuntimeError) as error:
        if not any(words in str(error) for words in ("pip install", "to be installed")):
            raise
        raise UserError(redacted(one_line(error))) from error
