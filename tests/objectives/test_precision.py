"""w and φ of every method against its docstring's formula in 40 digits, near the values where a formula degenerates.

What a float32 or float64 may be off by is what its inputs are: a few units in the last place of the log ratio, of
log π_old, of every field and of each term of φ. Whatever an expression cancels beyond that fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import exact, methods
from mpmath import mp, mpf

from dgpo import TokenBatch, objectives
from dgpo.kl import k1, k2, k3, k3_ratio
from dgpo.objectives import OBJECTIVES

METHODS = methods()
CASES = [
    (name, fields)
    for name, method in METHODS.items()
    for fields in [*([] if "batch" in objectives.make(name).reads else [{}]), *method.extreme]
]

STEPS = (0.0, 1e-7, 1e-4, 0.02, 0.1823, 0.2231, 0.7, 1.0986, 5.0, 20.0)
OLD = (-1e-6, -0.05, -0.7, -20.5)


def grid(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log ratios and log π_old whose sum is exact, with π <= 1, so that the log ratio arrives as it is meant."""
    olds = torch.tensor(OLD if "old_logprob" in objectives.make(name).reads else OLD[-1:], dtype=dtype)
    x = torch.tensor([s * step for step in STEPS for s in (1, -1)], dtype=dtype)
    old, x = (values.flatten() for values in torch.meshgrid(olds, x, indexing="ij"))
    new = old + x
    kept = (new < 0) & ((new - old) != 0) | (x == 0)
    return (new - old)[kept], old[kept]


def nudged(
    values: tuple[Any, ...], fields: dict[str, Any], eps: float
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a formula, one of them off by a few units in the last place."""
    for s in (1 - 4 * eps, 1 + 4 * eps):
        for i in range(len(values)):
            yield tuple(v * s if j == i else v for j, v in enumerate(values)), fields
        for key, value in fields.items():
            if value and math.isfinite(value):
                yield values, fields | {key: value * s}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "fields"), CASES, ids=[f"{name}{fields or ''}" for name, fields in CASES])
def test_weight_and_potential_keep_their_digits(name: str, fields: dict[str, Any], dtype: torch.dtype) -> None:
    objective, formula = objectives.make(name, **fields), METHODS[name].closed_form
    every = exact(objective)
    x, old = grid(name, dtype)
    eps = torch.finfo(dtype).eps
    for sign in (-1, 0, 1):
        column = (old + x).unsqueeze(1)
        tokens = TokenBatch(column, old.unsqueeze(1), torch.full_like(old, sign), torch.ones_like(column).bool())
        w, phi = objective.weight(tokens).squeeze(1).tolist(), objective.potential(tokens).squeeze(1).tolist()
        for i, at in enumerate(zip(x.tolist(), old.tolist(), strict=True)):
            with mp.workdps(40):
                values = tuple(map(mpf, at))
                want_w, want_phi, size = formula(*values, sign, **every)
                slack_w, slack_phi = 8 * eps * abs(want_w), 8 * eps * size
                for others, changed in nudged(values, every, eps):
                    near_w, near_phi, _ = formula(*others, sign, **changed)
                    slack_w, slack_phi = slack_w + abs(near_w - want_w), slack_phi + abs(near_phi - want_phi)
                tiny = torch.finfo(dtype).tiny
                assert abs(w[i] - want_w) <= slack_w + tiny, ("w", at, sign, w[i], float(want_w))
                assert abs(phi[i] - want_phi) <= slack_phi + tiny, ("φ", at, sign, phi[i], float(want_phi))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_has_a_closed_form(name: str) -> None:
    """A new method is not done before somebody has written its formula twice."""
    file = OBJECTIVES[name].__module__.rpartition(".")[2]
    assert name in METHODS, f"declare it in METHODS of tests/objectives/test_{file}.py"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_kl_estimators_keep_their_digits(dtype: torch.dtype) -> None:
    """In value and gradient, for policies that nearly agree: expm1(d) - d has the error of the last bit of d."""
    d = torch.cat([s * torch.logspace(-12, 1.3, 60, dtype=torch.float64) for s in (-1, 1)]).to(dtype)
    zero = torch.zeros_like(d)
    few = 8 * torch.finfo(dtype).eps
    exact_d = [mpf(value) for value in d.tolist()]
    logprob = -d.clone().requires_grad_()
    with mp.workdps(40):
        for estimator, value, slope in (
            (k1, lambda d: -d, lambda d: mpf(1)),
            (k2, lambda d: d * d / 2, lambda d: -d),
            (k3, lambda d: mpmath.expm1(d) - d, lambda d: -mpmath.expm1(d)),
        ):
            found = estimator(logprob, zero)
            (gradient,) = torch.autograd.grad(found.sum(), logprob)
            for i, at in enumerate(exact_d):
                assert abs(found[i].item() - value(at)) <= few * abs(value(at))
                assert abs(gradient[i].item() - slope(at)) <= few * abs(slope(at))
    torch.testing.assert_close(k3_ratio(logprob, zero, logprob.detach()), k3(logprob, zero), rtol=0, atol=0)
