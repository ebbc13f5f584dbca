"""transformers' `generate` with a loop of our own, which computes a prompt once and rows that have ended no more.

`generate` computes every row of a batch up to the last token of the longest one. Its argument `custom_generate`
replaces the loop and leaves the rest: processors, stopping rules, cache and options are what `generate` prepares. The
loop differs from transformers' in two ways:

* rows with the same prompt (the samples of a group) share its forward pass: it runs once, and the cache is repeated;
* a row that has ended leaves batch and cache.

The tokens are drawn from the same distribution. Up to rounding (a product of fewer rows may round differently) they are
the *same* tokens for the same seed, because random numbers are drawn for ended rows too. Only where those would cost as
much as the forward pass, on a CPU with a large vocabulary, they are not drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, LogitsProcessorList, StoppingCriteriaList, cache_utils
from transformers.generation import logits_process, stopping_criteria
from transformers.generation.configuration_utils import GenerationMode

logger = logging.getLogger(__name__)

DRAWS = 1 << 18
"""Random numbers a step (rows of the batch times vocabulary) up to which a CPU draws for ended rows too: 5 ms."""

SHARE = 8
"""Rows leave once 1 in so many of the remaining ones has ended: leaving copies the cache, as every step does."""

CHECK_EVERY = 8
"""Steps between two looks at which rows have ended, on an accelerator, where a look waits for the device."""

BESIDE_THE_LOOP = ("custom_generate", "assistant_model", "assistant_tokenizer", "streamer", "synced_gpus", "tokenizer")

CACHES = ("cache", "past_key_values")
"""The model's input and output with the cache: since transformers 5.24, and before."""

MODEL_INPUTS = {"attention_mask", "position_ids", *CACHES, "use_cache", "logits_to_keep"}

LAYERS = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
"""Caches whose entries belong to one row each, and which select rows."""

CRITERIA = (stopping_criteria.MaxLengthCriteria, stopping_criteria.EosTokenCriteria)

PROCESSORS = tuple(
    getattr(logits_process, name)
    for name in (
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopPLogitsWarper",
        "TopKLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "NoRepeatNGramLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "ExponentialDecayLengthPenalty",
        "LogitNormalization",
        "SuppressTokensLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
    )
)
"""Processors that treat every row by itself; the repetition penalty does not, it knows the padding of every prompt."""


class _NotHere(Exception):
    """This call needs something that the loop does not do."""


def generate(model: Any, **arguments: Any) -> Tensor:
    """`model.generate(**arguments)`, faster where that is exact; one debug line says why where it is not.

    Args:
        model: a causal language model, or one with adapters.
        arguments: of `generate`, without `custom_generate`.

    Returns:
        [B, P + T] token ids. Behind the end of a row there is padding.
    """
    return _tried(model, model.generate, arguments)


@contextmanager
def faster_generate(model: Any) -> Iterator[None]:
    """`generate` in the place of `model.generate`, for code that calls that."""
    method, own = model.generate, vars(model).get("generate")
    model.generate = lambda *args, **arguments: _tried(model, method, arguments, *args)
    try:
        yield
    finally:
        del model.generate
        if own is not None:
            model.generate = own


def _tried(model: Any, method: Any, arguments: dict[str, Any], *args: Any) -> Tensor:
    found: Tensor
    try:
        if (reason := _why_not_asked(model, method, arguments)) is not None:
            raise _NotHere(reason)
        for adapter in getattr(model, "peft_config", {}).values():
            if adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None):
                raise _NotHere("the adapters know every row of the batch")
        found = method(*args, custom_generate=_decode, **arguments)
    except _NotHere as reason:  # raised before anything is drawn
        logger.debug("transformers' own loop generates: %s", reason)
        found = method(*args, **arguments)
    return found


def _why_not_asked(model: Any, method: Any, arguments: dict[str, Any]) -> str | None:
    """What keeps a call from being given a loop at all, in words."""
    # with a loop of somebody else's, transformers drops these arguments
    if lost := {name for name in BESIDE_THE_LOOP if arguments.get(name) is not None}:
        return f"{', '.join(sorted(lost))} would be lost"
    base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    of_peft = base is not model and getattr(method, "__module__", "").startswith("peft.")
    found = base.generate if of_peft else method
    if getattr(found, "__func__", None) is not GenerationMixin.generate:
        return "the model's generate is not that of transformers"
    return None


def _decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **inputs: Any,
) -> Tensor:
    """What `GenerationMixin._sample` does, on the rows that still run."""
    reason = _why_not(model, logits_processor, stopping_criteria, generation_config, inputs)
    if reason is not None:
        raise _NotHere(reason)
    rows, pad = len(input_ids), generation_config._pad_token_tensor.to(input_ids.device)
    ended = input_ids.new_full((rows, generation_config.max_length), pad.item())
    ids, live = input_ids, torch.arange(rows, device=input_ids.device)
    running = torch.ones_like(live, dtype=torch.bool)
    draw = _Draw(rows) if generation_config.do_sample else _best
    steps = 1 if ids.device.type == "cpu" else CHECK_EVERY
    outputs, inputs = _prompts(model, ids, generation_config, inputs)
    with model._optimize_model_for_decode():
        while True:
            inputs = model._update_model_kwargs_for_generation(outputs, inputs)
            # in float32, as transformers samples; a copy, so that the processors may write into it
            scores = logits_processor(ids, outputs.logits[:, -1].to(torch.float32, copy=True))
            del outputs
            ids = torch.cat([ids, torch.where(running, draw(scores, live), pad).unsqueeze(1)], 1)
            running = running & ~stopping_criteria(ids, None)
            if ids.shape[1] % steps == 0 or ids.shape[1] >= generation_config.max_length:
                left = int(running.sum())
                if left == 0:
                    break
                if (len(running) - left) * SHARE >= len(running):
                    ended[live, : ids.shape[1]] = ids
                    ids, live, inputs = _kept(running, ids, live, inputs)
                    running = running[running]
            outputs = model(
                **model.prepare_inputs_for_generation(ids, next_sequence_length=1, **inputs), return_dict=True
            )
    ended[live, : ids.shape[1]] = ids
    return ended[:, : ids.shape[1]]


def _why_not(
    model: Any,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    config: Any,
    inputs: dict[str, Any],
) -> str | None:
    """What this loop lacks for a call, in words."""
    mode = config.get_generation_mode()
    cache: Any = inputs.get(_cache(inputs))
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        return f"the mode is {mode.value}"
    if config.return_dict_in_generate:
        return "more than token ids is returned"
    if config._pad_token_tensor is None:
        return "there is no padding token"
    if model._valid_auto_compile_criteria(inputs, config):
        return "the forward pass is compiled"
    if model.config.is_encoder_decoder or model.is_remote_code() or model.config.get_text_config() is not model.config:
        return "the model is not a plain causal language model"
    if others := {name for name, value in inputs.items() if value is not None} - MODEL_INPUTS:
        return f"the model takes {', '.join(sorted(others))}"
    if type(cache) is not DynamicCache or cache.offloading or cache.get_seq_length():
        return f"the cache is {type(cache).__name__}, offloaded, or not empty"
    # a cache without layers makes them while it is filled
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    if not kinds <= set(LAYERS):
        return f"a layer's cache is {', '.join(sorted(kind.__name__ for kind in kinds))}"
    strangers = [one for one in processors if type(one) not in PROCESSORS]
    strangers += [one for one in criteria if type(one) not in CRITERIA]
    if strangers:
        return f"{type(strangers[0]).__name__} may not treat every row by itself"
    if model.training and _drops_out(model):
        return "dropout draws for every row"
    return None


def _drops_out(model: nn.Module) -> bool:
    of_attention = getattr(model.config, "attention_dropout", 0.0) or 0.0
    return of_attention > 0 or any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())


def _prompts(model: Any, ids: Tensor, config: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The outputs for all prompts, each computed once, and the inputs of the next step."""
    mask = inputs.get("attention_mask")
    _, which = torch.unique(ids if mask is None else torch.cat([ids, mask], 1), dim=0, return_inverse=True)
    # one row of every prompt: which one does not matter
    first = which.new_empty(int(which.max()) + 1).scatter_(0, which, torch.arange(len(ids), device=ids.device))
    outputs = model._prefill(ids[first], config, _rows(inputs, first, len(ids)))
    cache = inputs[_cache(inputs)]
    if outputs.get(_cache(inputs)) is not cache or cache.get_seq_length() != ids.shape[1]:
        raise _NotHere("the model does not fill the cache")
    cache.batch_select_indices(which)
    outputs.logits = outputs.logits[:, -1:][which]
    return outputs, inputs


def _kept(running: Tensor, ids: Tensor, live: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    keep = running.nonzero().squeeze(1)
    inputs[_cache(inputs)].batch_select_indices(keep)
    return ids[keep], live[keep], _rows(inputs, keep, len(ids))


def _cache(inputs: dict[str, Any]) -> str:
    return next((name for name in CACHES if inputs.get(name) is not None), CACHES[0])


def _rows(inputs: dict[str, Any], keep: Tensor, rows: int) -> dict[str, Any]:
    return {
        name: value[keep] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value
        for name, value in inputs.items()
    }


def _best(scores: Tensor, live: Tensor) -> Tensor:
    return scores.argmax(-1)


class _Draw:
    """Tokens [b] from scores [b, V] of the live rows, with the random numbers that `rows` rows would take."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._all: Tensor | None = None

    def __call__(self, scores: Tensor, live: Tensor) -> Tensor:
        p = scores.softmax(-1)
        if len(live) == self._rows or (p.device.type == "cpu" and self._rows * p.shape[1] > DRAWS):
            return torch.multinomial(p, 1).squeeze(1)
        if self._all is None:
            # what is drawn for ended rows is not read: any distribution will do
            self._all = torch.ones(self._rows, p.shape[1], device=p.device)
        self._all[live] = p
        return torch.multinomial(self._all, 1).squeeze(1)[live]
