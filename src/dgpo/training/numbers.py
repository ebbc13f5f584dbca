"""The numbers of a configuration: what none of them may be, and the ranges of those that TRL takes as they come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo.fields import check_value

LIMITS = frozenset(
    {
        "delta",
        "entropy_coef_max",
        "epsilon_high",
        "max_grad_norm",
        "off_policy_mask_threshold",
        "record_limit_mb",
        "vllm_importance_sampling_cap",
        "vllm_importance_sampling_clip_max",
    }
)
"""Fields that are upper limits, so that infinity means none."""

RANGES = {
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "[0, inf]",
    "beta": "[0, inf]",
    "entropy_coef_delta": "[0, inf]",
    "entropy_target": "[0, inf]",
    "learning_rate": "[0, inf]",
    "max_grad_norm": "[0, inf]",
    "min_p": "[0, 1]",
    "neftune_noise_alpha": "[0, inf]",
    "off_policy_mask_threshold": "[0, inf]",
    "ref_model_mixup_alpha": "[0, 1]",
    "ref_model_sync_steps": "(0, inf]",
    "repetition_penalty": "(0, inf]",
    "router_aux_loss_coef": "[0, inf]",
    "temperature": "(0, inf]",
    "top_entropy_quantile": "[0, 1]",
    "top_p": "(0, 1]",
    "vllm_importance_sampling_cap": "(0, inf]",
    "vllm_importance_sampling_clip_max": "(0, inf]",
    "weight_decay": "[0, inf]",
}
"""Of TRL's fields, which it takes as they come."""


def check_numbers(config: Any) -> None:
    """Refuse a NaN in any field of a dataclass, an infinity where it means nothing, and numbers out of range.

    Lists and dictionaries are looked into. An infinity in a dictionary is left to whoever takes its entries: a
    correction has `cap=inf`.

    Raises:
        ValueError: names the field, its value and what is expected.
    """
    label = type(config).__name__
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        unlimited = field.name in LIMITS or isinstance(given, Mapping)
        for place, value in _numbers(field.name, given):
            if math.isnan(value) or (math.isinf(value) and not (unlimited and value > 0)):
                finite = "a finite number, or inf for no limit" if unlimited else "a finite number"
                raise ValueError(f"{label}: {place} = {value!r} is not allowed; expected {finite}")
    for name, interval in RANGES.items():
        value = getattr(config, name)
        if isinstance(value, int | float):
            check_value(f"{label}: {name}", value, interval)


def _numbers(place: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every float in a value, with the place where it stands."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{place}[{key!r}]", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _numbers(f"{place}[{i}]", inner)
