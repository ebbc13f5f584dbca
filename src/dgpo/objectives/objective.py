"""The contract of an objective: a weight on the policy gradient.

For one token ∇J = c · ρ · w · A · ∇ log π. An objective is w, nothing else: it knows no batch, no normaliser, no
model and no other method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from dgpo.objectives.paper import Paper
from dgpo.registry import check_number
from dgpo.tokens import TokenBatch

Limit = Literal["zero", "finite", "infinite"]


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What an objective claims about its weight. Each claim is tested, for every method in the registry.

    Attributes:
        continuous: w has no jump as a function of the ratio, for either sign of A.
        upper_bound: largest w over all ratios, for A ≠ 0; inf where only the clamp of the log ratio bounds it.
        unit_on_policy: w = 1 at ratio 1.
        nonnegative: w >= 0 everywhere.
        limit_negative: w/π, the weight on ∇π, as π -> 0 at fixed π_old = 1/2 for A < 0: it goes to "zero", stays
            "finite" or grows "infinite"; None where none is declared (sequence level).
        limit_positive: the same for A > 0.
    """

    continuous: bool
    upper_bound: float
    unit_on_policy: bool = True
    nonnegative: bool = True
    limit_negative: Limit | None
    limit_positive: Limit | None


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Base of all methods. Subclasses are frozen dataclasses whose fields are the paper's hyper-parameters."""

    level: ClassVar[Literal["token", "sequence"]] = "token"
    """"sequence" if the weight of a token depends on the other tokens of its response."""

    adaptive: ClassVar[bool] = False
    """True if `calibrate` reads the batch; such a method is exempt from micro-batch invariance."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    """The papers of the method, the one that introduced it first; what a model card and a citation name.

    Not inherited: a method that is derived from another in code has papers of its own, or none.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "papers" not in cls.__dict__:
            cls.papers = ()
        # a weight is a coefficient, never a path for gradients, whoever calls it and however it was written
        if "weight" in cls.__dict__:
            cls.weight = torch.no_grad()(cls.weight)  # type: ignore[method-assign]

    @property
    def reads_response(self) -> bool:
        """Whether a weight depends on other tokens of its response, so that a response must not be cut into parts.

        True at sequence level; a token-level method overrides it where one of its fields makes it so.
        """
        return self.level == "sequence"

    @abstractmethod
    def weight(self, tokens: TokenBatch) -> Tensor:
        """w [B, T]: float32 (float64 for float64 tokens), detached, finite for every finite log ratio."""

    def potential(self, tokens: TokenBatch) -> Tensor:
        """φ [B, T]: what the logged value shows. Where a method declares one, dφ/dlogprob = w; otherwise φ = w."""
        return self.weight(tokens)

    def calibrate(self, tokens: TokenBatch) -> Self:
        """The objective to use for this batch. Adaptive methods return a new one; all others return themselves."""
        return self

    def properties(self) -> Properties:
        """What this method, with these fields, claims about its weight. Every registered method declares its own."""
        return Properties(
            continuous=False,
            upper_bound=math.inf,
            unit_on_policy=False,
            nonnegative=False,
            limit_negative=None,
            limit_positive=None,
        )

    def _check_field(
        self, name: str, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
    ) -> None:
        """Raise ValueError unless `low <= field <= high` (strict on an open side)."""
        check_number(self, name, low, high, open_low=open_low, open_high=open_high)
