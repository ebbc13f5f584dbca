"""These tests need SkyRL itself, and are not collected where it is not installed."""

from __future__ import annotations

import sys
import typing
from importlib.util import find_spec

import pytest

INSTALLED = find_spec("skyrl") is not None
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

if INSTALLED and sys.version_info < (3, 12):
    # SkyRL 0.3.0 declares 3.11, where pydantic refuses the TypedDict that its tinker module takes from typing
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    from dgpo.engines import skyrl

    skyrl.register()
