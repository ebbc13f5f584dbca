"""Evaluation: generate and grade completions; avg@k, pass@k and more with intervals; result files.

transformers, vllm, openai, scipy and rich are imported by the functions that need them, so that importing this package
is cheap.
"""

from dgpo.evaluation.backends import (
    BACKENDS,
    Backend,
    Completion,
    OpenAIBackend,
    Request,
    Sampling,
    TransformersBackend,
    VLLMBackend,
)
from dgpo.evaluation.estimates import avg_at_k, best_at_k, maj_at_k, pass_at_k, summarise
from dgpo.evaluation.evaluate import evaluate
from dgpo.evaluation.folder import write
from dgpo.evaluation.intervals import interval, interval_of_differences
from dgpo.evaluation.sampling import generate
from dgpo.evaluation.saved import evaluate_saved
from dgpo.evaluation.suite import Suite
from dgpo.evaluation.tables import markdown, table
from dgpo.runs.results import BenchmarkResult, Estimate, Evaluation

__all__ = [
    "BACKENDS",
    "Backend",
    "BenchmarkResult",
    "Completion",
    "Estimate",
    "Evaluation",
    "OpenAIBackend",
    "Request",
    "Sampling",
    "Suite",
    "TransformersBackend",
    "VLLMBackend",
    "avg_at_k",
    "best_at_k",
    "evaluate",
    "evaluate_saved",
    "generate",
    "interval",
    "interval_of_differences",
    "maj_at_k",
    "markdown",
    "pass_at_k",
    "summarise",
    "table",
    "write",
]
