"""The reference model of `sync_ref_model` in a checkpoint: it has moved since the start, so nothing else stores it.

TRL refuses `sync_ref_model` with PEFT, where the reference is the base model. A reference that is not synced is the
model that the run started from and is loaded from there again. The path for ZeRO-3 was not run: on CPUs DeepSpeed
refuses to load the second model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from dgpo.training.checkpoint_files import REFERENCE_FILE
from dgpo.training.ranks import shards_with_fsdp


def save(model: Any, accelerator: Any, folder: Path, *, writes: bool) -> None:
    """Write the weights of the reference; all ranks call it.

    Args:
        model: the reference, as it was prepared.
        accelerator: of the run.
        folder: of the checkpoint.
        writes: whether this rank does.
    """
    model = accelerator.unwrap_model(model)
    if shards_with_fsdp(accelerator):
        # every rank takes part in gathering, and only one writes
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if writes:
            torch.save(state, folder / REFERENCE_FILE)
        return
    with _gathered(model, accelerator):
        if writes:
            torch.save(
                {name: value.detach().cpu() for name, value in model.state_dict().items()}, folder / REFERENCE_FILE
            )


def load(model: Any, accelerator: Any, folder: Path) -> None:
    """Put the saved weights into the reference, in place.

    Raises:
        RuntimeError: the weights are those of another model.
    """
    model = accelerator.unwrap_model(model)
    state = torch.load(folder / REFERENCE_FILE, map_location="cpu", weights_only=True)
    if shards_with_fsdp(accelerator):
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
        return
    # rank 0's change is broadcast when the context ends, and split again
    with _gathered(model, accelerator, modifier_rank=0):
        model.load_state_dict(state)


def _gathered(model: Any, accelerator: Any, **how: Any) -> AbstractContextManager[Any]:
    """Whole weights where ZeRO-3 has split them."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return nullcontext()
    import deepspeed  # type: ignore[import-untyped]

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(model.parameters()), **how)
    return gathered
