"""Evaluation: completions of a model, avg@k and pass@k with intervals, result files.

transformers, scipy and rich are imported by the functions that need them, so that importing the room stays cheap.
"""

from dgpo.evaluation.estimates import Estimate, avg_at_k, interval, pass_at_k, summarise
from dgpo.evaluation.evaluate import Evaluation, evaluate
from dgpo.evaluation.results import table, write
from dgpo.evaluation.sampling import Completion, generate

__all__ = [
    "Completion",
    "Estimate",
    "Evaluation",
    "avg_at_k",
    "evaluate",
    "generate",
    "interval",
    "pass_at_k",
    "summarise",
    "table",
    "write",
]
