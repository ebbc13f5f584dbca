"""A member as transformers has it, which any trainer takes: what the engine is compared with."""

from __future__ import annotations

from problems import END, VOCABULARY
from stacked import Shape
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def model_of(shape: Shape, flat: Tensor, index: int) -> GPT2LMHeadModel:
    """The model with the parameters of member `index` of `flat` [S, size]."""
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.prompt + shape.response,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )
    model = GPT2LMHeadModel(config).to(flat.dtype)
    model.load_state_dict(shape.member(flat, index), strict=True)
    return model


def words() -> PreTrainedTokenizerFast:
    """Token i is written "i"."""
    inner = Tokenizer(WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token=str(END)))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=str(END), eos_token=str(END), padding_side="left")
