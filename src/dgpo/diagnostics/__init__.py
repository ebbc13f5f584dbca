"""Diagnostics: analysis of recorded runs. Needs torch; token files need pyarrow.

See also `replay.replay` (other objectives on recorded tokens) and `doctor.diagnose`.
"""

from dgpo.diagnostics.bias import PointwiseBias, pointwise_bias
from dgpo.diagnostics.model_bias import GradientBias, gradient_bias
from dgpo.diagnostics.weights import Description, describe, histogram, over_generation
from dgpo.runs.metrics import read_metrics
from dgpo.runs.recorder import Recorder
from dgpo.runs.run import Run, load
from dgpo.runs.tokens import Recorded, read
from dgpo.runs.write import record

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
