"""The numbers of a configuration: what none of them may be, and the ranges of those that TRL takes as they come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo.registry import check_value

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

NOT_NEGATIVE = (
    "adam_epsilon",
    "beta",
    "entropy_coef_delta",
    "entropy_target",
    "learning_rate",
    "max_grad_norm",
    "neftune_noise_alpha",
    "off_policy_mask_threshold",
    "router_aux_loss_coef",
    "weight_decay",
)
POSITIVE = (
    "ref_model_sync_steps",
    "repetition_penalty",
    "temperature",
    "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max",
)
SHARES = ("min_p", "ref_model_mixup_alpha", "top_entropy_quantile")
"""In [0, 1]."""
BELOW_ONE = ("adam_beta1", "adam_beta2")
"""In [0, 1)."""


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
    for names, allowed in (
        (NOT_NEGATIVE, {"low": 0}),
        (POSITIVE, {"low": 0, "open_low": True}),
        (SHARES, {"low": 0, "high": 1}),
        (BELOW_ONE, {"low": 0, "high": 1, "open_high": True}),
        (("top_p",), {"low": 0, "high": 1, "open_low": True}),
    ):
        for name in names:
            value = getattr(config, name)
            if isinstance(value, int | float):
                check_value(f"{label}: {name}", value, **allowed)  # type: ignore[arg-type]


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
