"""Ratios between rows of a table, in one definition for all of them: the quotient of two medians over rounds.

So a ratio agrees with the seconds beside it, and with every other ratio to the same baseline. Its range is that of the
quotients within one round, which a slow phase of the machine does not move as it moves seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Ratio:
    """Of one row and its baseline."""

    seconds: float
    """Median of the row over rounds."""
    times: float
    """The quotient of the two medians."""
    low: float
    high: float
    """The smallest and the largest quotient within a round."""


def times_as_fast(rounds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Ratio]:
    """Name -> the baseline's median over its own.

    Args:
        rounds: name -> seconds of every round; the rounds of all names are the same ones.
        baseline: one of the names.

    Raises:
        ValueError: the baseline is not among them, or a row has another number of rounds.
    """
    reference = _reference(rounds, baseline)
    return {name: _quotient(seconds, reference, seconds) for name, seconds in rounds.items()}


def times_as_long(rounds: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Ratio]:
    """Name -> its own median over the baseline's; arguments and errors as of `times_as_fast`."""
    reference = _reference(rounds, baseline)
    return {name: _quotient(seconds, seconds, reference) for name, seconds in rounds.items()}


def _reference(rounds: Mapping[str, Sequence[float]], baseline: str) -> Sequence[float]:
    if baseline not in rounds:
        raise ValueError(f"baseline = {baseline!r} was not measured; expected one of {', '.join(rounds)}")
    for name, seconds in rounds.items():
        if len(seconds) != len(rounds[baseline]):
            expected = f"{len(rounds[baseline])}, as many as the baseline {baseline}"
            raise ValueError(f"{name} has {len(seconds)} rounds; expected {expected}")
    return rounds[baseline]


def _quotient(own: Sequence[float], over: Sequence[float], under: Sequence[float]) -> Ratio:
    within = [one / other for one, other in zip(over, under, strict=True)]
    return Ratio(median(own), median(over) / median(under), min(within), max(within))
