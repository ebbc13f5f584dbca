"""The policies that RL starts from: one per seed and task, trained on answers, the same for every arm."""

from __future__ import annotations

import torch
from engine import Optimised, adam, answer_probability, evaluation_problems, shape_of
from problems import Problems
from stacked import logits
from torch import Tensor

LEARNING_RATE = 3e-3
BATCH = 32
LONGEST = 8000
WARM_UP_STREAM = 3_000_000_000
"""Added to a seed for the data of its start; torch reads 32 bits of it."""
CHECKED_EVERY = 2
TOGETHER = 0.45
"""Score, at equal shares of right answer and habit, at which the right answer's share begins to fall."""
HABIT_GROWS, HABIT_RESTS = 1000, 200
"""Steps in which the right answer's share falls from a half to the start's, and steps at that share."""


def right_share(problems: Problems, falling: Tensor) -> Tensor:
    """Share of the right answer, `falling` steps after it began to fall; the rest is the habit's."""
    return 0.5 * (problems.start / 0.5) ** (falling / HABIT_GROWS).clamp(0, 1)


def warm_up(problems: Problems, seeds: list[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Parameters [S, size] of the starts, trained on the device, and their scores [S].

    The loss is the cross-entropy of the answers, weighted by their shares. Without a habit a member stops when its
    score has reached `problems.start`. With one it learns both at equal shares up to a score of `TOGETHER`; then
    the right answer's share falls geometrically to `problems.start` in `HABIT_GROWS` steps, at a third of the learning
    rate, and `HABIT_RESTS` steps follow.

    Raises:
        RuntimeError: a member did not come to its end within `LONGEST` steps.
    """
    shape = shape_of(problems)
    start = shape.initial([10_000 + seed for seed in seeds]).to(device)
    members = len(seeds)
    state = Optimised.start(start)
    asked, right = evaluation_problems(problems)
    generators = [torch.Generator().manual_seed(WARM_UP_STREAM + seed) for seed in seeds]
    gradients = torch.zeros_like(start)
    training = torch.ones(members, dtype=torch.bool, device=device)
    falling = torch.zeros(members, device=device)
    score = torch.zeros(members, device=device)
    for step in range(LONGEST):
        if step % CHECKED_EVERY == 0:
            score = answer_probability(shape, state.parameters, asked, right).mean(1)
            if problems.habit is None:
                training &= score < problems.start
            else:
                falling += CHECKED_EVERY * ((falling > 0) | (score >= TOGETHER))
                training &= falling < HABIT_GROWS + HABIT_RESTS
            if not training.any():
                return state.parameters, score
        batches = [problems.draw(BATCH, generator) for generator in generators]
        prompts, answers = (torch.stack(part).to(device) for part in zip(*batches, strict=True))
        share = right_share(problems, falling)
        responses, weights = answers.unsqueeze(2), share[:, None]
        if problems.habit is not None:
            habits = torch.stack([problems.habit(part) for part, _ in batches]).to(device)
            responses, weights = torch.stack([answers, habits], 2), torch.stack([share, 1 - share], 1)
        leaves = {name: view.detach().requires_grad_() for name, view in shape.views(state.parameters).items()}
        found = logits(shape, leaves, prompts, responses).log_softmax(-1)
        likelihood = found.gather(-1, responses.unsqueeze(-1)).squeeze(-1).sum(-1)
        # a mean within each member, a sum over them
        (-(likelihood * weights[:, None]).sum() / (BATCH * problems.response)).backward()
        for name, view in shape.views(gradients).items():
            view.copy_(leaves[name].grad)
        adam(state, gradients, torch.where(falling > 0, LEARNING_RATE / 3, LEARNING_RATE), training)
        state.update += 1
    left = [seed for seed, unfinished in zip(seeds, training.tolist(), strict=True) if unfinished]
    raise RuntimeError(f"{problems.name}: the starts of seeds {left} did not end within {LONGEST} steps")
