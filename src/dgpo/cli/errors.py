"""Errors of the command line: exit code 2 for wrong input, 1 for internal errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dgpo.files import one_line
from dgpo.redaction import redacted


class UserError(Exception):
    """Wrong input: printed as one line, exit code 2."""


@contextmanager
def user_input(kinds: tuple[type[Exception], ...] = (ValueError, TypeError, OSError)) -> Iterator[None]:
    """Turn exceptions of code that only reads and validates user input into UserError.

    Args:
        kinds: the exceptions that mean wrong input. Errors of libraries that name a package to install count as well.
    """
    try:
        yield
    except kinds as error:
        raise UserError(redacted(one_line(error))) from error
    except (ImportError, RuntimeError) as error:
        if not any(words in str(error) for words in ("pip install", "to be installed")):
            raise
        raise UserError(redacted(one_line(error))) from error
