"""Completions and rewards that cost nothing, so that what is timed of a trainer is everything but its generation.

Both are functions of the number of the update that they are made for: all trainers see the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Lengths = Callable[[int, torch.Generator], list[int]]
"""From the number of completions, and random numbers, to their lengths in tokens."""


def random_numbers(count: int, updates: int) -> torch.Generator:
    """Those of a generation of `count` completions after so many updates."""
    return torch.Generator().manual_seed(count + 1_000_003 * updates)


def rollout(
    tokenizer: Any, vocabulary: int, lengths: Lengths, prompt_tokens: int | None = None, first: int = 0
) -> Callable[..., dict[str, Any]]:
    """A `rollout_func` of TRL: random tokens, from the third of the vocabulary on.

    Args:
        tokenizer: of the prompts.
        vocabulary: that of the model.
        lengths: of the completions.
        prompt_tokens: as many random tokens as prompt, in place of those of the tokenizer; equal within a group.
        first: the number of the first update, for other random numbers in every run.
    """

    def scripted(prompts: list[str], trainer: Any) -> dict[str, Any]:
        generator = random_numbers(len(prompts), first + trainer.state.global_step)
        lasting = lengths(len(prompts), generator)
        ids = torch.randint(3, vocabulary, (len(prompts), max(lasting)), generator=generator).tolist()
        asked: dict[str, list[int]] = {}
        for prompt in prompts:
            if prompt not in asked and prompt_tokens is None:
                asked[prompt] = tokenizer(prompt)["input_ids"]
            elif prompt not in asked:
                asked[prompt] = torch.randint(3, vocabulary, (prompt_tokens,), generator=generator).tolist()
        return {
            "prompt_ids": [asked[prompt] for prompt in prompts],
            "completion_ids": [row[:length] for row, length in zip(ids, lasting, strict=True)],
            "logprobs": None,
        }

    return scripted


def rewards(group: int, without_spread: Callable[[int], float]) -> Callable[..., list[float]]:
    """Equal in the first share of every two groups, spread over the others.

    Args:
        group: completions of a prompt.
        without_spread: from the updates that are done to the share, 0, 0.5 or 1.
    """

    def reward(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        share = without_spread(trainer_state.global_step)
        return [0.0 if (i // group) % 2 < 2 * share else float(i % 2) for i in range(len(completions))]

    return reward
