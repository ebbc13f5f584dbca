"""Diagnostics: what happened in a run, from what it recorded. Needs torch; files of tokens need pyarrow.

Beside the names below: `replay.replay` (other objectives on recorded tokens), `doctor.diagnose`, and the exact
laboratory in `tabular` and `stale`.
"""

from dgpo.diagnostics.bias import PointwiseBias, pointwise_bias
from dgpo.diagnostics.model_bias import GradientBias, gradient_bias
from dgpo.diagnostics.recorder import Recorder
from dgpo.diagnostics.recording import record
from dgpo.diagnostics.run import Recorded, Run, load, read, read_metrics
from dgpo.diagnostics.weights import Description, describe, histogram, over_generation

__all__ = [
    "Description",
    "GradientBias",
    "PointwiseBias",
    "Recorded",
    "Recorder",
    "Run",
    "describe",
    "gradient_bias",
    "histogram",
    "load",
    "over_generation",
    "pointwise_bias",
    "read",
    "read_metrics",
    "record",
]
