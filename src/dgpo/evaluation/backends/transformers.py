"""Completions from a model in this process, through transformers' `generate` (see `dgpo.evaluation.decoding`)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dgpo.evaluation.backends.backend import Backend, Completion, Request, Sampling, template_fingerprint
from dgpo.evaluation.prompts import drops_special_tokens, encode, left_padded
from dgpo.fields import check_value

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 256

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TransformersBackend(Backend):
    """A causal language model on the device that it is on, in its precision, with a KV cache.

    Only the arguments determine the sampling: other settings in the model's saved `generation_config` (temperature,
    top_k, min_p, repetition penalty, ...) are ignored. Its end tokens are kept; a completion ends at any end token of
    the model *or* the tokenizer, as in vLLM. Every batch leaves the state of torch's generators (CPU, and CUDA if the
    model is there), the train/eval mode and the configuration of the model unchanged.

    Batches are a function of all requests and of `batch_size`: sorted once by length of the prompt, longest first
    (like lengths waste little on padding, and running out of memory shows at once), then cut. Every batch has its
    own generator state, from the seed and its number. So an interrupted run gives the same completions as an
    uninterrupted one, on the same hardware and versions. Another `batch_size` gives other samples.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; prompts are padded on the left, whatever its `padding_side` says.
        batch_size: number of completions per batch (default 256).
        name: recorded name of the model; by default the path it was loaded from.

    Raises:
        ValueError: if the batch size is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = BATCH_SIZE,
        name: str | None = None,
    ) -> None:
        check_value("batch_size", batch_size, "[1, inf)", whole=True)
        self.model = name if name is not None else str(model.name_or_path)
        self.batch_size = batch_size
        self._model = model
        self._tokenizer = tokenizer

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Completion]]]:
        """As in `Backend`; one batch at a time, greedy ones first.

        Raises:
            ValueError: if a prompt has no tokens, or is a chat and the tokenizer has no chat template.
        """
        prompts = {id(request.prompt): request.prompt for request in requests}  # samples of a problem share theirs
        tokens = dict(zip(prompts, encode(self._tokenizer, list(prompts.values())), strict=True))
        encoded = [tokens[id(request.prompt)] for request in requests]
        pending = set(range(len(requests))).difference(done)
        for greedy in (True, False):
            order = [position for position, request in enumerate(requests) if request.greedy is greedy]
            order.sort(key=lambda position: -len(encoded[position]))
            config = _configuration(self._model, self._tokenizer, sampling, greedy)
            for number, start in enumerate(range(0, len(order), self.batch_size)):
                batch = order[start : start + self.batch_size]
                if pending.isdisjoint(batch):
                    continue
                # a partly finished batch is regenerated completely: its completions depend on each other
                drawn = self._generate([encoded[position] for position in batch], config, sampling.seed, number)
                yield [(at, completion) for at, completion in zip(batch, drawn, strict=True) if at in pending]

    def settings(self) -> dict[str, Any]:
        import transformers

        device = self._model.device
        return {
            "kind": "transformers",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "batch_size": self.batch_size,
            "weights": weights_fingerprint(self._model),
            "chat_template": template_fingerprint(self._tokenizer),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def _generate(self, rows: list[list[int]], config: GenerationConfig, seed: int, number: int) -> list[Completion]:
        from dgpo.evaluation.decoding import generate

        ids, mask = left_padded(rows, config.pad_token_id, self._model.device)
        # hashed, unlike seed + number: runs with neighbouring seeds share no batch
        with _set_up(self._model, int(np.random.SeedSequence([seed, number]).generate_state(1)[0])):
            output = generate(self._model, input_ids=ids, attention_mask=mask, generation_config=config)
        ends = set(config.eos_token_id or ())
        return [_completion(self._tokenizer, found, ends) for found in output[:, ids.shape[1] :].tolist()]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Digest of all weights, so that a model trained further is not mistaken for the earlier one in the same folder.

    Exact sums of the bits of every tensor: one pass at the speed of the memory, the same on every device.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {int(bits.sum(dtype=torch.int64))}\n".encode())
    return digest.hexdigest()[:16]


def _configuration(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, greedy: bool
) -> GenerationConfig:
    from transformers import GenerationConfig

    saved = model.generation_config.eos_token_id
    ends = {*(saved if isinstance(saved, (list, tuple)) else [saved]), tokenizer.eos_token_id} - {None}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        eos_token_id=sorted(ends) or None,
        # masked on the left and cut off behind the end token: any id in the vocabulary will do
        pad_token_id=0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        bos_token_id=model.generation_config.bos_token_id,
        use_cache=True,
    )
    if not greedy:  # top_k = 0 switches off transformers' default of 50
        config.update(temperature=float(sampling.temperature), top_p=float(sampling.top_p), top_k=0)
    return config


def _completion(tokenizer: PreTrainedTokenizerBase, generated: list[int], end_tokens: set[int]) -> Completion:
    end = next((place for place, token in enumerate(generated) if token in end_tokens), None)
    text = tokenizer.decode(generated[:end], skip_special_tokens=drops_special_tokens(tokenizer))
    return Completion(text=text, tokens=len(generated) if end is None else end + 1, truncated=end is None)


@contextmanager
def _set_up(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Eval mode, an empty saved configuration and a seeded generator; restores all of them afterwards."""
    from transformers import GenerationConfig

    modes = {module: module.training for module in model.modules()}  # model.train() would thaw frozen parts
    # an adapter and the model inside it each have one, and the adapter copies its own to the model
    saved = {module: module.generation_config for module in modes if "generation_config" in vars(module)}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        try:
            model.eval()
            # generate() takes settings that are None in its argument from here, including min_p and penalties
            for module in saved:
                module.generation_config = GenerationConfig()
            yield
        finally:
            for module, config in saved.items():
                module.generation_config = config
            for module, training in modes.items():
                module.training = training
