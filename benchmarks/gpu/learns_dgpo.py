"""SmolLM2-135M-Instruct learns word problems with DGPO. See learning.py."""

from __future__ import annotations

import sys

from gpu.learning import learn
from gpu.piece import Findings, run


def measure(found: Findings) -> None:
    """One run."""
    learn(found, "dgpo")


if __name__ == "__main__":
    sys.exit(run(measure))
