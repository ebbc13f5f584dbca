"""A run of a study as a process of `dgpo train`."""

from __future__ import annotations

import shutil
import sys

from dgpo.comparison.cells import CellFolder
from dgpo.training.checkpoint_files import MODEL_FILES, checkpoints


class TrainProcess:
    """How `dgpo compare` runs a cell.

    Args:
        keep_models: whether the weights of a finished run are kept.
    """

    def __init__(self, keep_models: bool) -> None:
        self._keep_models = keep_models

    def command(self, folder: CellFolder) -> list[str]:
        """`dgpo train` with this interpreter, from the last checkpoint; without one, the folder is cleared."""
        # -P: a folder of the working directory that is called like a package must not be imported in its place
        words = [sys.executable, "-P", "-m", "dgpo", "train", "--config", str(folder.config)]
        if checkpoints(folder.train):
            return [*words, "--resume"]
        folder.clear()
        return words

    def finished(self, folder: CellFolder) -> bool:
        """Whether the model was saved, which a run that was stopped does not do."""
        return any((folder.train / name).is_file() for name in MODEL_FILES)

    def tidy(self, folder: CellFolder) -> None:
        """Delete the checkpoints, and the model if it is not to be kept."""
        for checkpoint in checkpoints(folder.train):
            shutil.rmtree(checkpoint)
        if not self._keep_models:
            for name in (*MODEL_FILES, "model-*.safetensors", "pytorch_model-*.bin"):
                for file in folder.train.glob(name):
                    file.unlink()
