"""The policies that RL starts from: one per seed and task, trained on answers, the same for every arm."""

from __future__ import annotations

import torch
from engine import State, adam, answer_probability, evaluation_problems, shape_of
from problems import Problems
from stacked import logits
from torch import Tensor

LEARNING_RATE = 3e-3
BATCH = 32
LONGEST = 8000
CHECKED_EVERY = 2
ALONE, TOGETHER = 0.9, 0.4
"""Scores at which a start with a habit goes on: after right answers alone, and after both at equal shares."""
HABIT_GROWS, HABIT_RESTS = 1500, 300
"""Steps in which the right answer's share falls from a half to the start's, and steps at that share."""


def right_share(problems: Problems, falling: Tensor) -> Tensor:
    """Share of the right answer, `falling` steps after it began to fall; the rest is the habit's."""
    return 0.5 * (problems.start / 0.5) ** (falling / HABIT_GROWS).clamp(0, 1)


def warm_up(problems: Problems, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Parameters [S, size] of the starts, and their scores [S].

    The loss is the cross-entropy of the answers, weighted by their shares. Without a habit a member stops when its
    score has reached `problems.start`. With one, it learns right answers alone up to a score of `ALONE`, then both at
    equal shares up to `TOGETHER`, at a third of the learning rate from here on; then the right answer's share falls
    geometrically to `problems.start` in `HABIT_GROWS` steps, and `HABIT_RESTS` steps follow.

    Raises:
        RuntimeError: a member did not come to its end within `LONGEST` steps.
    """
    shape = shape_of(problems)
    start = shape.initial([10_000 + seed for seed in seeds])
    members = len(seeds)
    state = State(start, torch.zeros_like(start), torch.zeros_like(start), 0, start, start, start)
    asked, right = evaluation_problems(problems)
    generators = [torch.Generator().manual_seed(2**41 + seed) for seed in seeds]
    gradients = torch.zeros_like(start)
    training = torch.ones(members, dtype=torch.bool)
    with_habit = torch.zeros(members, dtype=torch.bool)
    falling = torch.zeros(members)
    score = torch.zeros(members)
    for step in range(LONGEST):
        if step % CHECKED_EVERY == 0:
            score = answer_probability(shape, state.parameters, asked, right).mean(1)
            if problems.habit is None:
                training &= score < problems.start
            else:
                falling += CHECKED_EVERY * ((falling > 0) | (with_habit & (score >= TOGETHER)))
                with_habit |= score >= ALONE
                training &= falling < HABIT_GROWS + HABIT_RESTS
            if not training.any():
                return state.parameters, score
        batches = [problems.draw(BATCH, generator) for generator in generators]
        prompts, answers = (torch.stack(part) for part in zip(*batches, strict=True))
        share = torch.where(with_habit, right_share(problems, falling), 1.0)
        responses, weights = answers.unsqueeze(2), share[:, None]
        if problems.habit is not None:
            habits = torch.stack([problems.habit(part) for part in prompts])
            responses, weights = torch.stack([answers, habits], 2), torch.stack([share, 1 - share], 1)
        leaves = {name: view.detach().requires_grad_() for name, view in shape.views(state.parameters).items()}
        found = logits(shape, leaves, prompts, responses).log_softmax(-1)
        likelihood = found.gather(-1, responses.unsqueeze(-1)).squeeze(-1).sum(-1)
        # a mean within each member, a sum over them
        (-(likelihood * weights[:, None]).sum() / (BATCH * problems.response)).backward()
        for name, view in shape.views(gradients).items():
            view.copy_(leaves[name].grad)
        adam(state, gradients, torch.where(with_habit, LEARNING_RATE / 3, LEARNING_RATE), training)
        state.update += 1
    left = [seed for seed, unfinished in zip(seeds, training.tolist(), strict=True) if unfinished]
    raise RuntimeError(f"{problems.name}: the starts of seeds {left} did not end within {LONGEST} steps")
