"""How far an objective's gradient is from the one of unclipped importance sampling, on a real model and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.counts import counted
from dgpo.diagnostics.bias import made
from dgpo.fields import check_value
from dgpo.objectives import Objective

INTERVAL = (0.025, 0.975)
"""Bootstrap quantiles at the ends of an interval."""

CHUNK = 1 << 22
"""Number of gradient elements converted to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Bias and variance, estimated from the prompts of a batch, in units of ‖H‖² (H: reference gradient).

    A batch gradient is a sum over P prompts. If they are independent, P/(P-1)·Σ‖g_p - ḡ‖² estimates its variance
    without bias. The bootstrap estimate is the same without the factor P/(P-1), so these
    values need no resampling. The intervals are quantiles (0.025 and 0.975) of the bootstrap over prompts.

    Attributes:
        prompts: P.
        bias_squared: ‖G - H‖² minus the variance of G - H: an estimate of the squared bias that noise does not inflate.
            It can be negative where bias and noise cannot be told apart.
        variance: of the objective's gradient G.
        reference_variance: of H. The reference has this and, by definition, no bias.
        cosine, norm_ratio, relative_bias: intervals of the values of `GradientBias`.
    """

    prompts: int
    bias_squared: float
    variance: float
    reference_variance: float
    cosine: tuple[float, float]
    norm_ratio: tuple[float, float]
    relative_bias: tuple[float, float]

    @property
    def mse(self) -> float:
        """bias² + variance, to compare with `reference_variance`."""
        return self.bias_squared + self.variance


@dataclass(frozen=True, kw_only=True)
class GradientBias:
    """An objective's gradient G against the reference's H, on the same batch and parameters.

    Attributes:
        cosine: of the angle between them; 0 if G is 0.
        norm_ratio: ‖G‖ / ‖H‖.
        relative_bias: ‖G - H‖ / ‖H‖.
        spread: None without groups.
    """

    cosine: float
    norm_ratio: float
    relative_bias: float
    spread: Spread | None


def gradient_bias(
    loss_of: Callable[[Objective, Tensor | None], Tensor],
    parameters: Iterable[Tensor],
    groups: Sequence[Tensor] | None,
    objective: str | Objective,
    reference: str | Objective = "is",
    *,
    resamples: int = 200,
    seed: int = 0,
) -> GradientBias:
    """Cosine and ratio of two gradients of a real model, with their spread over prompts.

    Without groups this costs two forward and backward passes over the batch. With P groups it costs two per group, and
    memory for 2·P gradients: to save memory, pass the parameters of one block or of an adapter only. Resamples are
    exact, since they are sums of gradients already computed. `.grad` is left unchanged.

    Args:
        loss_of: (objective, rows) -> scalar loss of these rows of the batch, as their part of one sum: the same totals
            for every call, as for micro-batches of one step. `rows` is None for the whole batch. Without dropout, or
            two gradients differ by its noise.
        parameters: what to differentiate.
        groups: for every prompt the rows of its responses, disjoint; at least 2. None compares the batch as a whole.
        objective: a registered name, or an objective. Calibrate an adaptive one first; otherwise it calibrates itself
            on each group separately.
        reference: the objective to compare with (default unclipped importance sampling).
        resamples: number of bootstrap resamples, >= 1.
        seed: bootstrap seed.

    Raises:
        ValueError: fewer than 2 groups, an empty or a shared one; no parameters; a loss that is not a scalar or has no
            gradient; a gradient that is not finite; a reference whose gradient is exactly 0, against which nothing can
            be measured.
    """
    chosen, weights = made(objective), list(parameters)
    if not weights:
        raise ValueError("parameters is empty; expected the tensors to differentiate")
    check_value("resamples", resamples, "[1, inf)", whole=True)
    parts: list[Tensor | None] = [None] if groups is None else list(_checked(groups))
    # P of the objective, then P of the reference
    gradients = [_gradient(loss_of, which, rows, weights) for which in (chosen, made(reference)) for rows in parts]
    products = _products(gradients)
    P = len(parts)
    GG, GH, HH = products[:P, :P], products[:P, P:], products[P:, P:]
    if not products.isfinite().all():
        raise ValueError(
            "a gradient is not finite; dgpo.check names the first token whose log-prob or advantage is not"
        )
    if HH.sum() <= 0:
        raise ValueError(
            "the reference's gradient is exactly 0 (every advantage 0, or no valid token?); nothing to compare with"
        )
    cosine, norm_ratio, relative_bias = (
        value.item() for value in _compared(torch.ones(1, P, dtype=torch.float64), GG, GH, HH)
    )
    spread = None if groups is None else _spread(GG, GH, HH, resamples, seed)
    return GradientBias(cosine=cosine, norm_ratio=norm_ratio, relative_bias=relative_bias, spread=spread)


def _checked(groups: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(groups) < 2:
        raise ValueError(f"{counted(len(groups), 'group')}; expected at least 2, or None for the batch as a whole")
    for i, rows in enumerate(groups):
        if rows.dim() != 1 or not len(rows) or rows.dtype == torch.bool or rows.is_floating_point():
            raise ValueError(f"groups[{i}] is {rows!r}; expected a vector of row numbers, not empty")
    every = torch.cat(list(groups)).tolist()
    if len(set(every)) < len(every):
        raise ValueError("a row is in more than one group, or twice in one; expected disjoint groups")
    return groups


def _gradient(
    loss_of: Callable[[Objective, Tensor | None], Tensor],
    objective: Objective,
    rows: Tensor | None,
    parameters: list[Tensor],
) -> list[Tensor]:
    loss = loss_of(objective, rows)
    if loss.dim() != 0 or not loss.requires_grad:
        raise ValueError(
            f"loss_of gave a tensor of shape {list(loss.shape)} with requires_grad = {loss.requires_grad}; expected a "
            "scalar that depends on the parameters"
        )
    # grad and not backward, which would add to .grad; a parameter that the loss does not reach gives None
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True)]


def _products(gradients: list[list[Tensor]]) -> Tensor:
    """[K, K] inner products of K gradients, in float64 on the CPU."""
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    # parameter by parameter and in pieces: at most CHUNK elements are in float64 at a time
    for same in zip(*gradients, strict=True):
        for pieces in zip(*(g.flatten().split(max(CHUNK // len(gradients), 1)) for g in same), strict=True):
            block = torch.stack(pieces).double()
            total += (block @ block.T).cpu()
    return total


def _compared(counts: Tensor, GG: Tensor, GH: Tensor, HH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[R] cosine, ‖G‖/‖H‖ and ‖G - H‖/‖H‖ of the sums in which prompt p appears counts[:, p] times."""

    def quadratic(products: Tensor) -> Tensor:
        return ((counts @ products) * counts).sum(1)

    # rounding may leave a square slightly below 0
    gg, gh, hh = quadratic(GG).clamp(min=0), quadratic(GH), quadratic(HH)
    gap = quadratic(GG - GH - GH.T + HH).clamp(min=0)
    size = (gg * hh).sqrt()
    cosine = torch.where(size > 0, gh / size, 0.0).clamp(-1, 1)
    return cosine, (gg / hh).sqrt(), (gap / hh).sqrt()


def _spread(GG: Tensor, GH: Tensor, HH: Tensor, resamples: int, seed: int) -> Spread:
    P = len(HH)
    gap = GG - GH - GH.T + HH
    scale = HH.sum().item()

    def variance(products: Tensor) -> float:
        """P/(P-1) · Σ‖g_p - ḡ‖² from the inner products of the g_p."""
        return P / (P - 1) * max((products.trace() - products.sum() / P).item(), 0.0) / scale

    # [R, P] prompts, then how often each of them was drawn
    drawn = torch.randint(P, (resamples, P), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, P, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    usable = ((counts @ HH) * counts).sum(1) > 0  # a resample in which no prompt has a gradient cannot be compared
    if not usable.any():
        raise ValueError(f"none of {resamples} resamples contains a prompt with a gradient; expected more resamples")
    limits = [
        values.quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
        for values in _compared(counts[usable], GG, GH, HH)
    ]
    cosine, norm_ratio, relative_bias = ((low, high) for low, high in limits)
    return Spread(
        prompts=P,
        bias_squared=gap.sum().item() / scale - variance(gap),
        variance=variance(GG),
        reference_variance=variance(HH),
        cosine=cosine,
        norm_ratio=norm_ratio,
        relative_bias=relative_bias,
    )
