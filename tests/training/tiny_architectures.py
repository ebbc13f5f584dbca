"""Every causal language model of the installed transformers, made tiny from its configuration, as far as that goes."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST_PARAMETERS = 3_000_000

_SIZES = {
    ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim", "hidden_dim"): 32,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"): 2,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"): 4,
    ("num_key_value_heads", "multi_query_group_num", "num_kv_heads"): 2,
    ("head_dim", "attention_head_dim", "qk_nope_head_dim", "v_head_dim", "global_head_dim", "swa_head_dim"): 8,
    ("qk_rope_head_dim", "rotary_dim"): 4,
    ("kv_lora_rank", "q_lora_rank"): 16,
    ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"): 48,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "mlp_hidden_size", "expert_dim"): 16,
    ("shared_intermediate_size", "lru_width"): 32,
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"): 2,
    ("n_group", "topk_group", "moe_layer_start_index", "first_k_dense_replace", "mlp_only_layers_count"): 1,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"): 64,
    ("vocab_size", "vocab_size_per_layer_input"): 130,
    ("hidden_size_per_layer_input",): 8,
    ("mamba_n_heads", "mamba_num_heads"): 8,
    ("mamba_d_head", "mamba_head_dim"): 8,
    ("mamba_d_ssm",): 64,
    ("mamba_d_state", "state_size", "ssm_state_size"): 8,
    ("time_step_rank", "mamba_dt_rank"): 4,
    ("linear_num_key_heads", "linear_num_value_heads"): 2,
    ("linear_key_head_dim", "linear_value_head_dim"): 8,
    ("sliding_window", "attention_window_size"): 16,
}
_MAY_BE_NONE = {"head_dim", "num_key_value_heads"}


def tiny(name: str, *, odd: bool = False, seed: int = 0) -> Any:
    """The model of this `model_type`, in float32 and evaluation mode.

    Args:
        name: a `model_type`.
        odd: whether everything in its configuration that looks like a scale and is 1 becomes 0.6.
        seed: of the weights.

    Raises:
        Exception: of any kind, where its configuration cannot be shrunk this way.
    """
    from transformers import AutoConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(name)
        for part in {id(one): one for one in (config, config.get_text_config())}.values():
            _shrink(part)
            if odd:
                _make_odd(part)
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if count > MOST_PARAMETERS:
            raise ValueError(f"{count:,} parameters after shrinking")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # heads and biases that are initialised to zero, too
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _shrink(config: Any) -> None:
    layers = 2
    for names, value in _SIZES.items():
        for name in names:
            with contextlib.suppress(Exception):  # a property, one value per layer, a check of the configuration
                old = getattr(config, name, None)
                left_open = old is None and name in _MAY_BE_NONE and hasattr(config, name)
                if left_open or (isinstance(old, int) and not isinstance(old, bool)):
                    setattr(config, name, value)
    if hasattr(config, "qk_rope_head_dim"):
        config.head_dim, config.qk_head_dim = config.qk_rope_head_dim, config.qk_nope_head_dim + config.qk_rope_head_dim
    if hasattr(config, "kv_lora_rank"):  # its heads share nothing
        config.num_key_value_heads = config.num_attention_heads
    if config.model_type == "mamba2":
        config.expand = 1
    for name in ("layer_types", "layers_block_type", "block_types", "mlp_layer_types", "no_rope_layers"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) > layers:
            with contextlib.suppress(Exception):
                setattr(config, name, _some_of_each(list(kinds), layers))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= 130:
            setattr(config, name, 1)
        elif isinstance(value, list):
            setattr(config, name, [1])


def _make_odd(config: Any) -> None:
    for name, value in config.to_dict().items():
        if value == 1 and isinstance(value, float) and any(word in name for word in ("scal", "multiplier", "mup")):
            with contextlib.suppress(Exception):
                setattr(config, name, 0.6)


def _some_of_each(kinds: list[Any], count: int) -> list[Any]:
    seen = list(dict.fromkeys(kinds))
    return (seen + kinds)[:count] if len(seen) < count else seen[:count]
