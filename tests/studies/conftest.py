"""The modules of the studies are imported as their scripts import them: by their own names."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[2] / "studies" / study) for study in ("bias", "atlas", "real_model")]
