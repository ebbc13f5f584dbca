"""Completions from a causal language model, through transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dgpo.evaluation.prompts import Prompt, encode, left_padded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: decoded without special tokens, up to the end token.
        tokens: generated tokens, the end token included.
        truncated: no end token within `max_new_tokens`.
    """

    text: str
    tokens: int
    truncated: bool


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    samples: int | None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Completion]]:
    """`samples` completions of every prompt, on the device that the model is on.

    Only the arguments decide how tokens are drawn: whatever else the model's saved `generation_config` says
    (temperature, top_k, min_p, repetition penalty, ...) is set aside for the call. Its end tokens are kept; a
    completion ends at any end token that the model *or* the tokenizer names, as in vLLM.

    Deterministic: the same arguments, hardware and versions give the same completions; another `batch_size` draws
    other samples. The state of torch's generators (CPU, and CUDA where the model is), the train/eval mode and the
    configuration of the model are afterwards what they were.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; prompts are padded on the left, whatever its `padding_side` says.
        prompts: [P] texts, or chats as lists of {"role", "content"}; chats go through the chat template with
            `add_generation_prompt=True`.
        samples: completions per prompt; None gives one greedy completion.
        temperature: 0 means greedy: `samples` times the same completion.
        top_p: nucleus; 1 is the whole distribution.
        max_new_tokens: budget of one completion, its end token included.
        batch_size: completions generated side by side.
        seed: of the sampling.
        progress: show a progress bar.

    Returns:
        [P][samples] completions, in the order of `prompts`.

    Raises:
        ValueError: a setting out of range, a prompt without tokens, a chat for a tokenizer without chat template.
    """
    _require_settings(samples, temperature, top_p, max_new_tokens, batch_size)
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    greedy = samples is None or temperature == 0
    encoded = encode(tokenizer, prompts)
    # batches of like lengths waste little on padding; longest first, so that running out of memory shows at once
    rows = [index for index in range(len(prompts)) for _ in range(1 if greedy else samples or 1)]
    rows.sort(key=lambda index: -len(encoded[index]))

    config = _configuration(model, tokenizer, max_new_tokens, None if greedy else (temperature, top_p))
    end_tokens = set(config.eos_token_id or ())
    completions: list[list[Completion]] = [[] for _ in prompts]
    bar = tqdm(total=len(rows), desc="greedy" if greedy else "samples", unit="completion", disable=not progress)
    with bar, _set_up(model, seed):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids, mask = left_padded([encoded[index] for index in batch], config.pad_token_id, model.device)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            for index, generated in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                completions[index].append(_completion(tokenizer, generated, end_tokens))
            bar.update(len(batch))
    return [found * (samples or 1) for found in completions] if greedy else completions


def _require_settings(
    samples: int | None, temperature: float, top_p: float, max_new_tokens: int, batch_size: int
) -> None:
    if samples is not None and samples < 1:
        raise ValueError(f"samples = {samples}; expected at least 1, or None for one greedy completion")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}; expected a finite value >= 0 (0 is greedy)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}; expected a value in (0, 1] (1 is the whole distribution)")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; expected at least 1")


def _configuration(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    sampling: tuple[float, float] | None,
) -> GenerationConfig:
    from transformers import GenerationConfig

    saved = model.generation_config.eos_token_id
    ends = {*(saved if isinstance(saved, (list, tuple)) else [saved]), tokenizer.eos_token_id} - {None}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampling is not None,
        eos_token_id=sorted(ends) or None,
        # masked on the left and cut off behind the end token: any id in the vocabulary will do
        pad_token_id=0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        bos_token_id=model.generation_config.bos_token_id,
        use_cache=True,
    )
    if sampling is not None:
        temperature, top_p = sampling
        config.update(temperature=temperature, top_p=top_p, top_k=0)  # 0 switches off transformers' default of 50
    return config


def _completion(tokenizer: PreTrainedTokenizerBase, generated: list[int], end_tokens: set[int]) -> Completion:
    end = next((place for place, token in enumerate(generated) if token in end_tokens), None)
    text = tokenizer.decode(generated[:end], skip_special_tokens=True)
    return Completion(text=text, tokens=len(generated) if end is None else end + 1, truncated=end is None)


@contextmanager
def _set_up(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Eval mode, a blank saved configuration and a seeded generator; all as they were afterwards."""
    from transformers import GenerationConfig

    modes = {module: module.training for module in model.modules()}  # model.train() would thaw frozen parts
    # an adapter and the model inside it each have one, and the adapter copies its own inwards
    saved = {module: module.generation_config for module in modes if "generation_config" in vars(module)}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        try:
            model.eval()
            # generate() fills whatever its argument leaves at None from here, min_p and penalties included
            for module in saved:
                module.generation_config = GenerationConfig()
            yield
        finally:
            for module, config in saved.items():
                module.generation_config = config
            for module, training in modes.items():
                module.training = training
