"""The contract of an objective: a weight on the policy gradient.

For one token ∇J = c · ρ · w · A · ∇ log π. An objective is w, and a penalty beside it if it has one
(`Objective.penalty`): it knows no batch, no normaliser, no model and no other method.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from dgpo.fields import Checked
from dgpo.objectives.frameworks import Conformance
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

Limit = Literal["zero", "finite", "infinite"]

Read = Literal["ratio", "advantage_sign", "advantage_size", "old_logprob", "entropy", "response", "batch"]
"""What a weight may be a function of; `Objective.reads` explains each."""


class Boundaries(NamedTuple):
    """Where an objective treats a token differently: below `low` and above `high`, in the log ratio that it compares.

    Both are those of the method's trust region, for either sign of A: a one-sided method acts below `low` for A < 0
    only, and a token with A > 0 there is in the region `reverse_left` (see `dgpo.regions`).

    Attributes:
        log_ratio: [B, T] the log ratio that is compared: the token's, or at sequence level that of its response.
        low: [B, T] nats; -inf where there is no such boundary.
        high: [B, T] nats; inf where there is no such boundary.
    """

    log_ratio: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def at(cls, log_ratio: Tensor, low: float = -math.inf, high: float = math.inf) -> Boundaries:
        """The same boundaries for every token; by default none."""
        return cls(log_ratio, torch.full_like(log_ratio, low), torch.full_like(log_ratio, high))

    def capped(self, where: Tensor, cap: float | None) -> Boundaries:
        """These boundaries with `high` at most log(cap) where the mask is True; unchanged if the cap is None."""
        if cap is None:
            return self
        return self._replace(high=torch.where(where, self.high.clamp(max=math.log(cap)), self.high))


class Penalty(NamedTuple):
    """What a method subtracts from the objective of a token, whatever its advantage.

    Attributes:
        value: [B, T] κ >= 0, for the logged value.
        slope: [B, T] dκ/dlogprob, a coefficient of ∇log π.
    """

    value: Tensor
    slope: Tensor

    @classmethod
    def quadratic(cls, tokens: TokenBatch, beta: float) -> Penalty:
        """beta/2 · (log r)²."""
        x = tokens.log_ratio
        return cls(beta / 2 * x.square(), beta * x)


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What an objective claims about its weight. Each claim is tested, for every method in the registry.

    Attributes:
        continuous: w has no jump as a function of the ratio, for either sign of A.
        upper_bound: largest w over all ratios, for A ≠ 0; inf where only the clamp of the log ratio bounds it.
        unit_on_policy: w = 1 at ratio 1.
        nonnegative: w >= 0 everywhere.
        not_ratio_inside: None where w = exp(log_ratio) for every token inside `boundaries`; otherwise why it is not.
        limit_negative: w/π, the weight on ∇π, as π -> 0 at fixed π_old = 1/2 for A < 0: it goes to "zero", stays
            "finite" or grows "infinite"; None where none is declared (sequence level).
        limit_positive: the same for A > 0.
    """

    continuous: bool
    upper_bound: float
    unit_on_policy: bool = True
    nonnegative: bool = True
    not_ratio_inside: str | None = None
    limit_negative: Limit | None
    limit_positive: Limit | None


@dataclass(frozen=True, kw_only=True)
class Objective(Checked, ABC):
    """Base of all methods. Subclasses are frozen dataclasses whose fields are the paper's hyper-parameters, each with
    its range (`dgpo.fields`)."""

    level: ClassVar[Literal["token", "sequence"]] = "token"
    """"sequence" if a weight is made of the ratios of the whole response."""

    guards: ClassVar[tuple[str, ...]] = ()
    """Fields that bound the weight where A < 0 and the ratio is large: with a field set to c, it is at most c there."""

    # --- facts of the method. Not inherited: a method that is derived from another in code has its own, or none

    name: ClassVar[str] = ""
    """Name in the registry. A class of this package that declares one is registered."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    """The papers of the method, the one that introduced it first; model cards and citations name them."""

    elsewhere: ClassVar[Mapping[str, Conformance]] = {}
    """Framework -> the setting there that gives this method's gradient; all of `FRAMEWORKS`, or none of them."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Its name in a paper or framework -> what an error adds to the name here, such as " with dual_clip=3"."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for fact in ("name", "papers", "elsewhere", "aliases"):
            if fact not in cls.__dict__:
                setattr(cls, fact, getattr(Objective, fact))
        # wrapped here, so that classes from outside this package are held to it too
        for name in ("weight", "potential", "boundaries", "penalty"):
            if name in cls.__dict__:
                setattr(cls, name, _held_to_the_contract(name, getattr(cls, name)))
        # a weight is a coefficient, never a path for gradients, whoever calls it and however it was written
        # `potential` stays differentiable, so that tests can compare its derivative with the weight
        for name in ("weight", "boundaries", "penalty"):
            if name in cls.__dict__:
                setattr(cls, name, torch.no_grad()(getattr(cls, name)))

    @property
    def reads(self) -> frozenset[Read]:
        """What the weight depends on, with these fields; nothing else may change it.

        By default the ratio and the sign of A, and at sequence level the response. The possible entries::

            ratio             log π_θ - log π_old of the token
            advantage_sign    whether A is below, at or above 0
            advantage_size    |A|; without it any positive multiple of A has the same weights
            old_logprob       log π_old at a given ratio
            entropy           of the policy at the token; a batch without entropies is refused
            response          the other tokens of the response, which must not be cut into parts
            batch             the other responses, through `calibrate`: exempt from micro-batch invariance. The others
                              say what the calibrated weight reads
        """
        found: set[Read] = {"ratio", "advantage_sign"}
        if self.level == "sequence":
            found.add("response")
        return frozenset(found)

    @property
    def penalises(self) -> bool:
        """Whether there is a `penalty`, with these fields, so that a token with A = 0 has a gradient as well."""
        return False

    def penalty(self, tokens: TokenBatch) -> Penalty:
        """κ [B, T] and its derivative, detached; called where `penalises` is True, on the calibrated objective.

        The method then has ∇J = c · ρ · (w · A - dκ/dlogprob) · ∇log π and the value φ · A - κ. κ is no part of w:
        shares of Σ|A·w|, bounds and biases are those of the first term.
        """
        raise NotImplementedError(f"{type(self).__name__} has no penalty; expected penalises = False")

    @abstractmethod
    def weight(self, tokens: TokenBatch) -> Tensor:
        """w [B, T]: float32 (float64 for float64 tokens), detached, finite for every finite log ratio.

        Raises:
            ValueError: the weight reads entropies and the tokens carry none; or a subclass returns another shape.
            TypeError: a subclass returns something else than a tensor.
        """

    def potential(self, tokens: TokenBatch) -> Tensor:
        """φ [B, T], which gives the logged value. Where a method declares one, dφ/dlogprob = w; otherwise φ = w."""
        return self.weight(tokens)

    def calibrate(self, tokens: TokenBatch) -> Self:
        """The objective to use for this batch. Adaptive methods return a new one; all others return themselves.

        What an adaptive one returns is fixed: it returns itself for every further batch.
        """
        return self

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        """Where this method's treatment of a token changes; by default nowhere. Call it on the calibrated objective."""
        return Boundaries.at(tokens.log_ratio)

    def properties(self) -> Properties:
        """What this method claims about its weight, with these fields. Every registered method declares its own."""
        return Properties(
            continuous=False,
            upper_bound=math.inf,
            unit_on_policy=False,
            nonnegative=False,
            limit_negative=None,
            limit_positive=None,
        )


_Found = TypeVar("_Found", Tensor, Boundaries, Penalty)


def _held_to_the_contract(
    name: str, method: Callable[[Objective, TokenBatch], _Found]
) -> Callable[[Objective, TokenBatch], _Found]:
    """A method of a subclass that refuses a batch without the entropies that `reads` declares, and a result that is not
    one number per token: another shape may broadcast into a wrong loss."""

    @functools.wraps(method)
    def call(self: Objective, tokens: TokenBatch) -> _Found:
        if tokens.entropy is None and "entropy" in self.reads:
            raise ValueError(f"{self!r} needs entropy [B, T], got None")
        found = method(self, tokens)
        if tokens.traced:  # there are no values yet
            return found
        for value in found if isinstance(found, Boundaries | Penalty) else (found,):
            # shape and type alone: reading a value would wait for the device
            where = f"{type(self).__name__}.{name} returned"
            if not isinstance(value, Tensor):
                raise TypeError(f"{where} {value!r}; expected a tensor [B, T]")
            if value.shape != tokens.log_ratio.shape:
                raise ValueError(
                    f"{where} the shape {list(value.shape)}; expected [B, T] = {list(tokens.log_ratio.shape)}"
                )
        return found

    return call
