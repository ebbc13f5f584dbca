"""The log of a run: common names for the metrics of several trainers, and their values over steps."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dgpo.runs.metrics import with_steps


def _ours(name: str) -> tuple[str, ...]:
    """A statistic of the loss: of our trainer, of our plug-ins (`actor/objective/...` in verl), and as a mean."""
    return (f"objective/{name}", f"*/objective/{name}", f"objective/{name}/mean")


KEYS: dict[str, tuple[str, ...]] = {
    "reward": ("reward", "critic/score/mean", "train/agg/all/*/reward/mean"),
    "reward_std": ("reward_std",),
    "reward_max": ("critic/score/max", "train/agg/all/*/reward/max"),
    "reward_min": ("critic/score/min", "train/agg/all/*/reward/min"),
    "zero_std": ("frac_reward_zero_std",),
    "mixed_groups": ("train/agg/all/*/solved_some",),
    "advantage_max": ("critic/advantages/max",),
    "advantage_min": ("critic/advantages/min",),
    "truncated": (
        "completions/clipped_ratio",
        "response_length/clip_ratio",
        "train/agg/all/*/stop_condition/generation_truncated",
        "train/agg/all/*/is_truncated/mean",
    ),
    "length": (
        "completions/mean_length",
        "response_length/mean",
        "train/agg/all/*/num_output_tokens/mean",
    ),
    "loss": ("policy_loss", "loss", "actor/pg_loss", "actor/loss", "loss/mean"),
    "grad_norm": ("grad_norm", "actor/grad_norm", "optim/grad_norm"),
    "learning_rate": ("learning_rate", "actor/lr", "optim/lr"),
    "entropy": ("entropy", "actor/entropy", "actor/entropy_loss", "entropy/all/mean"),
    "kl_old": _ours("kl/old"),
    "mean_log_ratio": ("actor/ppo_kl",),
    "clipped": ("clip_ratio/region_mean", "cispo_clip_ratio", "actor/pg_clipfrac"),
    "inside": _ours("fraction/inside"),
    "reverse_right": _ours("mass/reverse_right"),
    "weight_max": (*_ours("weight/max"), "*objective/weight_max", "*objective/weight/max/max"),
    "ess": _ours("weight/ess"),
    "weight_zero": _ours("weight/zero_fraction"),
    "advantage_zero": _ours("advantage/zero_fraction"),
    "kl_sampler": (*_ours("kl/sampler"), "rollout_corr/k3_kl"),
    "kl_sampler_k1": (*_ours("kl/sampler_k1"), "rollout_corr/kl"),
    "sampler_cut": _ours("sampler/cut_mass"),
    "sampler_difference": ("sampling/sampling_logp_difference/mean",),
    "sampler_probability": ("training/rollout_probs_diff_mean",),
    "kl_sampler_and_old": ("mismatch_kl/all/mean",),
    "timeout": ("math_reward/timeout", "*/timeout", "*/timeout_rate"),
}
"""Quantity -> the names under which trainers log it. The first one in the log is used; `*` matches any text.

TRL 1.16 and ours: `trl.GRPOTrainer`, `DGPOTrainer`. verl 0.9.1: `compute_data_metrics`, `ppo_loss`,
`compute_offpolicy_metrics`, `calculate_debug_metrics`. prime-rl 559b4477: `trainer/rl/train.py`,
`orchestrator/metrics.py`, whose `mismatch_kl` is between sampler and current policy, so that it includes staleness.
"""

MUST_BE_FINITE = ("loss", "grad_norm", "entropy", "kl_old", "mean_log_ratio", "kl_sampler", "weight_max")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity over a run.

    Attributes:
        key: its name in the log; empty if it was not logged.
        steps: optimiser steps, ascending.
        values: one finite number per step.
        broken: steps at which it was logged as NaN, infinite or (verl) null.
    """

    key: str = ""
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    broken: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def part(self, first: int, last: int | None = None) -> Series:
        """The points with index first .. last."""
        return Series(key=self.key, steps=self.steps[first:last], values=self.values[first:last])

    @property
    def at(self) -> dict[int, float]:
        """Step -> value."""
        return dict(zip(self.steps, self.values, strict=True))

    @property
    def head(self) -> Series:
        """The start of the run: the first tenth, at least three points."""
        return self.part(0, max(3, len(self) // 10))

    @property
    def tail(self) -> Series:
        """The current state of the run: the last third, at least three points."""
        return self.part(-max(3, len(self) // 3))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def since(self, found: Callable[[float], bool]) -> int | None:
        """The first step whose value satisfies `found`."""
        return next((step for step, value in self.at.items() if found(value)), None)

    def share(self, found: Callable[[float], bool]) -> float:
        """Share of the points that satisfy `found`; 0 without points."""
        return sum(map(found, self.values)) / len(self) if len(self) else 0.0

    def __str__(self) -> str:
        """As evidence: `entropy 0.58 at steps 1-30`; the median if there are several points."""
        where = f"at step {self.steps[0]}" if len(self) == 1 else f"at steps {self.steps[0]}-{self.steps[-1]} (median)"
        return f"{self.key} {self.median:.3g} {where}"


@dataclass(frozen=True, kw_only=True)
class Log:
    """The log lines of a run, one per step, and its events.

    Attributes:
        rows: (step, key -> value), by step.
        resumed: steps at which training was resumed from a checkpoint.
    """

    rows: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    resumed: tuple[int, ...] = ()

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Log:
        """Build from lines with a `step`, and events; merges lines of the same step (prime-rl writes several).

        Raises:
            ValueError: if a line has no step; names its number.
        """
        rows: dict[int, dict[str, Any]] = {}
        resumed = []
        for step, line in with_steps(lines):
            if "event" in line:
                if line["event"] == "begin" and step > 0:
                    resumed.append(step)
                continue
            data = line.get("data")
            # verl writes null for NaN (orjson does); TRL writes null for a mean over nothing
            if not isinstance(data, Mapping):
                data = {key: value for key, value in line.items() if value is not None}
            rows.setdefault(step, {}).update(data)
        return cls(rows=tuple(sorted(rows.items())), resumed=tuple(resumed))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All names in the log, in order of appearance."""
        return tuple(dict.fromkeys(key for _, row in self.rows for key in row))

    def __getitem__(self, quantity: str) -> Series:
        """A quantity of `KEYS`; empty where the log has none of its names."""
        for pattern in KEYS[quantity]:
            expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
            # names are tried by preference, keys in the order of the log; those of evaluations are not training metrics
            for key in self.keys:
                if expression.fullmatch(key) and not key.startswith(("eval_", "val")):
                    return self.series(key)
        return Series()

    def series(self, key: str) -> Series:
        """The values logged under one name."""
        points = [(step, row[key]) for step, row in self.rows if key in row]
        numbers = [(s, float(v)) for s, v in points if isinstance(v, int | float) and math.isfinite(v)]
        return Series(
            key=key,
            steps=tuple(step for step, _ in numbers),
            values=tuple(value for _, value in numbers),
            broken=tuple(s for s, v in points if v is None or (isinstance(v, float) and not math.isfinite(v))),
        )


def aligned(first: Series, second: Series) -> list[tuple[int, float, float]]:
    """(step, value, latest value of `second` up to that step): some metrics are logged once per generation."""
    pairs, at, latest = [], 0, None
    for step, value in first.at.items():
        while at < len(second) and second.steps[at] <= step:
            latest, at = second.values[at], at + 1
        if latest is not None:
            pairs.append((step, value, latest))
    return pairs


def sample(steps: Sequence[int]) -> str:
    """Steps as text, at most four of them."""
    shown = ", ".join(map(str, steps[:4]))
    return f"{shown}, ... ({len(steps)} in all)" if len(steps) > 4 else shown
