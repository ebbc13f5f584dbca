"""Decisions of one rank for all, and how ranks share a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

_T = TypeVar("_T")


def on_main(work: Callable[[], _T]) -> _T:
    """Run `work` on the main process; return its value, or raise its error, on every rank. All ranks call it."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:  # noqa: BLE001 - the others wait for it, and raise it too
            outcome[1] = error
    value, failed = broadcast_object_list(outcome)
    if failed is not None:
        raise failed
    result: _T = value
    return result


def shards_with_fsdp(accelerator: Any) -> bool:
    """Whether FSDP shards the model, as `Trainer.is_fsdp_enabled` has it."""
    return getattr(accelerator.state, "fsdp_plugin", None) is not None
