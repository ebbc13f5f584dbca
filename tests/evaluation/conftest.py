"""A tiny random Qwen2 with a character tokenizer: everything that generation needs, and nothing from a hub."""

from __future__ import annotations

import string

import pytest
import torch

CHARACTERS = string.digits + string.ascii_letters + " +-=?.:|"
SPECIAL = ["<pad>", "<eos>", "<unk>"]


@pytest.fixture(scope="session")
def make_tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(**options):
        vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        backend.decoder = decoders.Fuse()
        named = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "padding_side": "right"} | options
        return PreTrainedTokenizerFast(tokenizer_object=backend, **named)

    return make


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def make_model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def make(initializer_range=0.3):
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(SPECIAL) + len(CHARACTERS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            initializer_range=initializer_range,  # the usual 0.02 makes near-ties of all tokens
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        return Qwen2ForCausalLM(config)

    return make


@pytest.fixture
def model(make_model):
    return make_model()
