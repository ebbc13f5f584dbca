"""What an objective claims about its weight: `properties()` and `boundaries()`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgpo.counts import counted
from dgpo.objectives import Objective, Properties
from dgpo.testing.batches import HALF, RARE, calibrated, column, linspace, random_batch
from dgpo.testing.failure import require, worst


def claims_of(objective: Objective) -> Properties | None:
    """What its class declares; None for a class that declares nothing."""
    return None if type(objective).properties is Objective.properties else objective.properties()


def check_claim_on_policy(objective: Objective) -> None:
    """w = 1 at ratio 1, or `unit_on_policy=False`."""
    claims, chosen = claims_of(objective), calibrated(objective)
    if claims is None:
        return
    on_policy = torch.zeros(4, dtype=torch.float64)
    old = torch.tensor([-1e-3, -0.7, -5.0, -18.0], dtype=torch.float64)
    weights = torch.stack([chosen.weight(column(on_policy, sign, old)) for sign in (-2.0, -0.3, 0.3, 2.0)])
    found = bool(torch.isclose(weights, torch.ones_like(weights), rtol=1e-12).all())
    text = f"unit_on_policy = {claims.unit_on_policy}, but w at ratio 1 is in [{weights.min():g}, {weights.max():g}]"
    require(found == claims.unit_on_policy, objective, text)


def largest_jump(objective: Objective, sign: float, old: float, highest: float) -> float:
    """The largest jump of w: the steepest steps on a fine grid, bisected down to the resolution of floats.

    Measured as `w / (r + |w|)`, so that growth with the ratio is not mistaken for a jump.
    """

    def measured(x: Tensor) -> Tensor:
        weight = objective.weight(column(x, sign, old)).squeeze(1)
        return weight / (x.exp() + weight.abs())

    grid = linspace(-20, highest, 40001)
    values = measured(grid)
    steepest = values.diff().abs().topk(200).indices
    low, high = grid[steepest], grid[steepest + 1]
    at_low, at_high = values[steepest], values[steepest + 1]
    # 36 halvings of a step of 1e-3 reach 1e-14, about the rounding of x
    for _ in range(36):
        middle = (low + high) / 2
        at_middle = measured(middle)
        in_first_half = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
        low, high = torch.where(in_first_half, low, middle), torch.where(in_first_half, middle, high)
        at_low, at_high = (
            torch.where(in_first_half, at_low, at_middle),
            torch.where(in_first_half, at_middle, at_high),
        )
    return (at_high - at_low).abs().max().item()


def check_claim_continuous(objective: Objective) -> None:
    """A continuous weight has no jump for either sign of A; one declared discontinuous has one."""
    claims, chosen = claims_of(objective), calibrated(objective)
    if claims is None:
        return
    ranges = [(HALF, -HALF), (RARE, 20.0)]
    jump = max(largest_jump(chosen, sign, old, highest) for sign in (-1.0, 1.0) for old, highest in ranges)
    holds = jump < 1e-9 if claims.continuous else jump > 1e-3
    text = f"continuous = {claims.continuous}, but the largest jump of w / (r + |w|) is {jump:.3g}"
    require(holds, objective, text)


def check_claim_bounds(objective: Objective) -> None:
    """w <= `upper_bound`, w >= 0 with `nonnegative`; a bound of inf only if w grows to the limit of the clamp."""
    claims, chosen = claims_of(objective), calibrated(objective)
    if claims is None:
        return
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(2000, generator=generator, dtype=torch.float64)

    x = torch.cat([uniform(-300, 300), uniform(-2, 2)])
    size = torch.cat([uniform(1e-3, 6), uniform(1e-3, 6)])
    advantage = size * torch.cat([uniform(-1, 1), uniform(-1, 1)]).sign()
    # so that π_θ = π_old · r is at most 1
    old = torch.minimum(torch.cat([uniform(-20, -1e-3), uniform(-20, -1e-3)]), -x)
    weight = chosen.weight(column(x, advantage, old)).squeeze(1)
    given = {"log ratio": x, "A": advantage, "log π_old": old}
    # negated, so that a NaN counts as above the bound
    above = ~(weight <= claims.upper_bound * (1 + 1e-12))
    if above.any():
        require(False, objective, f"upper_bound = {claims.upper_bound:g}, but w = {worst(weight, above, **given)}")
    below = weight < 0
    if claims.nonnegative and below.any():
        require(False, objective, f"nonnegative = True, but w = {worst(weight, below, **given)}")
    largest = max(
        chosen.weight(column(linspace(-20, min(-old, 20), 4001), sign, old)).max().item()
        for sign in (-1.0, 1.0)
        for old in (-1e-3, HALF, -6.0, RARE)
    )
    text = f"upper_bound = {claims.upper_bound:g}, but the largest w for log ratios up to 20 is {largest:g}"
    # a weight that only the clamp bounds comes near e^20; a declared bound may be of any size
    holds = largest > 1e4 if math.isinf(claims.upper_bound) else largest <= claims.upper_bound * (1 + 1e-12)
    require(holds, objective, text)


def check_claim_limits(objective: Objective) -> None:
    """w/π as π -> 0 with π_old = 1/2 fixed, from w/r as a power of r."""
    claims, chosen = claims_of(objective), calibrated(objective)
    if claims is None:
        return
    for name, sign in (("limit_negative", -1.0), ("limit_positive", 1.0)):
        claimed = getattr(claims, name)
        if objective.level == "sequence":
            require(claimed is None, objective, f"{name} = {claimed!r}; expected None at sequence level")
            continue
        x = torch.tensor([-12.0, -16.0, -19.9], dtype=torch.float64)
        kept = chosen.weight(column(x, sign)).squeeze(1) / x.exp()
        numbers = ", ".join(f"{value:.4g}" for value in kept.tolist())
        said = f"w/r at log ratios of {x.tolist()} is {numbers}"
        found = "zero"
        # a weight that is clipped, or has underflowed, has no power: its limit is zero
        if kept[-1] != 0:
            before, power = (kept.abs().log().diff() / x.diff()).tolist()  # kept ~ r^power
            require(abs(power - before) <= 1e-3, objective, f"{said}; expected a power of r, to identify the limit")
            found = "finite" if abs(power) < 1e-3 else ("zero" if power > 0 else "infinite")
        require(found == claimed, objective, f"{name} = {claimed!r}, but it is {found!r}: {said}")


def check_boundaries(objective: Objective) -> None:
    """Between its boundaries w is the ratio that it compares, unless `not_ratio_inside` says why it is not.

    Beyond a boundary that is not infinite w is another: for A < 0 below `low`, for A > 0 above `high`, at some ratio.
    They are [B, T] of the weight's dtype, detached, and low <= high. At token level the log ratio is the token's.
    """
    chosen = calibrated(objective)
    claimed = claims_of(objective) is not None or type(objective).boundaries is not Objective.boundaries
    why, moved, differs = objective.properties().not_ratio_inside, False, False
    acts: dict[str, list[Tensor]] = {"low": [], "high": []}
    batches = [random_batch(B=8, T=9, spread=spread, seed=seed).tokens() for seed, spread in ((0, 0.05), (1, 0.7))]
    for sign in (-1.0, 1.0):
        for old, highest in ((RARE, 19.0), (HALF, -HALF), (-6.0, 6.0)):
            batches.append(column(linspace(-19, highest, 801), sign, old))
    for tokens in batches:
        weight, (compared, low, high) = chosen.weight(tokens), chosen.boundaries(tokens)
        for name, values in (("log_ratio", compared), ("low", low), ("high", high)):
            found, expected = (tuple(values.shape), values.dtype), (tuple(weight.shape), weight.dtype)
            require(found == expected, objective, f"{name} of boundaries is {found}; expected {expected}, as w")
            require(not values.requires_grad, objective, f"{name} of boundaries has a gradient; expected none")
        wrong = tokens.mask & ~(low <= high)
        if wrong.any():
            require(False, objective, f"boundaries: low = {worst(low, wrong, high=high)}; expected low <= high")
        if objective.level == "token":
            same = (compared == tokens.log_ratio) | ~tokens.mask
            require(same.all(), objective, "boundaries: log_ratio is not the log ratio of the token")
        for end, beyond in (
            ("low", tokens.mask & (tokens.advantage < 0) & (compared < low)),
            ("high", tokens.mask & (tokens.advantage > 0) & (compared > high)),
        ):
            acts[end].append(~torch.isclose(weight, compared.exp(), rtol=1e-12, atol=0)[beyond])
        inside = tokens.mask & (tokens.advantage != 0) & (low <= compared) & (compared <= high)
        wrong = inside & ~torch.isclose(weight, compared.exp(), rtol=1e-9, atol=1e-15)
        moved |= bool((inside & (compared != 0)).any())
        differs |= bool(wrong.any())
        if claimed and why is None and wrong.any():
            given = {"log ratio": compared, "low": low, "high": high, "A": tokens.advantage.expand_as(weight)}
            text = f"inside its boundaries w = {worst(weight, wrong, **given)}; expected the ratio, or not_ratio_inside"
            require(False, objective, text)
    for end, none in (("low", "-inf"), ("high", "inf")):
        other = torch.cat(acts[end])
        count = counted(len(other), "token")
        text = f"beyond {end} of its boundaries w is still the ratio at all {count}; expected {end} = {none}"
        require(not len(other) or other.any(), objective, text)
    text = f"not_ratio_inside = {why!r}, but inside its boundaries w is the ratio"
    require(why is None or differs or not moved, objective, text)
