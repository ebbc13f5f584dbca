"""Measures of one file of recorded tokens: what the rules need to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import Aggregation
from dgpo.kl import k3
from dgpo.loss import policy_loss
from dgpo.objectives import Objective
from dgpo.regions import regions, usual_boundaries
from dgpo.runs.tokens import Recorded
from dgpo.tokens import TokenBatch

TOP = 0.01
"""The share of the tokens whose part of the gradient is looked at: one in a hundred."""

ROUNDING = 0.02
"""Nats that two forward passes of one model in bfloat16 may differ by on a token without meaning anything."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """The first NaN or infinity at a valid token: in which tensor, where, which token, and how many there are."""

    tensor: str
    row: int
    column: int
    token: int | None
    value: float
    count: int

    def __str__(self) -> str:
        token = "" if self.token is None else f", token id {self.token}"
        return f"{self.tensor}[{self.row}, {self.column}] = {self.value} (row {self.row}, column {self.column}{token})"


@dataclass(frozen=True, kw_only=True)
class Heaviest:
    """The token with the largest |A·w|."""

    row: int
    column: int
    token: int | None
    advantage: float
    ratio: float
    weight: float

    def __str__(self) -> str:
        token = "" if self.token is None else f"token id {self.token}, "
        return (
            f"row {self.row}, column {self.column}: {token}A = {self.advantage:.3g}, ratio = {self.ratio:.3g}, "
            f"weight = {self.weight:.3g}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """δ = log μ - log π_old over the tokens of one file.

    Attributes:
        moments: [4, 4] float64, Σ zzᵀ with z = (1, log π_old, H, δ); sums, so that files can be added.
        kl: k3 estimate of KL(μ ‖ π_old), nats per token.
        absolute: mean |δ|.
        below: how many tokens have δ < -`ROUNDING`.
    """

    moments: Tensor
    kl: float
    absolute: float
    below: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """One update on one rank.

    Attributes:
        update, generation: numbers of both.
        count: valid tokens in the file, of which `with_advantage` have an advantage that is not 0.
        totals: tokens of the optimiser step as the loss was given them; None where they were not recorded.
        bad: the first value that is not finite; what follows is 0 or None where there is one.
        largest: max |log r| over the tokens.
        sampler: where log μ was recorded.
        loss: the policy term of this rank, computed again from the tokens and the recorded totals; like what follows,
            None or 0 where the weights are not known.
        top_share: share of Σ|A·w| that the heaviest hundredth of the tokens holds.
        reverse_right: share of Σ|A·w| in the region reverse_right: A < 0, above the upper boundary of the objective, or
            above 1.2 where it has none.
        heaviest: the heaviest token.
    """

    update: int
    generation: int
    count: int
    with_advantage: int
    totals: float | None
    bad: Bad | None
    largest: float = 0.0
    sampler: Sampler | None = None
    loss: float | None = None
    top_share: float = 0.0
    reverse_right: float = 0.0
    heaviest: Heaviest | None = None


@torch.no_grad()
def measure(
    recorded: Recorded, objective: Objective | None, aggregation: Aggregation | None, *, weighed: bool = True
) -> Measures:
    """The measures of one file. Without an objective the weight is the ratio; without an aggregation there is no loss.

    Args:
        weighed: False where there is an objective that is not known, so that nothing is said of weights.
    """
    tokens = recorded.tokens
    count = int(tokens.mask.sum())
    totals = None if recorded.totals is None else float(recorded.totals.tokens)
    bad = first_bad(tokens, recorded.token_ids)
    with_advantage = int(((tokens.advantage != 0) & tokens.mask).sum())
    common: dict[str, Any] = {
        "update": recorded.update,
        "generation": recorded.generation,
        "totals": totals,
        "bad": bad,
    }
    common |= {"count": count, "with_advantage": with_advantage}
    if bad is not None or count == 0:
        return Measures(**common)
    common |= {"largest": float(tokens.log_ratio[tokens.mask].abs().max()), "sampler": _sampler(tokens)}
    if not weighed:
        return Measures(**common)
    method = None if objective is None else objective.calibrate(tokens)
    weight = tokens.ratio if method is None else method.weight(tokens)
    mass = (tokens.advantage * weight).abs() * tokens.mask
    total = float(mass.sum())
    loss = None
    if (
        objective is not None
        and aggregation is not None
        and recorded.totals is not None
        and "batch" not in objective.reads
    ):
        loss = float(
            policy_loss(
                tokens.logprob,
                tokens.old_logprob,
                tokens.advantage,
                tokens.mask,
                objective=objective,
                aggregation=aggregation,
                totals=recorded.totals,
                entropy=tokens.entropy,
            ).value
        )
    usual = usual_boundaries(tokens)
    bounds = usual if method is None else method.boundaries(tokens)
    # a weight that nothing changes above is watched from where a clip would end
    bounds = bounds._replace(high=torch.where(bounds.high.isinf(), usual.high, bounds.high))
    return Measures(
        loss=loss,
        top_share=float(mass.flatten().topk(math.ceil(TOP * count)).values.sum()) / total if total else 0.0,
        reverse_right=float(mass[regions(tokens, bounds)["reverse_right"]].sum()) / total if total else 0.0,
        heaviest=_heaviest(tokens, weight, mass, recorded.token_ids),
        **common,
    )


def first_bad(tokens: TokenBatch, token_ids: Tensor | None) -> Bad | None:
    """The first valid token with a value that is not finite, in reading order."""
    named = {
        "logprob": tokens.logprob,
        "old_logprob": tokens.old_logprob,
        "advantage": tokens.advantage,
        "rollout_logprob": tokens.rollout_logprob,
        "entropy": tokens.entropy,
    }
    broken = {name: ~torch.isfinite(v) & tokens.mask for name, v in named.items() if v is not None}
    anywhere = torch.stack(list(broken.values())).any(0)
    if not anywhere.any():
        return None
    row, column = (int(i) for i in anywhere.nonzero()[0])
    tensor = next(name for name, where in broken.items() if where[row, column])
    values = named[tensor]
    assert values is not None
    return Bad(
        tensor=tensor,
        row=row,
        column=column,
        token=None if token_ids is None else int(token_ids[row, column]),
        value=float(values[row, column]),
        count=int(anywhere.sum()),
    )


def _heaviest(tokens: TokenBatch, weight: Tensor, mass: Tensor, token_ids: Tensor | None) -> Heaviest:
    row, column = divmod(int(mass.argmax()), mass.shape[1])
    return Heaviest(
        row=row,
        column=column,
        token=None if token_ids is None else int(token_ids[row, column]),
        advantage=float(tokens.advantage[row, column]),
        ratio=float(tokens.ratio[row, column]),
        weight=float(weight[row, column]),
    )


def _sampler(tokens: TokenBatch) -> Sampler | None:
    if tokens.rollout_logprob is None:
        return None
    old, sampled = tokens.old_logprob[tokens.mask].double(), tokens.rollout_logprob[tokens.mask].double()
    entropy = torch.zeros_like(old) if tokens.entropy is None else tokens.entropy[tokens.mask].double()
    delta = sampled - old
    z = torch.stack([torch.ones_like(old), old, entropy, delta])
    return Sampler(
        moments=z @ z.T,
        kl=float(k3(sampled, old).mean()),
        absolute=float(delta.abs().mean()),
        below=int((delta < -ROUNDING).sum()),
    )
