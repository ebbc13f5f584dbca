"""What the test file of a method declares for the common suites, and what the closed forms share.

`METHODS` in `tests/objectives/test_FILE.py` has one entry for every method of `src/dgpo/objectives/FILE.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpmath  # comes with torch
import pytest
import torch
from mpmath import mpf

from dgpo import TokenBatch, objectives
from dgpo.objectives import OBJECTIVES

INF = math.inf
NEAR = 1e-7
EPS: list[dict[str, Any]] = [{"eps_low": 0, "eps_high": 0}, {"eps_low": NEAR, "eps_high": NEAR}, {"eps_low": 1 - NEAR}]
DUAL: list[dict[str, Any]] = [{"dual_clip": 1 + NEAR}, {"dual_clip": INF}]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method, for the common suites.

    Attributes:
        closed_form: the formula written a second time, from the paper and not from the class, in mpmath's numbers, for
            a response of one token: (log r, log π_old, sign of A, **fields) -> w, φ, and the sum of the absolute terms
            of φ. φ = w where the method declares no potential.
        settings: fields worth testing beside the defaults.
        extreme: fields near which the formula degenerates; there every digit is compared.
    """

    closed_form: Callable[..., tuple[Any, Any, Any]]
    settings: list[dict[str, Any]] = field(default_factory=list)
    extreme: list[dict[str, Any]] = field(default_factory=list)


def methods() -> dict[str, Method]:
    """Name -> what its test file declares; without those whose file is missing, which a test says."""
    found: dict[str, Method] = {}
    for file in sorted({cls.__module__.rpartition(".")[2] for cls in OBJECTIVES.values()}):
        if Path(__file__).with_name(f"test_{file}.py").is_file():
            found |= importlib.import_module(f"test_{file}").METHODS
    return found


def exact(objective: objectives.Objective) -> dict[str, Any]:
    """The fields of an objective as a closed form takes them."""
    values = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    return {name: value if value is None else mpf(value) for name, value in values.items()}


def tokens_at(x: float | list[float] | torch.Tensor, advantage: float, old: float = -3.0) -> TokenBatch:
    """One response of one token for each log ratio."""
    log_ratio = torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1)
    old_logprob = torch.full_like(log_ratio, old)
    sign = torch.full((len(log_ratio),), advantage, dtype=torch.float64)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    return TokenBatch(old_logprob + log_ratio, old_logprob, sign, mask, entropy=torch.ones_like(log_ratio))


GRID = (-8, -2.1, -0.5, -0.23, -0.21, -0.01, 0.0, 0.01, 0.17, 0.19, 0.3, 0.5, 1, 3, 7)


def by_region(declared: dict[str, Method]) -> Callable[..., None]:
    """The test of a method's file: w and φ are the closed form, with the defaults and all `settings`."""
    cases = [(name, fields) for name, method in declared.items() for fields in [{}, *method.settings]]

    @pytest.mark.parametrize(("name", "fields"), cases, ids=[f"{name}{fields or ''}" for name, fields in cases])
    @pytest.mark.parametrize("sign", [-1, 0, 1], ids=["A<0", "A=0", "A>0"])
    def test_closed_form(name: str, fields: dict[str, Any], sign: int) -> None:
        sample = tokens_at(torch.linspace(-1, 1, 20), 1.0)
        objective = objectives.make(name, **fields).calibrate(sample)
        olds = (-0.05, -0.4, -1.2, -3.0, -9.0) if "old_logprob" in objective.reads else (-3.0,)
        for old in olds:
            grid = [x for x in GRID if x < -old]
            tokens = tokens_at(grid, float(sign), old)
            w, phi = objective.weight(tokens).flatten().tolist(), objective.potential(tokens).flatten().tolist()
            for i, x in enumerate(tokens.log_ratio.flatten().tolist()):
                with mpmath.workdps(30):
                    want_w, want_phi, size = declared[name].closed_form(mpf(x), mpf(old), sign, **exact(objective))
                at = f"log r = {x}, log π_old = {old}, sign of A = {sign}"
                assert w[i] == pytest.approx(float(want_w), rel=1e-9, abs=1e-200), f"w at {at}"
                assert phi[i] == pytest.approx(float(want_phi), rel=1e-9, abs=1e-9 * float(size) + 1e-200), f"φ at {at}"

    return test_closed_form


def clipped(x: Any, lo: Any, hi: Any, sign: int, dual: Any, left: Any = 0, right: Any = 0) -> tuple[Any, Any, Any]:
    """r inside; beyond a bound b the weight is scale · b and φ = b · (1 + scale · log(r/b))."""
    r = mpmath.exp(x)
    for beyond, bound, scale in (
        (sign < 0 and r < lo, lo, left),
        (sign > 0 and r > hi, hi, right),
        (sign < 0 and dual is not None and r > dual, dual, 0),
    ):
        if beyond:
            log = x - mpmath.log(bound)
            return scale * bound, bound * (1 + scale * log), bound * (1 + abs(scale * log))
    return r, r, r


def capped(x: Any, cap: Any, floor: Any = 0) -> tuple[Any, Any, Any]:
    """r between floor and cap, beyond them the bound b with φ = b · (1 + log(r/b))."""
    r = mpmath.exp(x)
    if floor <= r <= cap:
        return r, r, r
    bound = cap if r > cap else floor
    log = x - mpmath.log(bound)
    return bound, bound * (1 + log), bound * (1 + abs(log))
