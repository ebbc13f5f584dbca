"""How a check fails: an AssertionError that names the objective, the property, the setting and the numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgpo.objectives import Objective


def require(holds: object, objective: Objective, text: str) -> None:
    """Raise AssertionError with the objective and the text unless `holds` is true; also under `python -O`."""
    if not holds:
        raise AssertionError(f"{objective!r}: {text}")


def require_close(
    found: Tensor, expected: Tensor, objective: Objective, text: str, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Raise AssertionError with the objective, the text and the largest difference unless two tensors are close."""
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, msg=lambda numbers: f"{objective!r}: {text}\n{numbers}"
    )


def worst(values: Tensor, wrong: Tensor, **others: Any) -> str:
    """The first wrong value and the inputs at its position: 'w = nan at log ratio = 3, A = -1 (2 of 40 values)'."""
    at = tuple(int(i) for i in wrong.nonzero()[0])
    given = ", ".join(f"{name} = {float(value[at]):g}" for name, value in others.items())
    return f"{float(values[at]):g} at {given} ({int(wrong.sum())} of {wrong.numel()} values)"
