"""Compare methods over seeds: what a run came to, and the statistics of many runs."""

from dgpo.comparison.outcome import Outcome

__all__ = ["Outcome"]
