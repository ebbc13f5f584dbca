"""A real transformers model over four tokens, all that it can say, and a sampler that is not quite the policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch.nn.functional import pad
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PROMPT, LONGEST = "ab", 3
EOS, WORDS = 0, (1, 2, 3)


def tokenizer():
    """`<eos>`, a, b, c; no token for padding alone, so that every one of the four can be sampled."""
    inner = Tokenizer(WordLevel({"<eos>": EOS, "a": 1, "b": 2, "c": 3}, unk_token="<eos>"))
    inner.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<eos>", eos_token="<eos>", padding_side="left")


def policy(seed=8):
    """GPT-2's layers, whose arithmetic is float64 throughout (Qwen's norms compute in float32).

    With this seed it often ends early: expected length 2.3 of 3.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=4,
        n_positions=8,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        initializer_range=0.5,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return GPT2LMHeadModel(config).double()


def responses() -> Iterator[list[int]]:
    """All 40: those that end within `LONGEST` tokens, and those that are cut off there."""
    for size in range(LONGEST):
        yield from ([*prefix, EOS] for prefix in product(WORDS, repeat=size))
    yield from (list(prefix) for prefix in product(WORDS, repeat=LONGEST))


def log_probs(model, response, temperature=1.0):
    """[t] log-probs of a response, with gradient, by the model's plain forward pass."""
    prompt = tokenizer()(PROMPT)["input_ids"]
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)


def gradient(model, value):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def micro_batch(*rows):
    """TRL's dictionary of some responses, each with its advantage and log μ [t], padded to `LONGEST`."""
    prompt = tokenizer()(PROMPT)["input_ids"]

    def padded(values, filling):
        return torch.stack([pad(v, (0, LONGEST - len(v)), value=filling) for v in values])

    tokens = [torch.tensor(response) for response, _, _ in rows]
    return {
        "prompt_ids": torch.tensor([prompt] * len(rows)),
        "prompt_mask": torch.ones(len(rows), len(prompt), dtype=torch.long),
        "completion_ids": padded(tokens, EOS),
        "completion_mask": padded([torch.ones_like(t) for t in tokens], 0),
        "advantages": torch.tensor([float(advantage) for _, advantage, _ in rows], dtype=torch.float64),
        "num_items_in_batch": torch.tensor(sum(len(t) for t in tokens)),
        # TRL pads with 0; nothing may depend on it
        "sampling_per_token_logps": padded([sampler for _, _, sampler in rows], 123.0),
    }


@dataclass
class Rollouts:
    """TRL's `rollout_func` in vLLM's place: samples at a temperature of its own and says with which log-probs.

    `reported` is the temperature of the log-probs, where it is another one (an engine that returns them unprocessed).
    Everything sampled is kept in `calls`, one list of (response, log μ, log π_old) per generation.
    """

    temperature: float
    reported: float | None = None
    calls: list = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, prompts, trainer):
        generator = torch.Generator().manual_seed(len(self.calls))
        prompt = tokenizer()(PROMPT)["input_ids"]
        ids = torch.tensor([prompt] * len(prompts))
        for _ in range(LONGEST):
            logits = trainer.model(input_ids=ids).logits[:, -1]
            drawn = torch.multinomial((logits / self.temperature).softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], dim=1)
        sampled = [_up_to_the_end(row) for row in ids[:, len(prompt) :].tolist()]
        reported = self.temperature if self.reported is None else self.reported
        cache = {
            tuple(y): (log_probs(trainer.model, y, reported), log_probs(trainer.model, y, trainer.temperature))
            for y in {tuple(y): y for y in sampled}.values()
        }
        self.calls.append([(y, *cache[tuple(y)]) for y in sampled])
        return {
            "prompt_ids": [prompt] * len(prompts),
            "completion_ids": sampled,
            "logprobs": [cache[tuple(y)][0].tolist() for y in sampled],
        }


def _up_to_the_end(tokens):
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
