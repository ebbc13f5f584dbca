"""Training with TRL: `DGPOConfig` and `DGPOTrainer` take the places of `GRPOConfig` and `GRPOTrainer`."""

from dgpo.installation import require

# before anything of theirs is imported: another TRL fails in the middle of a run, on a name that it does not have
require("dgpo.training needs", "train", "torch", "trl", "transformers", "datasets")
import trl as _trl  # noqa: F401

require("dgpo.training needs", "train", "trl", imported=True)

from dgpo.training.config import DGPOConfig
from dgpo.training.trainer import DGPOTrainer
from dgpo.warning import ignore_renamings

ignore_renamings()

__all__ = ["DGPOConfig", "DGPOTrainer"]
