"""Token statistics: where the gradient of an update is, token by token, under any objective.

For one token the gradient in the logits has the size |A·w|·N with N the norm of ∇log π there (`logit_norm`). Here every
token counts the same (c uniform, as under `token-mean`) and ρ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo.diagnostics.bias import made
from dgpo.diagnostics.weighed import (
    QUANTILES,
    TOP_FRACTION,
    Holders,
    Share,
    Valid,
    largest_share,
    per_probability,
    quantiles,
    share,
)
from dgpo.fields import check_value
from dgpo.objectives import Objective
from dgpo.regions import REGIONS
from dgpo.runs.tokens import Recorded
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class Decile(Share):
    """A tenth of the tokens by π_old, with π_old in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class TopToken:
    """One of the tokens with the largest |A·w|·N.

    Attributes:
        response, position: row and column in the batch.
        token_id: None if the ids are not known.
        old_prob: π_old.
        ratio, advantage, weight: r, A, w.
        share: of Σ|A·w|·N.
    """

    response: int
    position: int
    token_id: int | None
    old_prob: float
    ratio: float
    advantage: float
    weight: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Description:
    """One batch under one objective.

    Attributes:
        tokens: valid tokens.
        exact: whether N is the norm of ∇log π, or the bound 1 - π.
        step_size: mean over the valid tokens of |A·w|·N.
        weight: quantile -> w, the weight on ∇log π.
        weight_on_prob: quantile -> w/π, the weight on ∇π.
        regions: region -> the share of its tokens, by the objective's own boundaries. The trainer computes the same per
            micro-batch (and calibrates an adaptive objective on each), and logs the mean over an update.
        signs: "negative", "zero", "positive" -> the share by sign of A.
        deciles: shares by deciles of π_old, rarest first; empty ones are left out.
        top: the tokens with the largest |A·w|·N, largest first.
        top_share: share of Σ|A·w|·N in the tokens of `top`.
        top_percent_share: its share in the largest 1 % of the tokens.
    """

    tokens: int
    exact: bool
    step_size: float
    weight: dict[float, float]
    weight_on_prob: dict[float, float]
    regions: dict[str, Share]
    signs: dict[str, Share]
    deciles: tuple[Decile, ...]
    top: tuple[TopToken, ...]
    top_share: float
    top_percent_share: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; quantiles have keys such as "0.05"."""
        quantiled = {name: {str(q): v for q, v in getattr(self, name).items()} for name in ("weight", "weight_on_prob")}
        return asdict(self) | quantiled


@torch.no_grad()
def describe(
    tokens: TokenBatch,
    objective: str | Objective,
    *,
    token_ids: Tensor | None = None,
    sum_pi_squared: Tensor | None = None,
    top: int = 10,
) -> Description:
    """Describe which tokens carry the gradient of a batch; the objective is calibrated on it first.

    Args:
        tokens: [B, T] with at least one valid token.
        objective: a name of `objectives.OBJECTIVES`, or an `Objective`.
        token_ids: [B, T] sampled tokens.
        sum_pi_squared: [B, T] Σ_v π_θ(v)²; without it N is the bound 1 - π.
        top: number of top tokens to list, >= 0.

    Raises:
        ValueError: if there is no valid token, one has a NaN or infinity, a shape does not match, or the objective is
            unknown.
    """
    chosen = made(objective)
    check_value("top", top, "[0, inf)", whole=True)
    if token_ids is not None and token_ids.shape != tokens.mask.shape:
        raise ValueError(f"token_ids has shape {tuple(token_ids.shape)}; expected {tuple(tokens.mask.shape)}")
    valid = Valid.of(tokens, sum_pi_squared=sum_pi_squared, objective=chosen)
    if not len(valid.ratio):
        raise ValueError(f"the batch of shape {tuple(tokens.mask.shape)} has no valid token; expected at least one")
    # [N] from here on, the valid tokens in the order of the rows
    w = valid.weight(chosen)
    mass = (valid.advantage * w).abs()
    size = mass * valid.norm
    holders = Holders(mass, size)
    leading = size.topk(min(top, len(size))).indices
    shares = share(size[leading], size.sum())
    return Description(
        tokens=len(w),
        exact=valid.exact,
        step_size=float(size.mean()),
        weight=_quantiled(w),
        weight_on_prob=_quantiled(per_probability(w, valid.logprob)),
        regions={name: holders.share(mask) for name, mask in valid.regions.items()},
        signs={
            "negative": holders.share(valid.advantage < 0),
            "zero": holders.share(valid.advantage == 0),
            "positive": holders.share(valid.advantage > 0),
        },
        deciles=_deciles(valid, holders),
        top=tuple(
            TopToken(
                response=int(valid.response[i]),
                position=int(valid.position[i]),
                token_id=None if token_ids is None else int(token_ids[valid.response[i], valid.position[i]]),
                old_prob=float(valid.old_logprob[i].exp()),
                ratio=float(valid.ratio[i]),
                advantage=float(valid.advantage[i]),
                weight=float(w[i]),
                share=float(part),
            )
            for i, part in zip(leading.tolist(), shares.tolist(), strict=True)
        ),
        top_share=float(shares.sum()),
        top_percent_share=float(largest_share(size, TOP_FRACTION)),
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The updates that are the k-th of their generation, averaged.

    Attributes:
        index: k, from 0.
        updates: the updates.
        regions: region -> share of its tokens, mean over the updates.
    """

    index: int
    updates: tuple[int, ...]
    regions: dict[str, Share]


def over_generation(
    recorded: Iterable[Recorded], objective: str | Objective, *, updates_per_generation: float
) -> tuple[Stage, ...]:
    """How tokens leave the boundaries of an objective while a batch of completions is reused.

    Args:
        recorded: updates, for example `run.recorded()`; the parts of several ranks count as separate updates.
            Updates without a valid token are left out.
        objective: a name of `objectives.OBJECTIVES`, or an `Objective`.
        updates_per_generation: as in `run.json`, for updates whose index was not recorded.

    Returns:
        One stage for every index that occurs, in order.

    Raises:
        ValueError: if `updates_per_generation` is not positive; as `describe`.
    """
    check_value("updates_per_generation", updates_per_generation, "(0, inf]")
    found: dict[int, list[tuple[int, dict[str, Share]]]] = {}
    for part in recorded:
        if bool(part.tokens.mask.any()):
            index = part.index
            if index is None:
                # below 1, several generations share an update: every update is then the first of its own
                index = math.floor((part.update - 1) % max(updates_per_generation, 1))
            shares = describe(part.weighed, objective, sum_pi_squared=part.sum_pi_squared, top=0).regions
            found.setdefault(index, []).append((part.update, shares))
    return tuple(
        Stage(
            index=index,
            updates=tuple(dict.fromkeys(update for update, _ in parts)),
            regions={name: _mean_share([shares[name] for _, shares in parts]) for name in REGIONS},
        )
        for index, parts in sorted(found.items())
    )


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Tokens over the log ratio.

    Attributes:
        edges: bin edges in nats, ascending; one more than bins.
        negative, positive: number of tokens with A < 0 and with A > 0, by bin.
    """

    edges: tuple[float, ...]
    negative: tuple[int, ...]
    positive: tuple[int, ...]


@torch.no_grad()
def histogram(tokens: TokenBatch, bins: int | Sequence[float] = 60) -> Histogram:
    """Count tokens by log π_θ - log π_old and by the sign of A; tokens with A = 0 are not counted.

    Args:
        tokens: the batch.
        bins: number of bins, over the smallest range symmetric around 0 that covers all tokens (at least ±0.01 nats);
            or the edges in nats. Tokens beyond the edges count in the outermost bins.

    Raises:
        ValueError: if there is no bin, the edges do not ascend, or a valid token has a NaN or infinity.
    """
    valid = Valid.of(tokens)
    x = tokens.log_ratio.detach()[tokens.mask].double()
    moved = x[valid.advantage != 0].abs()
    if isinstance(bins, int):
        if bins < 1:
            raise ValueError(f"bins = {bins} is not allowed; expected >= 1, or edges")
        reach = max(float(moved.max()) if len(moved) else 0.0, 0.01)
        edges = torch.linspace(-reach, reach, bins + 1, dtype=torch.float64)
    else:
        edges = torch.tensor(list(bins), dtype=torch.float64)
        if len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ValueError(f"bins = {list(bins)} are not edges of bins; expected at least two ascending numbers")
    # without the outer edges, so that tokens beyond them fall into the outermost bins
    place = torch.bucketize(x, edges[1:-1].to(x.device), right=True)

    def counted(of: Tensor) -> tuple[int, ...]:
        return tuple(torch.bincount(place[of], minlength=len(edges) - 1).tolist())

    return Histogram(
        edges=tuple(edges.tolist()),
        negative=counted(valid.advantage < 0),
        positive=counted(valid.advantage > 0),
    )


def _deciles(valid: Valid, holders: Holders) -> tuple[Decile, ...]:
    found = []
    # stable, so that ties are assigned to deciles alike on every machine
    for members in valid.old_logprob.sort(stable=True).indices.tensor_split(10):
        if len(members):
            of = torch.zeros_like(valid.ratio, dtype=torch.bool)
            of[members] = True
            low, high = valid.old_logprob[members[[0, -1]]].exp().tolist()
            found.append(Decile(**asdict(holders.share(of)), low=low, high=high))
    return tuple(found)


def _quantiled(values: Tensor) -> dict[float, float]:
    return dict(zip(QUANTILES, quantiles(values, QUANTILES).tolist(), strict=True))


def _mean_share(shares: Sequence[Share]) -> Share:
    return Share(
        **{
            name: sum(getattr(one, name) for one in shares) / len(shares)
            for name in ("tokens", "fraction", "mass", "gradient")
        }
    )
