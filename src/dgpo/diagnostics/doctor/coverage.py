"""What the rules could read: without it, the doctor would find nothing wrong with an empty file."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dgpo.diagnostics.doctor.case import Case
from dgpo.runs.log import KEYS
from dgpo.runs.run import Run

TOKENS = "tokens"
"""The name of the recorded tokens beside the quantities of `KEYS`."""

FEWEST = 3
"""Points below which no rule says anything of a curve."""

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
"""What the rules ask for -> the quantities any of which serves."""


def seen(source: str | os.PathLike[str] | Run | Case) -> dict[str, int]:
    """What of a run the rules can read: quantity of `KEYS` -> logged points, and `TOKENS` -> recorded updates.

    Quantities that were never logged are not in it; it is empty where the rules have nothing to go by.

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
    """Whether that is enough for a rule to say anything: recorded tokens, or some curve of `FEWEST` points."""
    return TOKENS in found or max(found.values(), default=0) >= FEWEST


def covered(found: Mapping[str, int]) -> str:
    """One line: what was read, with its points, and what rules would need but is not there."""
    if not can_tell(found):
        few = f"at most {max(found.values())} points of anything, and a rule needs {FEWEST}" if found else ""
        return f"cannot tell: {few or 'none of the quantities that the rules read is in this log'}"
    read = ", ".join(f"{name} ({n} {'updates' if name == TOKENS else 'points'})" for name, n in found.items())
    missing = [words for words, names in NEEDED.items() if not any(name in found for name in names)]
    return f"read: {read}" + (f"; not there: {', '.join(missing)}" if missing else "")
