"""The public checker: a sound objective passes, and for every check there is a broken one that fails it by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from dgpo import TokenBatch
from dgpo.objectives import CISPO, Boundaries, Objective, Penalty, Properties
from dgpo.testing import CHECKS, check_objective

SOUND = Properties(continuous=True, upper_bound=2.0, limit_negative="finite", limit_positive="finite")


@dataclass(frozen=True, kw_only=True)
class Sound(Objective):
    """w = min(r, cap)."""

    cap: float = 2.0

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.log_ratio.clamp(max=math.log(self.cap)).exp()

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, high=math.log(self.cap))

    def properties(self) -> Properties:
        return SOUND


@dataclass(frozen=True, kw_only=True)
class Silent(Objective):
    """Declares nothing, so nothing is asked of its claims."""

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.log_ratio < -1, 0.0, 2 * tokens.ratio)


@dataclass(frozen=True, kw_only=True)
class WithPotential(Sound):
    """φ = r up to the cap, and linear in the log ratio beyond it."""

    def potential(self, tokens: TokenBatch) -> Tensor:
        below = tokens.log_ratio.clamp(max=math.log(self.cap))
        return below.exp() * (1 + tokens.log_ratio - below)


@pytest.mark.parametrize("objective", [Sound(), Silent(), WithPotential()], ids=repr)
def test_a_sound_objective_passes(objective: Objective) -> None:
    check_objective(objective)


def test_a_bound_may_be_large() -> None:
    """Ratios go up to e^20 = 4.9e8."""
    for cap in (5e3, 2e4, 1e8):
        CHECKS["claim_bounds"](CISPO(cap=cap))
        with pytest.raises(AssertionError, match="upper_bound = 2, but"):
            CHECKS["claim_bounds"](Sound(cap=cap))


# --- broken ones ------------------------------------------------------------------------------------------------------


class Undecorated(Sound):
    """Its annotation is no field."""

    other: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class NotEqual(Sound):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


@dataclass(frozen=True, kw_only=True)
class Unhashable(Sound):
    caps: list[float] = field(default_factory=list)


CALLS: Iterator[int] = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Counts(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return super().weight(tokens) + next(CALLS)


@dataclass(frozen=True, kw_only=True)
class Remembers(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        vars(self)["seen"] = vars(self).get("seen", 0) + 1
        return super().weight(tokens)


@dataclass(frozen=True, kw_only=True)
class AdaptsInSecret(Sound):
    def calibrate(self, tokens: TokenBatch) -> Self:
        return replace(self, cap=1 + float(tokens.ratio.mean()))


@dataclass(frozen=True, kw_only=True)
class AdaptsForEver(AdaptsInSecret):
    @property
    def reads(self) -> frozenset[Any]:
        return frozenset({"ratio", "batch"})


@dataclass(frozen=True, kw_only=True)
class Attached(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        with torch.enable_grad():
            return tokens.log_ratio.clamp(max=math.log(self.cap)).exp()


@dataclass(frozen=True, kw_only=True)
class SingleFloats(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return super().weight(tokens).float()


@dataclass(frozen=True, kw_only=True)
class NotANumber(Sound):
    """0 · inf far from the policy."""

    def weight(self, tokens: TokenBatch) -> Tensor:
        far = tokens.log_ratio > 15
        return torch.where(far, 0.0 * (1e30 * tokens.ratio.square()).square().exp(), super().weight(tokens))


@dataclass(frozen=True, kw_only=True)
class SeesTheWidth(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return super().weight(tokens) / tokens.mask.shape[1]


@dataclass(frozen=True, kw_only=True)
class SeesTheRow(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        rows = torch.arange(len(tokens.mask), dtype=tokens.log_ratio.dtype, device=tokens.mask.device)
        return super().weight(tokens) * (1 + rows).unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class WaitsForTheDevice(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        if tokens.ratio.max().item() > 1e30:
            return torch.zeros_like(tokens.ratio)
        return super().weight(tokens)


@dataclass(frozen=True, kw_only=True)
class Rewarded(Sound):
    @property
    def penalises(self) -> bool:
        return True

    def penalty(self, tokens: TokenBatch) -> Penalty:
        return Penalty.quadratic(tokens, -0.1)


@dataclass(frozen=True, kw_only=True)
class WrongPull(Rewarded):
    def penalty(self, tokens: TokenBatch) -> Penalty:
        return Penalty(tokens.log_ratio.square(), tokens.log_ratio)


@dataclass(frozen=True, kw_only=True)
class ReadsTheSize(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return super().weight(tokens) * tokens.advantage.abs().clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class ReadsTheProbability(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return super().weight(tokens) * (1 - tokens.old_logprob.exp())


@dataclass(frozen=True, kw_only=True)
class ReadsTheResponse(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return super().weight(tokens) / torch.where(tokens.mask, tokens.ratio, 0.0).sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class DeclaresNonsense(Sound):
    @property
    def reads(self) -> frozenset[Any]:
        return frozenset({"ratio", "weather"})


@dataclass(frozen=True, kw_only=True)
class Claims(Sound):
    """A sound weight with any claims."""

    claims: Properties = SOUND
    low: float = -math.inf
    high: float = math.log(2)

    def properties(self) -> Properties:
        return self.claims

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Doubled(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return 2 * super().weight(tokens)


@dataclass(frozen=True, kw_only=True)
class Negative(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.log_ratio < -1, -1e-3, super().weight(tokens))


@dataclass(frozen=True, kw_only=True)
class Jumps(Sound):
    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.log_ratio > 1.2345, 0.0, super().weight(tokens))


@dataclass(frozen=True, kw_only=True)
class ComparesTheProbability(Sound):
    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.old_logprob)


@dataclass(frozen=True, kw_only=True)
class SingleFloatBoundaries(Sound):
    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        found = super().boundaries(tokens)
        return found._replace(low=found.low.float())


@dataclass(frozen=True, kw_only=True)
class WrongSlope(Sound):
    def potential(self, tokens: TokenBatch) -> Tensor:
        return 1.01 * tokens.ratio


@dataclass(frozen=True, kw_only=True)
class DetachedPotential(Sound):
    def potential(self, tokens: TokenBatch) -> Tensor:
        return 2 * self.weight(tokens)


@dataclass(frozen=True, kw_only=True)
class HiddenPotential(WithPotential):
    """A potential whose autograd path says something else than its values."""

    def potential(self, tokens: TokenBatch) -> Tensor:
        shown = super().potential(tokens)
        return shown + (0.1 * tokens.log_ratio.square()).detach()


@dataclass(frozen=True, kw_only=True)
class PotentialOfTheRow(WithPotential):
    """Differences of single tokens are right, those of a response are not."""

    def potential(self, tokens: TokenBatch) -> Tensor:
        others = torch.where(tokens.mask, tokens.log_ratio, 0.0).sum(1, keepdim=True) - tokens.log_ratio
        return super().potential(tokens) + others


def claims(**changed: Any) -> Claims:
    return Claims(claims=replace(SOUND, **changed))


BROKEN: list[tuple[str, Objective, str]] = [
    (
        "is_a_value",
        Undecorated(),
        "Undecorated is not a frozen dataclass; decorate it with @dataclass(frozen=True, ",
    ),
    ("is_a_value", NotEqual(), "does not equal"),
    ("is_a_value", Unhashable(), "unhashable"),
    ("keeps_no_state", Counts(), "differ after another batch was seen"),
    ("keeps_no_state", Remembers(), "while it weighed; expected no state"),
    ("calibration", AdaptsInSecret(), "expected itself, or 'batch' in reads"),
    ("calibration", AdaptsForEver(), "which is calibrated again"),
    ("shape_and_dtype", Attached(), "w has a gradient"),
    ("shape_and_dtype", SingleFloats(), "torch.float32); expected ((5, 7), torch.float64)"),
    ("finite", NotANumber(), "w = nan at log ratio = "),
    ("padding", SeesTheWidth(), "w changes when the batch is padded"),
    ("order_of_rows", SeesTheRow(), "w changes with the order of the responses"),
    ("masked_positions", Counts(), "the loss changes with nan at masked positions"),
    ("advantage_of_zero", ReadsTheResponse(), "the loss changes with tokens of A = 0 at a log ratio of -250"),
    ("penalty", Rewarded(), "expected 0 or greater"),
    ("penalty", WrongPull(), "the slope of its penalty is not the derivative"),
    ("gradient_of_the_loss", Counts(), "the weight in the loss is not weight, with token-mean"),
    ("no_host_synchronisation", WaitsForTheDevice(), "reads a value on the host"),
    ("reads", ReadsTheSize(), "w changes with 'advantage_size' alone"),
    ("reads", ReadsTheProbability(), "w changes with 'old_logprob' alone"),
    ("reads", ReadsTheResponse(), "w changes with 'response' alone"),
    ("reads", DeclaresNonsense(), "reads has ['weather']; expected some of ratio,"),
    ("claim_on_policy", claims(unit_on_policy=False), "unit_on_policy = False, but w at ratio 1 is in [1, 1]"),
    ("claim_on_policy", Doubled(), "unit_on_policy = True, but w at ratio 1 is in [2, 2]"),
    ("claim_continuous", Jumps(), "continuous = True, but the largest jump"),
    ("claim_continuous", claims(continuous=False), "continuous = False, but the largest jump"),
    ("claim_bounds", claims(upper_bound=1.5), "upper_bound = 1.5, but w = "),
    ("claim_bounds", claims(upper_bound=math.inf), "upper_bound = inf, but the largest w for log ratios up to 20 is 2"),
    ("claim_bounds", Negative(), "nonnegative = True, but w = -0.001"),
    ("claim_limits", claims(limit_negative="zero"), "limit_negative = 'zero', but it is 'finite'"),
    ("claim_limits", claims(limit_positive="infinite"), "limit_positive = 'infinite', but it is 'finite'"),
    ("boundaries", Claims(high=math.inf), "inside its boundaries w = 2 at log ratio = "),
    ("boundaries", Claims(low=1.0), "low = 1 at high = 0.693147"),
    ("boundaries", Claims(low=-1.0), "beyond low of its boundaries w is still the ratio at all "),
    ("boundaries", ComparesTheProbability(), "is not the log ratio of the token"),
    (
        "boundaries",
        SingleFloatBoundaries(),
        "low of boundaries is ((8, 9), torch.float32); expected ((8, 9), torch.float6",
    ),
    ("potential", WrongSlope(), "the derivative of potential is not weight"),
    ("potential_by_differences", HiddenPotential(), "finite differences are not its gradient"),
    ("potential_of_responses", PotentialOfTheRow(), "finite differences are not its gradient"),
]


@pytest.mark.parametrize(("name", "objective", "said"), BROKEN, ids=[f"{n}-{type(o).__name__}" for n, o, _ in BROKEN])
def test_every_check_fails_where_it_should(name: str, objective: Objective, said: str) -> None:
    with pytest.raises(AssertionError) as error:
        CHECKS[name](objective)
    assert said in str(error.value)
    assert type(objective).__name__ in str(error.value)


def test_an_error_of_the_weight_itself_is_not_taken_for_a_synchronisation() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Raises(Sound):
        def weight(self, tokens: TokenBatch) -> Tensor:
            raise NotImplementedError("mine")

    with pytest.raises(NotImplementedError, match="mine"):
        CHECKS["no_host_synchronisation"](Raises())


def test_every_check_has_a_broken_objective() -> None:
    assert {name for name, _, _ in BROKEN} == set(CHECKS)


def test_check_objective_raises_for_the_first_failure_and_for_what_is_no_instance() -> None:
    with pytest.raises(AssertionError, match="w has a gradient"):
        check_objective(Attached())
    # not a difference of NaN and NaN, which another check would find
    with pytest.raises(AssertionError, match="w = nan at log ratio = "):
        check_objective(NotANumber())
    with pytest.raises(TypeError, match="objective is the class itself; expected an instance"):
        check_objective(Sound)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="objective is of type str; expected an instance"):
        check_objective("grpo")  # type: ignore[arg-type]
