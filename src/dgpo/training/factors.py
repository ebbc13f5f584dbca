"""What the loss of a run is made of, built once from its configuration and handed to everything that needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dgpo.advantages import Advantage, Read
from dgpo.objectives.conformance import settings_in_trl
from dgpo.spec import LossSpec
from dgpo.training.config import DGPOConfig


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of the policy gradient in a run.

    Attributes:
        spec: w, c, ρ (None where TRL's own correction stands) and the KL term; without the entropy bonus, whose
            coefficient may change.
        advantage: A; None where TRL's own stands.
        trl: TRL's options that give the objective's gradient; empty where none do.
        by_response: whether these have one ratio per response.
    """

    spec: LossSpec
    advantage: Advantage | None
    trl: Mapping[str, Any]
    by_response: bool

    @classmethod
    def of(cls, config: DGPOConfig) -> Factors:
        """Those of a configuration. Raises ValueError as its `make_...` methods do."""
        objective = config.make_objective()
        trl = settings_in_trl(objective)
        by_response = trl.get("importance_sampling_level") == "sequence"
        kl = "k3"
        if config.use_bias_correction_kl:  # TRL weights it by the ratio that its setting has
            kl = "k3_sequence_ratio" if by_response else "k3_ratio"
        spec = LossSpec(
            objective=objective,
            aggregation=config.make_aggregation(),
            correction=config.make_correction(),
            anchor=config.anchor,
            kl=kl,
            kl_coef=config.beta,
        )
        return cls(spec=spec, advantage=config.make_advantage(), trl=trl, by_response=by_response)

    def advantage_reads(self, what: Read) -> bool:
        """Whether the advantage reads the entropies of every update, earlier rewards by prompt, or a teacher."""
        return self.advantage is not None and what in self.advantage.reads


@dataclass(frozen=True, kw_only=True)
class Terms:
    """TRL's terms beside the factors, as its trainer has them at one micro-batch.

    Attributes:
        entropy_coef: of the entropy bonus, now.
        entropy_bonus: whether the run has a bonus, also while an adaptive coefficient is 0.
        sampler_ratio: whether TRL's own correction against the sampler is on.
        off_policy_mask: [B, 1] of advantages, log-probs, the sampler's log-probs and the mask; None where it is off.
        high_entropy_mask: [B, T] bool of entropies and the mask; None where all tokens are kept.
    """

    entropy_coef: float
    entropy_bonus: bool
    sampler_ratio: bool
    off_policy_mask: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None
    high_entropy_mask: Callable[[Tensor, Tensor], Tensor] | None
