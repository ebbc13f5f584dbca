"""What the tests of the plan share: configurations of small models, and the terms of a plan by name."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config


def config_of(sizes: tuple[Any, ...], cls: type = Qwen2Config, **more: Any) -> Any:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    )
    return cls(**dict(zip(names, sizes, strict=True)), **more)


TINY = config_of((64, 160, 2, 4, 2, 300, False), attn_implementation="sdpa")


def sizes(terms: Any) -> dict[str, float]:
    return {term.name: term.bytes for term in terms}
