"""What the rules could read, so that an empty file does not pass as a healthy run."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import FEWEST
from dgpo.runs.log import KEYS
from dgpo.runs.run import Run

TOKENS = "tokens"
"""The name of the recorded tokens beside the quantities of `KEYS`."""

NEEDED: dict[str, tuple[str, ...]] = {
    "reward": ("reward",),
    "reward spread": ("zero_std", "reward_std", "reward_max", "mixed_groups", "advantage_max"),
    "entropy": ("entropy",),
    "grad_norm": ("grad_norm",),
    "KL or clip fraction": ("kl_old", "mean_log_ratio", "clipped"),
    "truncated": ("truncated",),
    "length": ("length",),
    "weights": ("weight_max", "ess"),
    "sampler mismatch": ("kl_sampler", "sampler_difference", "sampler_probability", "kl_sampler_and_old"),
    TOKENS: (TOKENS,),
}
"""What the rules need -> the quantities that provide it; any one is enough."""


def seen(source: str | os.PathLike[str] | Run | Case) -> dict[str, int]:
    """What the rules can read of a run: quantity of `KEYS` -> logged points, and `TOKENS` -> recorded updates.

    Without quantities that were never logged; empty if the rules can read nothing.

    Raises:
        ValueError, FileNotFoundError: as `diagnose`.
    """
    if isinstance(source, Run):
        log, updates = source.log, len(source.updates)
    else:
        case = source if isinstance(source, Case) else Case.of(source)
        log, updates = case.log, len({one.update for one in case.updates})
    series = {name: log[name] for name in KEYS}
    counts = {name: len(one) + len(one.broken) for name, one in series.items()} | {TOKENS: updates}
    return {name: count for name, count in counts.items() if count}


def can_tell(found: Mapping[str, int]) -> bool:
    """Whether any rule can work with it: there are recorded tokens, or a curve of `FEWEST` points."""
    return TOKENS in found or max(found.values(), default=0) >= FEWEST


def covered(found: Mapping[str, int]) -> str:
    """One line: what was read, with the number of points, and what the rules need but is missing."""
    if not can_tell(found):
        few = f"at most {max(found.values())} points of anything, and a rule needs {FEWEST}" if found else ""
        return f"cannot tell: {few or 'none of the quantities that the rules read is in this log'}"
    read = ", ".join(f"{name} ({n} {'updates' if name == TOKENS else 'points'})" for name, n in found.items())
    missing = [words for words, names in NEEDED.items() if not any(name in found for name in names)]
    return f"read: {read}" + (f"; not there: {', '.join(missing)}" if missing else "")
