"""The valid tokens of a batch as flat vectors, and their statistics under an objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.objectives import Boundaries, Objective
from dgpo.regions import regions, usual_boundaries
from dgpo.tokens import TokenBatch, check

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
TOP_FRACTION = 0.01
LOWEST_LOGPROB = -600.0
"""Lower bound on log π in nats when computing w/π, so that it stays finite in float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Valid:
    """The N valid tokens of a batch, in the order of its rows.

    Attributes:
        tokens: the batch.
        response, position: [N] row and column of each token.
        logprob, old_logprob, advantage, ratio: [N] detached; `ratio` is within e^±20.
        norm: [N] `logit_norm`.
        exact: whether `norm` is the norm itself, or its bound.
        low, high: [N] boundaries of the regions, in nats.
        regions: region -> [N] bool.
    """

    tokens: TokenBatch
    response: Tensor
    position: Tensor
    logprob: Tensor
    old_logprob: Tensor
    advantage: Tensor
    ratio: Tensor
    norm: Tensor
    exact: bool
    low: Tensor
    high: Tensor
    regions: dict[str, Tensor]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        tokens: TokenBatch,
        *,
        sum_pi_squared: Tensor | None = None,
        objective: Objective | None = None,
    ) -> Valid:
        """Flatten a batch.

        Args:
            tokens: the batch.
            sum_pi_squared: [B, T] Σ_v π_θ(v)², or None.
            objective: the regions use its boundaries, see `boundaries_of`.

        Raises:
            ValueError: if a shape does not match, or a valid token has a NaN or infinity.
        """
        check(tokens)
        where = tokens.mask
        boundaries = boundaries_of(objective, tokens)
        response, position = where.nonzero(as_tuple=True)
        logprob = tokens.logprob.detach()[where]
        if sum_pi_squared is not None:
            if sum_pi_squared.shape != where.shape:
                raise ValueError(
                    f"sum_pi_squared has shape {tuple(sum_pi_squared.shape)}; expected {tuple(where.shape)}, the shape "
                    "of the batch"
                )
            sum_pi_squared = sum_pi_squared.to(logprob.dtype)[where]
        return cls(
            tokens=tokens,
            response=response,
            position=position,
            logprob=logprob,
            old_logprob=tokens.old_logprob[where],
            advantage=tokens.advantage[where],
            ratio=tokens.ratio.detach()[where],
            norm=logit_norm(logprob, sum_pi_squared),
            exact=sum_pi_squared is not None,
            low=boundaries.low[where],
            high=boundaries.high[where],
            regions={name: mask[where] for name, mask in regions(tokens, boundaries).items()},
        )

    @torch.no_grad()
    def weight(self, objective: Objective) -> Tensor:
        """[N] w of an objective, calibrated on this batch first."""
        return objective.calibrate(self.tokens).weight(self.tokens)[self.tokens.mask]


def boundaries_of(objective: Objective | None, tokens: TokenBatch) -> Boundaries:
    """Of an objective, calibrated on this batch; the usual ones where it is not known."""
    return usual_boundaries(tokens) if objective is None else objective.calibrate(tokens).boundaries(tokens)


def logit_norm(logprob: Tensor, sum_pi_squared: Tensor | None = None) -> Tensor:
    """Norm of ∇log π(a) in the logits of a softmax, whose components are 1[v = a] - π(v)::

        N² = (1 - π)² + Σ_{v≠a} π(v)² = 1 - 2π + Σ_v π(v)²

    Without Σπ² the lower bound N = 1 - π, which is at most a factor √2 off.

    Args:
        logprob: log π of the sampled tokens, in nats. Log-probs at temperature τ give N in units of 1/τ.
        sum_pi_squared: of the same shape, Σ_v π(v)².
    """
    # expm1 keeps the digits of 1 - π where π is nearly 1; the clamp, because rounding can give log π > 0
    rest = -torch.expm1(logprob.clamp(max=0.0))
    if sum_pi_squared is None:
        return rest
    # the other tokens' part is in [0, (1 - π)²]: where π is nearly 1, rounding of Σπ² - π² would leave that range
    others = (sum_pi_squared - (2 * logprob).exp()).clamp(min=0.0).minimum(rest.square())
    return (rest.square() + others).sqrt()


def quantiles(values: Tensor, probabilities: Sequence[float]) -> Tensor:
    """[len(probabilities)] quantiles of a vector, linear between order statistics; 0 for an empty one.

    As `torch.quantile`, which refuses more than 16 million values.
    """
    if not len(values):
        return values.new_zeros(len(probabilities))
    ordered = values.sort().values
    place = torch.tensor(probabilities, dtype=torch.float64, device=values.device) * (len(values) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(ordered[low], ordered[high], (place - low).to(values.dtype))


def per_probability(weight: Tensor, logprob: Tensor) -> Tensor:
    """w/π, the weight on ∇π, in float64."""
    return weight.double() * (-logprob.double().clamp(min=LOWEST_LOGPROB)).exp()


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0 where `whole` is 0."""
    # the inner where avoids 0/0 in the branch that is not taken
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


def largest_share(size: Tensor, fraction: float) -> Tensor:
    """0-d: share of Σ size in its largest `fraction` of entries (at least one entry)."""
    if not len(size):
        return size.new_zeros(())
    return share(size.topk(max(1, math.ceil(fraction * len(size)))).values.sum(), size.sum())


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one class of tokens.

    Attributes:
        tokens: number of tokens (the mean number, if averaged over updates).
        fraction: of the valid tokens.
        mass: of Σ|A·w|, as `mass/` of `PolicyLoss.statistics`.
        gradient: of Σ|A·w|·N.
    """

    tokens: float
    fraction: float
    mass: float
    gradient: float


class Holders:
    """Shares of the totals, for [N] masks."""

    def __init__(self, mass: Tensor, size: Tensor) -> None:
        self._mass, self._size = mass, size

    def share(self, of: Tensor) -> Share:
        count = int(of.sum())
        return Share(
            tokens=count,
            fraction=count / max(len(of), 1),
            mass=float(share((self._mass * of).sum(), self._mass.sum())),
            gradient=float(share((self._size * of).sum(), self._size.sum())),
        )


@torch.no_grad()
def statistics(valid: Valid, w: Tensor, step_tokens: float) -> dict[str, Tensor]:
    """The statistics of `replay.Row` for one update: name -> 0-d tensor; every objective has the same names.

    Args:
        valid: the tokens.
        w: [N] weights.
        step_tokens: valid tokens of the optimiser step, recorded or not.
    """
    advantage, r, size = valid.advantage.abs(), valid.ratio, w.abs()
    mass, signed, kept = advantage * size, advantage * w * valid.norm, advantage * r * valid.norm
    # scaled by the largest weight: ess does not change, and the squares cannot overflow
    relative = size / size.amax().clamp(min=torch.finfo(w.dtype).tiny)
    gradient = signed.abs()
    off = advantage * (w - r).abs()
    whole_is = (advantage * r).sum()
    equal_step = (share(signed, gradient.sum()) - share(kept, kept.sum())).abs().sum()
    found = {
        "weight/mean": w.mean(),
        "weight/max": w.amax(),
        "weight/zero_fraction": (w == 0).to(w.dtype).mean(),
        "weight/ess": share(relative.sum().square(), len(w) * relative.square().sum()),
        "bias": share(off.sum(), whole_is),
        "bias_equal_step": equal_step,
        "cosine": share((signed * kept).sum(), signed.norm() * kept.norm()),
        "step_size": gradient.sum() / step_tokens,
        "top_percent_share": largest_share(gradient, TOP_FRACTION),
    }
    for name, values in (("weight", w), ("weight_on_prob", per_probability(w, valid.logprob))):
        found |= {f"{name}/q{q}": v for q, v in zip(QUANTILES, quantiles(values, QUANTILES), strict=True)}
    # [regions, N], so that one product per quantity gives its sums over all regions
    inside = torch.stack(list(valid.regions.values())).to(w.dtype)
    for name, values, total in (
        ("mass", mass, mass.sum()),
        ("gradient", gradient, gradient.sum()),
        ("bias", off, whole_is),
    ):
        found |= {f"{name}/{region}": v for region, v in zip(valid.regions, share(inside @ values, total), strict=True)}
    return found
