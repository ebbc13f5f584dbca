"""When completions are generated and when an optimiser step ends: TRL's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_UPDATES_PER_GENERATION = 4
"""Where neither the size of a generation nor `num_iterations` is set. TRL's default is 1."""

SIZES = ("gradient_accumulation_steps", "num_iterations", "steps_per_generation", "generation_batch_size")
"""The options that make the schedule; each is at least 1 where it is set."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The resolved schedule. Micro-steps, one forward and backward pass each, are counted from 0 over the whole run.

    Attributes:
        gradient_accumulation_steps: micro-steps of an optimiser step.
        steps_per_generation: micro-batches that a generation is split into.
        num_iterations: passes over each of them.
    """

    gradient_accumulation_steps: int
    steps_per_generation: int
    num_iterations: int

    @property
    def steps(self) -> int:
        """Micro-steps from one generation to the next."""
        return self.steps_per_generation * self.num_iterations

    @property
    def updates_per_generation(self) -> float:
        """steps_per_generation · num_iterations / gradient_accumulation_steps."""
        return self.steps / self.gradient_accumulation_steps

    @property
    def on_policy(self) -> bool:
        """Whether every generation serves one update: all ratios against π_old are then 1."""
        return self.updates_per_generation == 1

    @property
    def splits_an_update(self) -> bool:
        """Whether an optimiser step would span two generations."""
        return self.steps % self.gradient_accumulation_steps != 0

    def update_of(self, step: int) -> range:
        """The micro-steps of the optimiser step that this one belongs to."""
        start = step - step % self.gradient_accumulation_steps
        return range(start, start + self.gradient_accumulation_steps)

    def micro_batch_of(self, step: int) -> int:
        """Which micro-batch of its generation a micro-step takes."""
        return step % self.steps_per_generation
