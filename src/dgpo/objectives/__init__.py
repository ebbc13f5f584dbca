"""Objectives: how much of the policy gradient to keep at an importance ratio. One file per method."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dgpo import registry
from dgpo.imports import is_path, path_of, split
from dgpo.objectives import presets, third_party
from dgpo.objectives.objective import Boundaries, Objective, Penalty, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.registry import build, parse

if TYPE_CHECKING:  # for type checkers and editors: written by `make figures` from what is registered
    from dgpo.objectives.aspo import ASPO as ASPO
    from dgpo.objectives.bapo import BAPO as BAPO
    from dgpo.objectives.bapo import BAPOAlgorithm1 as BAPOAlgorithm1
    from dgpo.objectives.cispo import CISPO as CISPO
    from dgpo.objectives.cispo import CISPOTwoSided as CISPOTwoSided
    from dgpo.objectives.covariance import ClipCov as ClipCov
    from dgpo.objectives.covariance import KLCov as KLCov
    from dgpo.objectives.cppo import CPPO as CPPO
    from dgpo.objectives.dac import DAC as DAC
    from dgpo.objectives.dgpo import DGPO as DGPO
    from dgpo.objectives.dispo import DISPO as DISPO
    from dgpo.objectives.dppo import DPPOKL as DPPOKL
    from dgpo.objectives.dppo import DPPOTV as DPPOTV
    from dgpo.objectives.dro import DRO as DRO
    from dgpo.objectives.drpo import DRPO as DRPO
    from dgpo.objectives.fipo import FIPO as FIPO
    from dgpo.objectives.gmpo import GMPO as GMPO
    from dgpo.objectives.gppo import CEGPPO as CEGPPO
    from dgpo.objectives.gppo import GPPO as GPPO
    from dgpo.objectives.grpo import GRPO as GRPO
    from dgpo.objectives.gspo import GSPO as GSPO
    from dgpo.objectives.importance_sampling import IS as IS
    from dgpo.objectives.m2po import M2PO as M2PO
    from dgpo.objectives.maspo import MASPO as MASPO
    from dgpo.objectives.minpro import MinPRO as MinPRO
    from dgpo.objectives.p3o import P3O as P3O
    from dgpo.objectives.prime_rl import PrimeRL as PrimeRL
    from dgpo.objectives.prime_rl import PrimeRLIPO as PrimeRLIPO
    from dgpo.objectives.sapo import SAPO as SAPO
    from dgpo.objectives.sapo import SAPOUnilateral as SAPOUnilateral
    from dgpo.objectives.topr import TOPR as TOPR
    from dgpo.objectives.topr import TOPRSequence as TOPRSequence
    from dgpo.objectives.up import UP as UP
    from dgpo.objectives.vespo import VESPO as VESPO

OBJECTIVES: dict[str, type[Objective]] = {}
"""Name -> class, for every class in the modules of this package that declares a name, in alphabetical order."""


def make(name: str | Mapping[str, Any], **fields: Any) -> Objective:
    """Build an objective: `make("dgpo", n=2, m=2)`, or all in one text, `make("dgpo:n=2,m=2")`.

    Args:
        name: as accepted by `dgpo.registry.parse`; the name in it as accepted by `find`.
        fields: further fields.

    Raises:
        ValueError: unknown name or field, with the nearest known one; or a field outside its range.
    """
    chosen, given = parse("objective", name)
    # a registry of one: `find` also knows names outside of OBJECTIVES
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
    error = registry.unknown("objective", known, name, ELSEWHERE)
    if name.isidentifier() and name[0].isupper() and registry.plain(name) not in known | ELSEWHERE:
        raise ValueError(f"{error}; an objective of your own is module:Class, such as my_module:{name}")
    raise error


def importable_name(cls: type[Objective]) -> str:
    """`name_of` a class, after checking that `find` returns that class.

    Raises:
        ValueError: if it does not, as for a class defined inside a function, or if it is not a frozen dataclass.
    """
    name = name_of(cls)
    if "<locals>" in name or find(name) is not cls:
        raise ValueError(
            f"objective {name}: the class cannot be imported by this name, under which a run is recorded and resumed; "
            "expected a class at the top level of a module or script"
        )
    return name


def find_recorded(name: str) -> type[Objective] | None:
    """The class of a name read from an untrusted file; None if it is unknown.

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
    """The name by which `find` returns a class: in the registry, of an entry point, or else its import path."""
    if (found := next((name for name, known in OBJECTIVES.items() if known is cls), None)) is not None:
        return found
    path = path_of(cls)
    others = {name: entry for name, entry in third_party.published().items() if name not in OBJECTIVES}
    return next((name for name, entry in others.items() if f"{entry.module}:{entry.attr}" == path), path)


def _discovered() -> dict[str, type[Objective]]:
    """Import every module of this package and collect the classes with a name.

    Raises:
        TypeError: two classes declare the same name.
    """
    found: dict[str, type[Objective]] = {}
    for path in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(path.name)
        for cls in vars(module).values():
            # a class that a module imports belongs to the module that defines it
            if isinstance(cls, type) and issubclass(cls, Objective) and cls.name and cls.__module__ == path.name:
                if cls.name in found:
                    other = found[cls.name]
                    raise TypeError(
                        f"the objectives {other.__module__}.{other.__name__} and {path.name}.{cls.__name__} both "
                        f"declare the name {cls.name!r}"
                    )
                found[cls.name] = cls
    return dict(sorted(found.items()))


OBJECTIVES |= _discovered()  # last, because the modules may import what is above
globals().update({cls.__name__: cls for cls in OBJECTIVES.values()})

ELSEWHERE: dict[str, str] = {
    "dapo": "the preset 'dapo', or 'grpo' with eps_high=0.28",
    "dr_grpo": "the preset 'dr_grpo', or 'grpo' with another aggregation and advantage",
    "drgrpo": "the preset 'dr_grpo', or 'grpo' with another aggregation and advantage",
    "luspo": "the preset 'luspo', or 'gspo' with the aggregation 'seq-mean-token-sum-norm:length=1'",
    "tis": "the correction 'truncate', with any objective",
    "mis": "the correction 'band', with any objective",
    "icepop": "the correction 'band', with any objective",
    "kpop": "the correction 'kpop', with any objective",
    "trm": "the correction 'reject', with any objective",
    "rloo": "the advantage 'leave_one_out'",
    "maxrl": "the advantage 'maxrl', with any objective",
    "gdpo": "the advantage 'gdpo', with any objective",
    "asymre": "the advantage 'asymre', with any objective",
    "qae": "the advantage 'qae', with any objective",
    "nsr": "the advantage 'nsr', with any objective",
    "w_reinforce": "the advantage 'w_reinforce', with any objective",
    **{word: f"{name!r}{more}" for name, cls in OBJECTIVES.items() for word, more in cls.aliases.items()},
}
"""Names in papers and frameworks -> what they are called here: names that belong to no single method, and the `aliases`
that the methods declare."""

__all__ = [
    "Boundaries",
    "OBJECTIVES",
    "Objective",
    "Paper",
    "Penalty",
    "Properties",
    "Read",
    "find",
    "find_recorded",
    "importable_name",
    "make",
    "name_of",
    "presets",
    *sorted(cls.__name__ for cls in OBJECTIVES.values()),
]
