"""Completions of a loaded model, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgpo.evaluation.backends.backend import Completion, Request, Sampling
from dgpo.evaluation.backends.transformers import BATCH_SIZE, TransformersBackend
from dgpo.evaluation.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    samples: int | None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Completion]]:
    """`samples` completions of every prompt, on the device of the model; see `TransformersBackend`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: [P] texts, or chats as lists of {"role", "content"}; chats go through the chat template with
            `add_generation_prompt=True`.
        samples: completions per prompt; None gives one greedy completion.
        temperature: 0 means greedy: `samples` times the same completion.
        top_p: nucleus; 1 is the whole distribution.
        max_new_tokens: maximum length of a completion, including its end token.
        batch_size: number of completions per batch.
        seed: sampling seed.
        progress: show a progress bar.

    Returns:
        [P][samples] completions, in the order of `prompts`.

    Raises:
        ValueError: if a setting is out of range, a prompt has no tokens, or is a chat and there is no chat template.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    if samples is not None and samples < 1:
        raise ValueError(f"samples = {samples}; expected at least 1, or None for one greedy completion")
    greedy = samples is None or temperature == 0
    sampling = Sampling(
        samples=samples or 1,
        temperature=1.0 if greedy else temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    times = 1 if greedy else sampling.samples
    requests = [Request(prompt, seed, greedy) for prompt in prompts for _ in range(times)]
    found: dict[int, Completion] = {}
    backend = TransformersBackend(model, tokenizer, batch_size=batch_size)
    bar = tqdm(total=len(requests), desc="greedy" if greedy else "samples", unit="completion", disable=not progress)
    with bar:
        for group in backend.complete(requests, sampling):
            found.update(group)
            bar.update(len(group))
    rows = [[found[start + i] for i in range(times)] for start in range(0, len(requests), times)]
    return [row * (samples or 1) for row in rows] if greedy else rows
