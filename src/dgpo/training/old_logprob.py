"""log π_old without a forward pass of its own, where the pass of the loss gives it exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from trl.models.utils import disable_gradient_checkpointing

from dgpo.training.micro_batches import MicroBatch

if TYPE_CHECKING:
    from dgpo.training.trainer import DGPOTrainer

KEY = "old_per_token_logps"


class OldLogProbs:
    """Leaves out the part of TRL's extra forward pass over every generation that is not needed.

    The policy does not change before the first optimiser step of a generation has ended. On the micro-batches of that
    step log π_old is the log-prob of the loss's own pass, and the ratio exactly 1; TRL's pass over them would repeat
    it. With `num_iterations` > 1 these log-probs are kept for the later passes over the same tokens. The micro-batches
    of later steps meet a policy that has moved, so theirs are computed when the generation ends, on the rows and
    columns that the loss will read.

    TRL's pass stays where that would not be exact, or the log-probs are needed earlier: with dropout (two passes
    differ), under a subclass with a forward of its own, for TRL's own sampler correction, and with `dynamic_sampling`,
    which assembles a batch from several generations.
    """

    def __init__(self, trainer: DGPOTrainer) -> None:
        self.trainer = trainer
        self._deferred = self._skip_next = False

    def _can_defer(self) -> bool:
        """True if TRL would run its pass, and need not."""
        trainer, args = self.trainer, self.trainer.args
        asked = args.gradient_accumulation_steps % (args.steps_per_generation * trainer.num_iterations) != 0
        early = trainer.use_vllm and trainer.vllm_importance_sampling_correction
        random = draws_at_random(trainer.model) or bool(args.neftune_noise_alpha)
        # a method of somebody's own is to see every pass, and its result
        own = trainer._overridden() is not None
        return asked and not early and not args.dynamic_sampling and not random and not own

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Around TRL's generation, whose first forward pass for log-probs is that of the old policy."""
        self._skip_next = self._deferred = self._can_defer()
        try:
            yield
        finally:
            self._skip_next = False

    def skip(self) -> bool:
        """True once, for the pass to leave out; asked before every forward pass for log-probs."""
        skip, self._skip_next = self._skip_next, False
        return skip

    def fill(self) -> None:
        """log π_old of a new generation's micro-batches, except for those of the optimiser step at hand."""
        if not self._deferred:
            return
        trainer, args = self.trainer, self.trainer.args
        end = trainer._window_start() + args.gradient_accumulation_steps
        at_hand = {step % args.steps_per_generation for step in range(trainer._step, end)}
        with torch.no_grad(), disable_gradient_checkpointing(trainer.model, args.gradient_checkpointing_kwargs):
            for index, inputs in enumerate(trainer._buffered_inputs):
                if index not in at_hand:
                    batch = trainer._micro_batch(inputs)
                    inputs[KEY] = batch.restore(trainer._step_loss.logprob(trainer.model, batch.inputs))

    def record(self, inputs: dict[str, Any], batch: MicroBatch, logprob: Tensor) -> None:
        """Keep what a first pass has found, if there will be another over the same tokens."""
        if KEY not in inputs and self.trainer.num_iterations > 1 and self.trainer.model.training and self._deferred:
            inputs[KEY] = batch.restore(logprob.detach())


def draws_at_random(model: nn.Module) -> bool:
    """True if two forward passes of the model in training mode may differ: dropout, or jitter of a router."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config = model.config.get_text_config().to_dict()  # type: ignore[union-attr,operator]
    words = ("dropout", "pdrop", "jitter", "layerdrop", "drop_path", "neftune")
    return any(isinstance(v, float) and v > 0 for name, v in config.items() if any(word in name for word in words))
