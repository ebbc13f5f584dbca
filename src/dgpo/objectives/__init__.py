"""Objectives: how much of the policy gradient to keep at an importance ratio. One file per method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo import registry
from dgpo.imports import is_path, path_of, split
from dgpo.objectives import presets, third_party
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
from dgpo.registry import build, parse

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
    "find",
    "find_recorded",
    "importable_name",
    "make",
    "name_of",
    "presets",
]


def make(name: str | Mapping[str, Any], **fields: Any) -> Objective:
    """Build an objective: `make("dgpo", n=2, m=2)`, or all in one text, `make("dgpo:n=2,m=2")`.

    Args:
        name: as `dgpo.registry.parse` takes it; the name in it as `find` takes it.
        fields: those that are not in `name`.

    Raises:
        ValueError: unknown name or field, with the nearest known one; or a field outside its range.
    """
    chosen, given = parse("objective", name)
    return build("objective", {chosen: find(chosen)}, {"name": chosen, **given}, fields)


def find(name: str) -> type[Objective]:
    """The class of an objective.

    Args:
        name: in `OBJECTIVES`; or a name that an installed package publishes in the entry point group `dgpo.objectives`;
            or the import path of a class, `package.module:Class`, which executes that module.

    Raises:
        ValueError: an unknown name, with the nearest known one, or what that method is called here; a module or class
            that does not exist or is not an objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    published = third_party.published()
    if name in published:
        return third_party.of_package(published[name])
    known = {**OBJECTIVES, **published}
    # neither `grpo:eps_low`, a field without its value, nor `dr.grpo`, another spelling of a known name
    if is_path(name) and split(name)[0] not in known and registry.plain(name) not in known | ELSEWHERE:
        return third_party.by_path(name)
    raise registry.unknown("objective", known, name, ELSEWHERE)


def importable_name(cls: type[Objective]) -> str:
    """`name_of` a class, after a look whether `find` gives that class back.

    Raises:
        ValueError: it does not, as for a class that is defined inside a function; or it is not a frozen dataclass.
    """
    name = name_of(cls)
    if "<locals>" in name or find(name) is not cls:
        raise ValueError(
            f"objective {name}: the class cannot be imported by this name, under which a run is recorded and resumed; "
            "expected a class at the top level of a module or script"
        )
    return name


def find_recorded(name: str) -> type[Objective] | None:
    """The class of a name that stands in a file, which somebody else may have written; None where it is not known.

    Executes no module that only the file names: the class of an import path is found if this process has imported its
    module already, because the user named it elsewhere or runs the script that defines it.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if name in (published := third_party.published()):
        try:
            return third_party.of_package(published[name])
        except ValueError:
            return None
    return third_party.if_loaded(name) if is_path(name) else None


def name_of(cls: type[Objective]) -> str:
    """What `find` takes for a class: its name in the registry or of its package's entry point, else its import path."""
    if (found := next((name for name, known in OBJECTIVES.items() if known is cls), None)) is not None:
        return found
    path = path_of(cls)
    return next((name for name, entry in third_party.published().items() if entry.value == path), path)
