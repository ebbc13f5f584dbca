"""Objectives: how much of the policy gradient to keep at an importance ratio. One file per method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo import registry
from dgpo.objectives import presets
from dgpo.objectives.aspo import ASPO
from dgpo.objectives.bapo import BAPO, BAPOAlgorithm1
from dgpo.objectives.cispo import CISPO, CISPOTwoSided
from dgpo.objectives.dac import DAC
from dgpo.objectives.dgpo import DGPO
from dgpo.objectives.dppo import DPPOKL, DPPOTV
from dgpo.objectives.drpo import DRPO
from dgpo.objectives.gmpo import GMPO
from dgpo.objectives.gppo import CEGPPO, GPPO
from dgpo.objectives.grpo import GRPO
from dgpo.objectives.gspo import GSPO
from dgpo.objectives.importance_sampling import IS
from dgpo.objectives.maspo import MASPO
from dgpo.objectives.objective import Boundaries, Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.objectives.sapo import SAPO, SAPOUnilateral
from dgpo.objectives.vespo import VESPO
from dgpo.registry import build

OBJECTIVES: dict[str, type[Objective]] = {
    "dgpo": DGPO,
    "maspo": MASPO,
    "grpo": GRPO,
    "is": IS,
    "cispo": CISPO,
    "cispo_two_sided": CISPOTwoSided,
    "gppo": GPPO,
    "ce_gppo": CEGPPO,
    "aspo": ASPO,
    "sapo": SAPO,
    "sapo_unilateral": SAPOUnilateral,
    "dac": DAC,
    "bapo": BAPO,
    "bapo_algorithm1": BAPOAlgorithm1,
    "gspo": GSPO,
    "gmpo": GMPO,
    "vespo": VESPO,
    "dppo_tv": DPPOTV,
    "dppo_kl": DPPOKL,
    "drpo": DRPO,
}

ELSEWHERE = {
    "dapo": "the preset 'dapo', or 'grpo' with eps_high=0.28",
    "dr_grpo": "the preset 'dr_grpo', or 'grpo' with another aggregation and advantage",
    "ppo": "'grpo'",
    "ppo_clip": "'grpo'",
    "vanilla": "'grpo' with dual_clip=3",
    "dual_clip": "'grpo' with dual_clip",
    "regular": "'grpo'",
    "bnpo": "'grpo'; its average over a micro-batch is no method, see the aggregations",
    "luspo": "'gspo' with the aggregation 'seq-mean-token-sum-norm', length=1",
    "importance_sampling": "'is'",
    "geo_mean": "'gmpo'",
    "dcpo": "'dac', with the advantage 'smooth'",
    "dppo": "'dppo_tv' or 'dppo_kl'",
    "gspo_token": "'gspo', whose gradient is the same",
    "drgrpo": "the preset 'dr_grpo', or 'grpo' with another aggregation and advantage",
    "tis": "the correction 'truncate', beside any objective",
    "mis": "the correction 'band', beside any objective",
    "icepop": "the correction 'band', beside any objective",
    "rloo": "the advantage 'leave_one_out'",
    "reinforce": "'is', and any other while every ratio is 1",
    "reinforce++": "'grpo'; nearest to its advantage is scale_rewards='batch'",
    "reinforce_plus_plus": "'grpo'; nearest to its advantage is scale_rewards='batch'",
    "lite_ppo": "'grpo' with scale_rewards='batch'",
}
"""Names that users bring from papers and frameworks, and what they are called here."""

__all__ = [
    "ASPO",
    "BAPO",
    "BAPOAlgorithm1",
    "Boundaries",
    "CEGPPO",
    "CISPO",
    "CISPOTwoSided",
    "DAC",
    "DGPO",
    "DPPOKL",
    "DPPOTV",
    "DRPO",
    "GMPO",
    "GPPO",
    "GRPO",
    "GSPO",
    "IS",
    "MASPO",
    "OBJECTIVES",
    "Objective",
    "Paper",
    "Properties",
    "Read",
    "SAPO",
    "SAPOUnilateral",
    "VESPO",
    "check_name",
    "make",
    "presets",
]


def make(name: str | Mapping[str, Any], **fields: Any) -> Objective:
    """Build an objective of the registry: `make("dgpo", n=2, m=2)`, or all in one text, `make("dgpo:n=2,m=2")`.

    Args:
        name: as `dgpo.registry.parse` takes it.
        fields: those that are not in `name`.

    Raises:
        ValueError: unknown name or field, with the nearest known one; or a field outside its range.
    """
    return build("objective", OBJECTIVES, name, fields, ELSEWHERE)


def check_name(name: str) -> None:
    """Raise ValueError for an unknown name, with the nearest known one, or what that method is called here."""
    registry.check_name("objective", OBJECTIVES, name, ELSEWHERE)
