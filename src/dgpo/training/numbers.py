"""The numbers of a configuration: their ranges, those included that TRL takes as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo.fields import check_value
from dgpo.training import schedule

RANGES = {
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "[0, inf)",
    "beta": "[0, inf)",
    "delta": "(-inf, inf]",
    "entropy_coef_delta": "[0, inf)",
    "entropy_coef_max": "(-inf, inf]",
    "entropy_target": "[0, inf)",
    "epsilon_high": "(-inf, inf]",
    "eval_benchmark_steps": "[1, inf)",
    "learning_rate": "[0, inf)",
    "max_grad_norm": "[0, inf]",
    "max_num_gen_batches": "[1, inf)",
    "max_tokens_per_micro_batch": "[1, inf)",
    "min_p": "[0, 1]",
    "neftune_noise_alpha": "[0, inf)",
    "off_policy_mask_threshold": "[0, inf]",
    "positive_nll_coef": "[0, inf)",
    "rank_timeout": "[0, inf)",
    "record_completions": "[0, inf)",
    "record_every": "[1, inf)",
    "record_limit_mb": "(0, inf]",
    "ref_model_mixup_alpha": "[0, 1]",
    "ref_model_sync_steps": "(0, inf)",
    "repetition_penalty": "(0, inf)",
    "router_aux_loss_coef": "[0, inf)",
    "temperature": "(0, inf)",
    "top_entropy_quantile": "[0, 1]",
    "top_p": "(0, 1]",
    "vllm_importance_sampling_cap": "(0, inf]",
    "vllm_importance_sampling_clip_max": "(0, inf]",
    "weight_decay": "[0, inf)",
    **dict.fromkeys(schedule.SIZES, "[1, inf)"),
}
"""Infinity is allowed where it means that there is no limit. Numbers of other fields only have to be finite."""


def check_numbers(config: Any) -> None:
    """Refuse numbers out of range, NaN in any field of a dataclass, and infinity where it means nothing.

    Lists and dictionaries are looked into. An infinity in a dictionary is left to whoever takes its entries: a
    correction has `cap=inf`.

    Raises:
        ValueError: names the field, its value and what is expected.
    """
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        interval = "(-inf, inf]" if isinstance(given, Mapping) else RANGES.get(field.name, "(-inf, inf)")
        for place, value in _numbers(field.name, given):
            check_value(f"{type(config).__name__}: {place}", value, interval)


def _numbers(place: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in a value, with the place where it stands."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{place}[{key!r}]", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _numbers(f"{place}[{i}]", inner)
