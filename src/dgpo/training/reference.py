"""The reference model of `sync_ref_model` in a checkpoint: it has moved since the start, so that nothing else holds it.

TRL refuses `sync_ref_model` with PEFT, where the reference is the base model. A reference that is not synced is the
model that the run started from and is loaded from there again. The path for ZeRO-3 was not run: on CPUs DeepSpeed
refuses to load the second model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from dgpo.training.checkpoint_files import REFERENCE_FILE

if TYPE_CHECKING:
    from dgpo.training.resumable import ResumableTrainer


def save(trainer: ResumableTrainer, folder: Path) -> None:
    """Write the weights of the reference; all ranks call it, one writes."""
    model = trainer.accelerator.unwrap_model(trainer.ref_model)
    if trainer.is_fsdp_enabled:
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if trainer.args.should_save:
            torch.save(state, folder / REFERENCE_FILE)
        return
    with _gathered(trainer, model):
        if trainer.args.should_save:
            torch.save(
                {name: value.detach().cpu() for name, value in model.state_dict().items()}, folder / REFERENCE_FILE
            )


def load(trainer: ResumableTrainer, folder: Path) -> None:
    """Put the saved weights into the reference, in place.

    Raises:
        RuntimeError: the weights are those of another model.
    """
    model = trainer.accelerator.unwrap_model(trainer.ref_model)
    state = torch.load(folder / REFERENCE_FILE, map_location="cpu", weights_only=True)
    if trainer.is_fsdp_enabled:
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
        return
    with _gathered(trainer, model, modifier_rank=0):
        model.load_state_dict(state)


def _gathered(trainer: ResumableTrainer, model: Any, **how: Any) -> AbstractContextManager[Any]:
    """Whole weights where ZeRO-3 has split them."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return nullcontext()
    import deepspeed  # type: ignore[import-untyped]

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(model.parameters()), **how)
    return gathered
