"""The loop that leaves out what `generate` computes in vain samples what `generate` samples."""

import itertools
import logging
import re
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from dgpo.evaluation import decoding

ENDS = [1, *range(20, 30)]
"""One of 11 in about 68 tokens, so that rows end all along."""


def config(**options):
    return GenerationConfig(**{"max_new_tokens": 24, "eos_token_id": ENDS, "pad_token_id": 0, "top_k": 0, **options})


def groups(size=6):
    """Three prompts of different lengths, padded on the left, `size` rows each, in a mixed order."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(30, 60, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, :1] = 0
    order = torch.randperm(3 * size, generator=generator)
    return {"input_ids": ids.repeat(size, 1)[order], "attention_mask": mask.repeat(size, 1)[order]}


def sampled(generate, **arguments):
    torch.manual_seed(5)
    with torch.no_grad():
        return generate(**arguments).tolist(), torch.get_rng_state().tolist()


@contextmanager
def watched(model):
    """The shapes of the token ids of every forward pass."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


def mistral():
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=69,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=5,
            initializer_range=0.3,
        )
    )


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "min_new_tokens": 3},
        {"do_sample": True, "top_k": 20, "min_p": 0.01, "suppress_tokens": [40], "no_repeat_ngram_size": 2},
        {"do_sample": False},
    ],
)
def test_the_tokens_and_the_random_numbers_of_generate(model, options, window):
    model = (mistral() if window else model).eval()
    settings = config(**options)
    expected = sampled(model.generate, generation_config=settings, **groups())
    with watched(model) as shapes:
        assert sampled(decoding.generate, model=model, generation_config=settings, **groups()) == expected
    # a forward pass per prompt, then one per row that has not ended: within the share that may have
    lengths = [next((n for n, token in enumerate(row[7:], 1) if token in ENDS), 24) for row in expected[0]]
    assert shapes[0] == (3, 7)
    running = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert len(shapes) - 1 == len(running)
    share = 1 - 1 / decoding.SHARE
    assert all(left <= rows and rows * share <= left for (rows, _), left in zip(shapes[1:], running, strict=True))
    assert min(lengths) < max(lengths)


def test_prompts_without_padding(model):
    ids = torch.tensor([[40, 41, 42]] * 4 + [[43, 44, 45]] * 4)
    arguments = {"generation_config": config(do_sample=True), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = sampled(model.eval().generate, **arguments)
    with watched(model) as shapes:
        assert sampled(decoding.generate, model=model, **arguments) == expected
    assert shapes[0] == (2, 3)


def test_random_numbers_for_the_remaining_rows_alone_give_the_same_distribution(model, monkeypatch):
    """Shares of all texts of at most three tokens, against the products of the model's probabilities."""
    monkeypatch.setattr(decoding, "DRAWS", 0)
    model.eval()
    allowed, end, count = [1, 40, 41], 1, 20_000
    ids = torch.full((count, 2), 50)
    settings = config(
        do_sample=True,
        max_new_tokens=3,
        eos_token_id=end,
        suppress_tokens=[token for token in range(model.config.vocab_size) if token not in allowed],
        temperature=2.0,
    )
    torch.manual_seed(0)
    drawn = decoding.generate(model, input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    drawn = [tuple(row[: row.index(end) + 1] if end in row else row) for row in drawn[:, 2:].tolist()]
    texts = [
        text
        for length in (1, 2, 3)
        for text in itertools.product(allowed, repeat=length)
        if end not in text[:-1] and (length == 3 or text[-1] == end)
    ]
    total = 0.0
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([[50, 50, *text]])).logits[0, 1:-1, allowed] / 2
        p = logits.softmax(-1)[range(len(text)), [allowed.index(token) for token in text]].prod().item()
        total += p
        assert abs(drawn.count(text) / count - p) < 5 * (p * (1 - p) / count) ** 0.5
    assert total == pytest.approx(1)
    assert 0.05 < sum(len(text) < 3 for text in drawn) / count < 0.95


def test_adapters(model):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    arguments = {"generation_config": config(do_sample=True), **groups()}
    expected = sampled(model.generate, **arguments)
    with watched(model.get_base_model()) as shapes:
        assert sampled(decoding.generate, model=model, **arguments) == expected
    assert shapes[0] == (3, 7)


def prefix(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def mamba(_):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 2}
    return MambaForCausalLM(MambaConfig(vocab_size=69, initializer_range=0.3, **sizes))


def dropping(_):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=69, initializer_range=0.3, **sizes)).train()


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (None, {"num_beams": 2}, "the mode is beam_search"),
        (None, {"do_sample": True, "repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor may not treat"),
        (None, {"do_sample": True, "cache_implementation": "static"}, "cache"),
        (None, {"do_sample": True, "use_cache": False}, "the cache is NoneType"),
        (None, {"do_sample": True, "max_time": 60.0}, "MaxTimeCriteria may not treat"),
        (None, {"do_sample": True, "return_dict_in_generate": True}, "more than token ids"),
        (mamba, {"do_sample": True}, "takes|cache"),
        (dropping, {"do_sample": True}, "dropout"),
        (prefix, {"do_sample": True}, "adapters"),
    ],
)
def test_what_the_loop_does_not_do_is_left_to_generate(model, change, options, reason, caplog):
    model = model.eval() if change is None else change(model)
    settings = config(disable_compile=True, **options)

    def ids(**arguments):
        found = model.generate(**arguments)
        return getattr(found, "sequences", found)

    expected = sampled(ids, generation_config=settings, **groups())

    def ours(**arguments):
        found = decoding.generate(model, **arguments)
        return getattr(found, "sequences", found)

    with caplog.at_level(logging.DEBUG, decoding.__name__):
        assert sampled(ours, generation_config=settings, **groups()) == expected
    (line,) = [record.getMessage() for record in caplog.records if record.name == decoding.__name__]
    assert re.search(f"transformers' own loop generates: .*({reason})", line)


def test_the_method_of_the_model_is_put_back(model):
    theirs = model.generate
    with decoding.faster_generate(model):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)
    assert model.generate == theirs
    own = model.generate = nn.Identity.forward
    with pytest.raises(KeyError), decoding.faster_generate(model):
        raise KeyError
    assert model.generate is own


def test_arguments_that_a_loop_of_our_own_would_lose(model):
    """transformers hands them to its own loop alone, and drops them without a word."""

    class Streamer(list):
        put, end = list.append, lambda _: None

    streamer, arguments = Streamer(), {"generation_config": config(do_sample=True)}
    ids = torch.full((1, 3), 40)
    model.eval()
    with decoding.faster_generate(model):
        found = model.generate(ids, streamer=streamer, attention_mask=torch.ones_like(ids), **arguments)
    assert torch.cat([one.flatten() for one in streamer]).tolist() == found[0].tolist()
    assert found.shape[1] > 3


def test_a_generate_of_somebody_else_is_called_as_it_is(model):
    model.generate = lambda input_ids, attention_mask: input_ids + attention_mask
    ids = torch.tensor([[1, 2]])
    assert decoding.generate(model, input_ids=ids, attention_mask=ids).tolist() == [[2, 4]]
    with decoding.faster_generate(model):
        assert model.generate(ids, ids).tolist() == [[2, 4]]
