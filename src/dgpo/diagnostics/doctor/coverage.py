"""What the rules could read, so that an empty file does not pass as a healthy run."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.noise import FEWEST
from dgpo.diagnostics.doctor.progress import LONG_ENOUGH
from dgpo.runs.log import KEYS
from dgpo.runs.run import Run

TOKENS = "tokens"
"""The name of the recorded tokens beside the quantities of `KEYS`."""

NEEDED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "reward": (("reward",), "whether it learns", "no reward"),
    "reward spread": (
        ("zero_std", "reward_std", "reward_max", "mixed_groups", "advantage_max", "skipped"),
        "how many groups give no gradient",
        "no spread of the rewards",
    ),
    "entropy": (("entropy",), "whether the policy still explores", "no entropy"),
    "grad_norm": (("grad_norm",), "whether the gradient jumps", "no gradient norm"),
    "KL or clip fraction": (
        ("kl_old", "mean_log_ratio", "clipped"),
        "how far updates move away from the samples",
        "no KL to the old policy and no clip fraction",
    ),
    "KL to the reference": (
        ("kl_reference",),
        "whether the policy drifts away from the reference",
        "no KL to the reference",
    ),
    "learning rate": (("learning_rate",), "whether the schedule is right", "no learning rate"),
    "truncated": (("truncated",), "how many responses are cut off", "no share of truncated responses"),
    "length": (("length",), "whether responses grow or shrink", "no length of the responses"),
    "weights": (("weight_max", "ess"), "whether a few tokens hold the gradient", "no weights"),
    "sampler mismatch": (
        ("kl_sampler", "sampler_difference", "sampler_probability", "kl_sampler_and_old"),
        "whether the sampler is the policy",
        "no comparison with the sampler's log-probs",
    ),
    TOKENS: ((TOKENS,), "whether the loss is normalised as it should be", "no recorded tokens"),
}
"""What the rules need -> the quantities that provide it, any one of which is enough; what it is needed to tell; and
what is missing without it."""

MOST_LISTED = 4
"""Questions that are listed one by one; more are grouped by reason."""

CORE = "reward"
"""Without it no run is called healthy: nothing else tells whether a run learns."""


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


def unknown(found: Mapping[str, int]) -> dict[str, str]:
    """What cannot be told of a run -> what its log lacks for it.

    Args:
        found: as `seen` gives it.
    """
    lacking = {}
    for words, (names, question, missing) in NEEDED.items():
        points = max((found.get(name, 0) for name in names), default=0)
        if points == 0:
            lacking[question] = missing if words == TOKENS else f"{missing} in the log"
        elif points < FEWEST and words != TOKENS:
            lacking[question] = f"{words} at {counted(points, 'step')} only, and a rule needs {FEWEST}"
    points = found.get(CORE, 0)
    if FEWEST <= points < LONG_ENOUGH:
        lacking["whether the reward rises"] = f"{counted(points, 'point')} of it, and a trend needs {LONG_ENOUGH}"
    return lacking


def lacking(found: Mapping[str, int]) -> dict[str, str]:
    """As `unknown`, but what is missing grouped by reason if there is much of it: reason -> what it holds for.

    Args:
        found: as `seen` gives it.
    """
    each = unknown(found)
    if len(each) <= MOST_LISTED:
        return each
    points = {words: max((found.get(name, 0) for name in names), default=0) for words, (names, *_) in NEEDED.items()}
    few = [f"{words} ({n})" for words, n in points.items() if 0 < n < FEWEST and words != TOKENS]
    grouped = {
        "not in the log": ", ".join(words for words, n in points.items() if n == 0 and words != TOKENS),
        "not recorded": "" if points[TOKENS] else TOKENS,
        f"too few points, of {FEWEST} needed": ", ".join(few),
    }
    trend = "whether the reward rises"
    return {why: what for why, what in grouped.items() if what} | ({trend: each[trend]} if trend in each else {})


def can_tell(found: Mapping[str, int]) -> bool:
    """Whether "nothing found" would mean anything: there are recorded tokens, or a reward at `FEWEST` steps."""
    return TOKENS in found or found.get(CORE, 0) >= FEWEST


def covered(found: Mapping[str, int], *, listed: bool = True) -> str:
    """One line: what was read, with the number of points, and what the rules need but is missing.

    Args:
        found: as `seen` gives it.
        listed: name every quantity that was read; otherwise their number, and not what is missing.
    """
    read = ", ".join(f"{name} ({counted(n, 'update' if name == TOKENS else 'point')})" for name, n in found.items())
    if not listed:
        logged = sum(name != TOKENS for name in found)
        read = counted(logged, "quantity", "quantities") + " of the log"
        if TOKENS in found:
            read += f" and the tokens of {counted(found[TOKENS], 'update')}"
    if not can_tell(found):
        if not found:
            return "cannot tell: none of the quantities that the rules read is in this log"
        few = found.get(CORE, 0)
        why = f"a reward at {counted(few, 'step')} only, and a rule needs {FEWEST}" if few else "no reward in this log"
        return f"cannot tell: {why}; read: {read}"
    missing = [words for words, (names, *_) in NEEDED.items() if not any(name in found for name in names)]
    return f"read: {read}" + (f"; not there: {', '.join(missing)}" if missing and listed else "")
