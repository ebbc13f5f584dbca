"""Measures of one token file, as the rules need them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgpo.aggregation import Aggregation
from dgpo.kl import k3
from dgpo.loss import policy_loss
from dgpo.objectives import Objective
from dgpo.regions import regions, usual_boundaries
from dgpo.runs.tokens import Recorded
from dgpo.tokens import TokenBatch, not_finite

TOP = 0.01
"""Share of the tokens in `Measures.top_share`: the top 1 %."""

ROUNDING = 0.02
"""Nats by which two bfloat16 forward passes of the same model may differ on a token, from rounding alone."""


TOKEN_ID = re.compile(r"token id (\d+)")
"""How the texts below name a token; what has a tokenizer can put its text there."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """The first NaN or infinity at a valid token: tensor, position, token id, value, and the number of such tokens."""

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
        moments: [4, 4] float64, Σ zzᵀ with z = (1, log π_old, H, δ); sums, so that files can be pooled.
        kl: k3 estimate of KL(μ ‖ π_old), nats per token.
        absolute: mean |δ|.
        below: number of tokens with δ < -`ROUNDING`.
    """

    moments: Tensor
    kl: float
    absolute: float
    below: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """One update on one rank.

    Attributes:
        update, generation: their numbers.
        count: valid tokens in the file, of which `with_advantage` have an advantage other than 0.
        totals: tokens of the optimiser step that the loss was given; None if not recorded.
        bad: the first value that is not finite; if there is one, the following are 0 or None.
        largest: max |log r| over the tokens.
        sampler: None if log μ was not recorded.
        loss: the policy term of this rank, recomputed from the tokens and the recorded totals. Like the following, it
            is None or 0 if the weights are not known.
        top_share: share of Σ|A·w| in the 1 % of the tokens with the largest |A·w|.
        reverse_right: share of Σ|A·w| in the region reverse_right: A < 0, above the upper boundary of the objective, or
            above 1.2 where it has none.
        heaviest: the token with the largest |A·w|.
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
        weighed: False if the run has an objective that is not known; nothing that needs weights is measured.
    """
    tokens = recorded.tokens
    count = int(tokens.mask.sum())
    totals = None if recorded.totals is None else float(recorded.totals.tokens)
    bad = first_bad(tokens, recorded.token_ids)
    with_advantage = int(((tokens.advantage != 0) & tokens.mask).sum())
    found = Measures(
        update=recorded.update,
        generation=recorded.generation,
        count=count,
        with_advantage=with_advantage,
        totals=totals,
        bad=bad,
    )
    if bad is not None or count == 0:
        return found
    seen = recorded.weighed
    found = replace(found, largest=float(seen.log_ratio[tokens.mask].abs().max()), sampler=_sampler(tokens))
    if not weighed:
        return found
    method = None if objective is None else objective.calibrate(seen)
    weight = seen.ratio if method is None else method.weight(seen)
    mass = (tokens.advantage * weight).abs() * tokens.mask
    total = float(mass.sum())
    loss = None
    # an adaptive objective was calibrated on micro-batches, which the file does not tell apart
    adaptive = objective is not None and "batch" in objective.reads
    if objective is not None and aggregation is not None and recorded.totals is not None and not adaptive:
        loss = float(
            policy_loss(
                tokens.logprob,
                seen.old_logprob,
                tokens.advantage,
                tokens.mask,
                objective=objective,
                aggregation=aggregation,
                totals=recorded.totals,
                entropy=tokens.entropy,
            ).value
        )
    usual = usual_boundaries(seen)
    bounds = usual if method is None else method.boundaries(seen)
    # without an upper boundary, count from where a usual clip would be
    bounds = bounds._replace(high=torch.where(bounds.high.isinf(), usual.high, bounds.high))
    return replace(
        found,
        loss=loss,
        # padding has mass 0, so that it displaces no token from the top
        top_share=float(mass.flatten().topk(math.ceil(TOP * count)).values.sum()) / total if total else 0.0,
        reverse_right=float(mass[regions(seen, bounds)["reverse_right"]].sum()) / total if total else 0.0,
        heaviest=_heaviest(seen, weight, mass, recorded.token_ids),
    )


def first_bad(tokens: TokenBatch, token_ids: Tensor | None) -> Bad | None:
    """The first valid token with a value that is not finite, in reading order."""
    present, broken = not_finite(tokens)
    anywhere = broken.any(0)
    if not anywhere.any():
        return None
    row, column = (int(i) for i in anywhere.nonzero()[0])
    tensor, values = next(one for one, where in zip(present.items(), broken, strict=True) if where[row, column])
    return Bad(
        tensor=tensor,
        row=row,
        column=column,
        token=None if token_ids is None else int(token_ids[row, column]),
        value=float(values[row, column]),
        count=int(anywhere.sum()),
    )


def _heaviest(tokens: TokenBatch, weight: Tensor, mass: Tensor, token_ids: Tensor | None) -> Heaviest:
    # argmax is over the flattened [B, T]
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
    # float64: the fit takes differences of these sums over all files
    old, sampled = tokens.old_logprob[tokens.mask].double(), tokens.rollout_logprob[tokens.mask].double()
    entropy = torch.zeros_like(old) if tokens.entropy is None else tokens.entropy[tokens.mask].double()
    delta = sampled - old
    # [4, N]
    z = torch.stack([torch.ones_like(old), old, entropy, delta])
    return Sampler(
        moments=z @ z.T,
        kl=float(k3(sampled, old).mean()),
        absolute=float(delta.abs().mean()),
        below=int((delta < -ROUNDING).sum()),
    )
