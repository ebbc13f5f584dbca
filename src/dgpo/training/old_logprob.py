"""log π_old without an extra forward pass, where the pass of the loss gives it exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dgpo.training.config import DGPOConfig
from dgpo.training.schedule import Schedule
from dgpo.training.step_rows import Part, StepRows

KEY = "old_per_token_logps"


class OldLogProbs:
    """Leaves out the part of TRL's extra forward pass over every generation that is not needed.

    The policy does not change before the first optimiser step of a generation has ended. On the micro-batches of that
    step log π_old is the log-prob of the loss's own pass, and the ratio exactly 1; TRL's pass over them would repeat
    it. With `num_iterations` > 1 these log-probs are kept for the later passes over the same tokens. The micro-batches
    of later steps meet a policy that has moved, so theirs are computed when the generation ends, on the rows and
    columns that the loss will read, an update at a time.

    TRL's pass stays where that would not be exact, or the log-probs are needed earlier: with dropout (two passes
    differ), under a subclass with its own forward, for TRL's own sampler correction, and with `dynamic_sampling`,
    which assembles a batch from several generations.

    Args:
        schedule: of the run.
        compute: writes log π [B, T] of the model as it is now into the micro-batches of an update, under the key that
            it is given; 0 where nothing reads it.
    """

    def __init__(self, schedule: Schedule, compute: Callable[[list[dict[str, Any]], str], None]) -> None:
        self._schedule, self._compute = schedule, compute
        self._deferred = self._skip_next = False

    @contextmanager
    def generation(self, *, deferred: bool) -> Iterator[None]:
        """Around TRL's generation, whose first forward pass for log-probs is that of the old policy.

        Args:
            deferred: leave that pass out (`can_defer`).
        """
        self._skip_next = self._deferred = deferred
        try:
            yield
        finally:
            self._skip_next = False

    def skip(self) -> bool:
        """True once, for the pass to leave out; asked before every forward pass for log-probs."""
        # the second pass of a generation is that of the reference model, which is needed
        skip, self._skip_next = self._skip_next, False
        return skip

    def fill(self, micro_batches: list[dict[str, Any]], step: int) -> None:
        """log π_old of a new generation's micro-batches, except for those of the optimiser step at hand."""
        if not self._deferred:
            return
        schedule, missing = self._schedule, dict(enumerate(micro_batches))
        start = schedule.update_of(step).start
        for first in range(start, start + schedule.steps, schedule.gradient_accumulation_steps):
            indices = {schedule.micro_batch_of(each) for each in schedule.update_of(first)} & missing.keys()
            update = [missing.pop(index) for index in sorted(indices)]
            # the rows of an update together, as the loss will meet them
            if first != start and update:
                self._compute(update, KEY)

    def record(self, rows: StepRows, part: Part, logprob: Tensor) -> None:
        """Keep what a first pass in training has found, if there will be another over the same tokens."""
        if KEY not in part.inputs and self._schedule.num_iterations > 1 and self._deferred:
            # rows that were left out get 0: their advantage is 0, and nothing reads them
            rows.keep(KEY, part, logprob.detach())


def can_defer(config: DGPOConfig, model: nn.Module) -> bool:
    """Whether TRL would run its pass under these options, and our way gives the same."""
    # TRL's condition for its own pass
    asked = config.gradient_accumulation_steps % config.schedule.steps != 0
    random = draws_at_random(model) or bool(config.neftune_noise_alpha)
    return asked and not config.dynamic_sampling and not random


def draws_at_random(model: nn.Module) -> bool:
    """True if two forward passes of the model in training mode may differ: dropout, or jitter of a router."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    # some models apply dropout as a function, with a rate from the configuration and no module
    config = model.config.get_text_config().to_dict()  # type: ignore[union-attr,operator]
    words = ("dropout", "pdrop", "jitter", "layerdrop", "drop_path", "neftune")
    return any(isinstance(v, float) and v > 0 for name, v in config.items() if any(word in name for word in words))
