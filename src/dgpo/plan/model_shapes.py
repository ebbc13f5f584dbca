"""How large a decoder is, from the numbers in its config.json: what a plan of memory and time is computed from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a layer, under the names that LoRA targets go by."""

DEFAULT_LORA_TARGETS = ("q_proj", "v_proj")
"""PEFT's for these families."""

FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
"""model_type -> what a layer has beside seven matrices without bias and two norms."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder with gated MLPs, grouped-query attention, RMS norms and rotary positions.

    Attributes:
        hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary: sizes; H, L, and V below are the hidden
            size, the layers and the vocabulary, A = heads · head_dim, K = kv_heads · head_dim, I = intermediate.
        tied: the output head is the embedding.
        qkv_bias: biases on the query, key and value projections.
        qk_norm: norms of [head_dim] on queries and keys.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def attention(self) -> int:
        """A, the width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_values(self) -> int:
        """K, the width of all key heads."""
        return self.kv_heads * self.head_dim

    @property
    def head(self) -> int:
        """Parameters of the output head, V · H."""
        return self.vocabulary * self.hidden

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of every matrix of one layer."""
        return {
            "q_proj": (self.hidden, self.attention),
            "k_proj": (self.hidden, self.key_values),
            "v_proj": (self.hidden, self.key_values),
            "o_proj": (self.attention, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's matrices: 2·H·A + 2·H·K + 3·H·I."""
        return sum(inputs * outputs for inputs, outputs in self.matrices().values())

    @property
    def layer(self) -> int:
        """Parameters of one layer: matrices, 2·H of norms, A + 2·K of biases, 2 · head_dim of query and key norms."""
        biases = (self.attention + 2 * self.key_values) * self.qkv_bias
        return self.layer_matrices + 2 * self.hidden + biases + 2 * self.head_dim * self.qk_norm

    @property
    def parameters(self) -> int:
        """All parameters, L · layer + V·H + H, and V·H again for an untied head."""
        return self.layers * self.layer + self.head * (1 if self.tied else 2) + self.hidden

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of LoRA adapters: rank · (inputs + outputs) for every target of every layer (arXiv 2106.09685)."""
        sizes = self.matrices()
        return self.layers * sum(rank * sum(sizes[name]) for name in targets)

    def forward_flops(self, length: int) -> float:
        """FLOPs of one token's forward pass in a causal sequence of `length` tokens.

        Two for each parameter of a matrix, the head's included and the embedding's not, and per layer 2 · A · length
        for attention: 4 · A for each of the length / 2 positions that a token sees on average (arXiv 2204.02311,
        appendix B, with the causal half).
        """
        return 2.0 * (self.layers * self.layer_matrices + self.head) + 2.0 * self.layers * self.attention * length

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Of a config of transformers.

        Raises:
            ValueError: a family whose parameters are not counted here.
        """
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"the memory of model_type = {config.model_type!r} is not estimated; known: {', '.join(FAMILIES)}"
            )
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            # not every family has it in its configuration
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            **FAMILIES[config.model_type],
        )


def _qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, tied: bool
) -> ModelShape:
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=tied,
        qkv_bias=True,
    )


_HALF = _qwen2(896, 24, 14, 2, 4864, 151936, True)
_SMALL = _qwen2(1536, 28, 12, 2, 8960, 151936, True)
_LARGE = _qwen2(3584, 28, 28, 4, 18944, 152064, False)
SHAPES: dict[str, ModelShape] = {
    "Qwen/Qwen2.5-0.5B": _HALF,
    "Qwen/Qwen2.5-0.5B-Instruct": _HALF,
    "Qwen/Qwen2.5-1.5B": _SMALL,
    "Qwen/Qwen2.5-1.5B-Instruct": _SMALL,
    "Qwen/Qwen2.5-Math-1.5B": _SMALL,
    "Qwen/Qwen2.5-7B": _LARGE,
    "Qwen/Qwen2.5-7B-Instruct": _LARGE,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": replace(_SMALL, tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _LARGE,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _qwen2(5120, 48, 40, 8, 13824, 152064, False),
}
"""Hub models whose shape is known without a download, from their config.json."""


def shape_of(model: str) -> ModelShape | None:
    """The shape of a folder, or of a hub model of `SHAPES`; None for another hub name. Never asks the hub.

    Raises:
        ValueError: a family whose parameters are not counted here, or a folder without a readable config.json.
    """
    if os.path.isdir(model):
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"model folder {model!r} has no config.json that can be read: {error}") from error
        return ModelShape.of(config)
    return SHAPES.get(model)


def lora_targets(names: Any) -> tuple[str, ...]:
    """The matrices that LoRA adapts, from `lora_target_modules`: a list, "all-linear", or None for PEFT's own.

    Raises:
        ValueError: a name that is not a matrix of a layer.
    """
    if names is None:
        return DEFAULT_LORA_TARGETS
    given = [names] if isinstance(names, str) else list(names)
    if given == ["all-linear"]:
        return PROJECTIONS
    for name in given:
        if name not in PROJECTIONS:
            raise ValueError(f"lora_target_modules: {name!r} is not counted here; known: {', '.join(PROJECTIONS)}")
    return tuple(given)
