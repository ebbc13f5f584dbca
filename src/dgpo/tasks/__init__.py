"""Tasks: what is trained and evaluated on. Each makes its own problems, so that nothing has to be downloaded."""

from __future__ import annotations

from dgpo.registry import did_you_mean
from dgpo.tasks.addition import Addition

TASKS: dict[str, type[Addition]] = {"addition": Addition}

__all__ = ["TASKS", "Addition", "make"]


def make(name: str, seed: int = 0) -> Addition:
    """The task of that name. Raises ValueError, with the nearest known name, if there is none."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{did_you_mean(name, TASKS)}; known: {', '.join(TASKS)}")
    return TASKS[name](seed=seed)
