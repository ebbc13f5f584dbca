"""LossSpec: the settings of a loss, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType

import torch
from torch import Tensor

from dgpo import aggregation as aggregations
from dgpo import correction as corrections
from dgpo import kl as estimators
from dgpo import objectives
from dgpo.aggregation import Aggregation, StepTotals
from dgpo.correction import Correction, Given
from dgpo.fields import check_value
from dgpo.objectives import Objective
from dgpo.registry import did_you_mean
from dgpo.tokens import ANCHORS


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """The factors and terms of a policy loss; see `policy_loss`.

    `policy_loss` and `linear_policy_loss` build one from their keywords. Code that computes many losses builds it once
    and calls `loss_of` or `linear_loss_of`, with `dataclasses.replace` for what changes between calls.

    Attributes:
        objective: w and φ.
        aggregation: c.
        correction: ρ; None is 1.
        anchor: the policy that w takes the ratio against: "old" is π_old, "rollout" the sampler μ. With "rollout" the
            ratio π_θ/μ holds the sampler's difference already, so that only a `Given` factor may stand beside it.
        kl: the estimator κ, a name of `kl.ESTIMATORS`.
        kl_coef: >= 0.
        entropy_coef: below 0 a penalty.
        entropy_aggregation: c_H; None takes c.

    Raises:
        ValueError: an unknown estimator or anchor, a coefficient outside its range, a correction beside the anchor
            "rollout".
        TypeError: a factor of another kind.
    """

    objective: Objective
    aggregation: Aggregation
    correction: Correction | None = None
    anchor: str = "old"
    kl: str = "k3"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    entropy_aggregation: Aggregation | None = None

    def __post_init__(self) -> None:
        self._require("objective", Objective, "a name or an instance of Objective")
        self._require("aggregation", Aggregation, "a name or an instance of Aggregation")
        self._require("entropy_aggregation", Aggregation | None, "a name, an instance of Aggregation or None")
        self._require("correction", Correction | None, "a name, an instance of Correction or None")
        check_value("kl_coef", self.kl_coef, "[0, inf)")
        check_value("entropy_coef", self.entropy_coef, "(-inf, inf)")
        estimators.check_estimator(self.kl)
        check_anchor(self.anchor, self.correction)

    def _require(self, name: str, kind: type | UnionType, expected: str) -> None:
        if not isinstance(getattr(self, name), kind):
            raise TypeError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @classmethod
    def of(
        cls,
        *,
        objective: str | Objective,
        aggregation: str | Aggregation,
        correction: str | Correction | None,
        anchor: str = "old",
        kl: str,
        kl_coef: float,
        entropy_coef: float,
        entropy_aggregation: str | Aggregation | None,
    ) -> LossSpec:
        """Build a specification, with names resolved.

        Raises:
            ValueError, TypeError: as the class, and for an unknown name.
        """
        bonus = entropy_aggregation
        return cls(
            objective=objectives.make(objective) if isinstance(objective, str) else objective,
            aggregation=aggregations.make(aggregation) if isinstance(aggregation, str) else aggregation,
            correction=corrections.make(correction) if isinstance(correction, str) else correction,
            anchor=anchor,
            kl=kl,
            kl_coef=kl_coef,
            entropy_coef=entropy_coef,
            entropy_aggregation=aggregations.make(bonus) if isinstance(bonus, str) else bonus,
        )

    @property
    def reads_response(self) -> bool:
        """Whether the gradient at a token reads log-probs of its whole response."""
        return "response" in self.objective.reads or (self.kl_coef != 0 and self.kl in estimators.SEQUENCE_ESTIMATORS)

    @property
    def policy_term_only(self) -> bool:
        """Whether a token with advantage 0 has no gradient: no KL term, entropy bonus or penalty."""
        return self.kl_coef == 0 and self.entropy_coef == 0 and not self.objective.penalises

    def check_call(
        self, totals: StepTotals | None, ref_logprob: Tensor | None, anchor: tuple[str, torch.device]
    ) -> None:
        """Check the arguments of a call against the name and device of its main tensor.

        Raises:
            TypeError: `totals` of another kind.
            ValueError: `totals` on another device, a KL term without `ref_logprob`.
        """
        if totals is not None:
            if not isinstance(totals, StepTotals):
                raise TypeError(f"totals is {totals!r}; expected a StepTotals or None")
            totals.check_device(*anchor)
        if self.kl_coef != 0 and ref_logprob is None:
            raise ValueError("kl_coef != 0 needs ref_logprob [B, T], got None")


def check_anchor(anchor: object, correction: Correction | None) -> None:
    """Raise ValueError for an unknown anchor, or one that leaves nothing to correct beside a correction."""
    if anchor not in ANCHORS:
        raise ValueError(
            f"anchor = {anchor!r} is not known{did_you_mean(anchor, ANCHORS)}; expected one of {', '.join(ANCHORS)}"
        )
    # a factor that was computed elsewhere may be a mask
    if anchor == "rollout" and correction is not None and not isinstance(correction, Given):
        raise ValueError(
            f"anchor = 'rollout' takes the ratio against the sampler, so that correction = {correction!r} would count "
            "the same difference twice; set one of them"
        )
