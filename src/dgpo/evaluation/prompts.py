"""Prompts as token ids: chat templates and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo.grading import CHANNELS, THINKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[Mapping[str, str]]
"""A text that the model continues, or the messages of a chat that it answers."""


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of every prompt.

    Raises:
        ValueError: a chat for a tokenizer without chat template, or a prompt without tokens.
    """
    encoded = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            ids = tokenizer(prompt)["input_ids"]
        elif tokenizer.chat_template is None:
            raise ValueError(
                f"prompts[{index}] is a list of messages, but the tokenizer has no chat template; "
                "pass plain strings, or set tokenizer.chat_template"
            )
        else:
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            # the template writes the special tokens itself; a second BOS would be another prompt
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"prompts[{index}] = {prompt!r} has no tokens; expected at least one")
        encoded.append(list(ids))
    return encoded


def drops_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether completions are decoded without special tokens: not where these tell thinking from the answer."""
    marks = {*CHANNELS, *(mark for pair in THINKING for mark in pair)}
    return not any(str(token) in marks for token in tokenizer.added_tokens_decoder.values() if token.special)


def left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, T] token ids and attention mask. By hand, so that the user's tokenizer is not touched."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
