"""A run that is interrupted in the middle and resumed ends where the uninterrupted run does, on the device.

With sampled completions: the states of all random number generators, CUDA's included, come from the checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from transformers import TrainerCallback

from dgpo.training import DGPOTrainer
from gpu.piece import Findings, run
from gpu.rig import distance, model, trainer

UPDATES, STOP = 6, 4
AGREE = 1e-4
"""Of the weights' changes, relative (L2). Not to the bit: on a GPU some sums are added in any order."""
SAME = ("reward", "completions/mean_length", "loss", "grad_norm")


class Interruption(TrainerCallback):  # type: ignore[misc]
    """Ends a run after the checkpoint of update `STOP`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= STOP


def measure(found: Findings) -> None:
    """The whole run, and the one in two parts."""
    start = vector(model().to(torch.float64))
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        expected = one(whole)
        first = one(parts, interrupted=True)
        found.check(first.state.global_step == STOP, f"the first part ended after {first.state.global_step} updates")
        resumed = one(parts, resume=True)
    changes = [vector(made.model) - start for made in (resumed, expected)]
    difference = distance(*changes)
    equal = all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), expected.model.parameters(), strict=True))
    found.row(updates=UPDATES, resumed_after=STOP, weights=difference, to_the_bit=equal)
    found.check(difference <= AGREE, f"the weights have moved elsewhere: {difference:.3g} of the way")
    for update, (whole_row, parts_row) in enumerate(zip(log(expected), log(resumed), strict=True), 1):
        values: dict[str, float] = {}
        for name in SAME:
            x, y = whole_row.get(name), parts_row.get(name)
            if x is None and y is None:  # the reward is in the row of a generation's first update
                continue
            values |= {name: x, f"{name}, resumed": y}
            same = None not in (x, y) and abs(x - y) <= 1e-4 + 1e-3 * abs(x)
            found.check(same, f"{name} of update {update}: {x} and, resumed, {y}")
        found.row(update=update, **values)
    found.headline = f"weights differ by {difference:.1g} of what training changed" + (
        ", to the bit equal" if equal else ""
    )


def one(folder: str, *, interrupted: bool = False, resume: bool = False) -> DGPOTrainer:
    """Train in a folder, to the end or to the interruption."""
    with redirect_stdout(StringIO()):
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": UPDATES, "learning_rate": 1e-3}
        # Adam makes steps of the learning rate from gradients that are rounding alone, such as those of key biases
        saving["adam_epsilon"] = 1e-4
        made = trainer(model(), folder, **saving)
        if interrupted:
            made.add_callback(Interruption())
        made.train(resume_from_checkpoint=True if resume else None)
    return made


def vector(network: Any) -> torch.Tensor:
    """All weights, float64 on the CPU."""
    return torch.cat([p.detach().flatten().double().cpu() for p in network.parameters()])


def log(made: DGPOTrainer) -> list[dict[str, float]]:
    """One row per update."""
    return [row for row in made.state.log_history if "loss" in row]


if __name__ == "__main__":
    sys.exit(run(measure))
