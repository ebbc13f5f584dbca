"""Functions that lose precision if they are evaluated as written."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SERIES = 0.5
"""Below it `expm1_minus` is a Taylor polynomial; from there on the difference loses two bits at most."""

TERMS = 14
"""Terms of that polynomial: the next one is 3e-17 of the sum at `SERIES`."""


def expm1_minus(d: Tensor) -> Tensor:
    """exp(d) - 1 - d >= 0, accurate in value and gradient to a few units in the last place.

    Near 0 it is about d²/2, while even expm1(d) - d has an error of the last bit of d.
    """
    small = d.abs() < SERIES
    # each branch gets a harmless number where the other is taken: autograd would multiply its inf by 0, which is NaN
    near, far = torch.where(small, d, 0.0), torch.where(small, 1.0, d)
    # Horner: d²/2 · (1 + d/3 · (1 + d/4 · (...)))
    series = torch.ones_like(near)
    for k in range(TERMS + 1, 2, -1):
        series = 1 + near / k * series
    return torch.where(small, 0.5 * near * near * series, torch.expm1(far) - far)


def log1m_exp(logprob: Tensor) -> Tensor:
    """log(1 - p) of log p <= 0, near p = 1 from -expm1(log p) and elsewhere from log1p(-p); -inf at p = 1."""
    # the switch is at p = 1/2, where both forms are accurate
    near = logprob > -math.log(2)
    return torch.where(
        near,
        (-torch.expm1(torch.where(near, logprob, -1.0))).log(),
        torch.log1p(-torch.where(near, -1.0, logprob).exp()),
    )


def rounding(values: Tensor) -> float:
    """eps of the dtype, the distance from 1 to the next number; that of float32 where `torch.fx` traces a loss."""
    dtype = values.dtype
    return torch.finfo(dtype if isinstance(dtype, torch.dtype) else torch.float32).eps
