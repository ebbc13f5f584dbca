"""How often the host waits for the device: counted on the stand-in of pretended_gpu.py."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from test_trainer_on_a_gpu import everything_moves, train

import pretended_gpu as stand_in
from dgpo.fused import backends
from dgpo.training import DGPOConfig, DGPOTrainer
from pretended_gpu import CUDA, OnGPU, pretended_gpu

__all__ = ["everything_moves"]

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
"""Operations whose result, or its size, the host reads."""


@contextmanager
def waits() -> Iterator[list[str]]:
    """Where the host waited: the innermost frame of dgpo, or of what called it."""
    found: list[str] = []

    def note() -> None:
        frames = [f for f in traceback.extract_stack() if "pretended_gpu" not in f.filename and __file__ != f.filename]
        ours = [f for f in frames if "/dgpo/" in f.filename]
        f = ours[-1] if ours else frames[-1]
        found.append(f"{Path(f.filename).name}:{f.lineno} {f.line}")

    dispatch, tolist = OnGPU.__torch_dispatch__.__func__, OnGPU.tolist  # type: ignore[attr-defined]
    moved = stand_in._ToCPU.apply

    def counted(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        masks = func is aten.index.Tensor and any(t is not None and t.dtype == torch.bool for t in args[1])
        if func in WAITING or masks:
            note()
        return dispatch(cls, func, types, args, kwargs)

    def to_cpu(tensor):  # type: ignore[no-untyped-def]
        note()
        return moved(tensor)

    def to_list(tensor):  # type: ignore[no-untyped-def]
        note()
        return tolist(tensor)

    with (
        patch.object(OnGPU, "__torch_dispatch__", classmethod(counted)),
        patch.object(OnGPU, "tolist", to_list),
        patch.object(stand_in._ToCPU, "apply", staticmethod(to_cpu)),
    ):
        yield found


OURS = {"loss.py": 1}
"""Whether everything is finite."""
RECORDED = {"recording.py": 1, "write.py": 3}


@pytest.mark.parametrize("record", [False, True])
def test_a_micro_step_waits_for_its_check_alone(tmp_path, everything_moves, record):
    """The models of transformers look at the attention mask beside; metrics are read once per optimiser step."""
    counts, loss = [], DGPOTrainer._compute_loss

    def watched(self, model, inputs):
        if not record:
            self._recording = None
        with waits() as found:
            value = loss(self, model, inputs)
        counts.append(found)
        return value

    with (
        pretended_gpu(),
        patch.object(DGPOConfig, "device", property(lambda self: (self._setup_devices, CUDA)[1])),
        patch.object(Accelerator, "device", property(lambda self: CUDA)),
        patch.object(backends.kernels, "unavailable", lambda device: "pretended"),
        patch.object(DGPOTrainer, "_compute_loss", watched),
    ):
        # unsorted, or an update of so few rows would take one pass in two micro-steps
        train(tmp_path, objective="dgpo", gradient_accumulation_steps=2, sort_by_length=False)
    assert len(counts) == 8
    expected = {**OURS, **(RECORDED if record else {})}
    for update in zip(counts[::2], counts[1::2], strict=True):
        files = [Counter(line.partition(":")[0] for line in found if "forwards.py" not in line) for found in update]
        assert sum(counted.pop("metrics.py", 0) for counted in files) == 1
        # a short update may take one forward pass for both micro-steps
        assert all(counted in ({}, expected) for counted in files), update
        assert any(files)
