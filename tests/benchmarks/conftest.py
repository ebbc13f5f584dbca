"""benchmarks/gpu.sh runs its modules as the package `gpu`, with benchmarks/ on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
