"""How many optimiser updates a batch of completions serves: TRL's arithmetic, and our default where it comes to one."""

from __future__ import annotations

DEFAULT_UPDATES_PER_GENERATION = 4

SIZES = ("gradient_accumulation_steps", "num_iterations", "steps_per_generation", "generation_batch_size")
"""The options that make the schedule; each is at least 1 where it is set."""


def steps_per_generation(
    *,
    gradient_accumulation_steps: int,
    num_iterations: int,
    steps_per_generation: int | None,
    generation_batch_size: int | None,
) -> int | None:
    """The `steps_per_generation` to hand to TRL, which derives the rest; None where it derives this one too.

    TRL's own default is `gradient_accumulation_steps`, which makes `num_iterations` updates of a generation. Where that
    is one, and neither size of a generation was set, it is 4 · `gradient_accumulation_steps` here.
    """
    if steps_per_generation is None and generation_batch_size is None and num_iterations == 1:
        return DEFAULT_UPDATES_PER_GENERATION * gradient_accumulation_steps
    return steps_per_generation


def updates_per_generation(
    *, steps_per_generation: int, num_iterations: int, gradient_accumulation_steps: int
) -> float:
    """steps_per_generation · num_iterations / gradient_accumulation_steps."""
    return steps_per_generation * num_iterations / gradient_accumulation_steps
