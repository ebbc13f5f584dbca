"""Training with TRL: `DGPOConfig` and `DGPOTrainer` take the places of `GRPOConfig` and `GRPOTrainer`."""

try:
    import trl as _trl  # noqa: F401
except ImportError as error:
    raise ImportError(
        "dgpo.training needs TRL and its companions, which are not installed: pip install 'dgpo[train]'"
    ) from error

from dgpo.training.config import DGPOConfig
from dgpo.training.trainer import DGPOTrainer

__all__ = ["DGPOConfig", "DGPOTrainer"]
