"""The doctor's rules, unchanged, on the recorded metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dgpo.diagnostics.doctor import RULES, Case, Rule
from dgpo.runs.log import KEYS, Log

RECORDED = {
    "reward": "reward",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "kl_old": "kl_old",
    "ess": "ess",
    "weight_max": "largest_weight",
}
"""Quantity of the doctor -> metric of the atlas. The share of weights that are 0 is not recorded: where a hard clip
stops tokens, `concentration` takes their zeros for a low ess."""
FORESEEING = ("entropy_falling", "entropy_rising", "grad_spike", "drift", "concentration")
"""Rules that are held against a collapse that is still to come."""
SEEING = "reward_fell"
"""The rule that should find one afterwards."""


def named(names: Sequence[str]) -> list[Rule]:
    """The rules with these names."""
    rules = {rule.name: rule for rule in RULES}
    return [rules[name] for name in names]


def log_of(metrics: Mapping[str, NDArray[np.floating]], member: int) -> Log:
    """The log of one member, one line per update, as `DGPOTrainer` would name its metrics."""
    columns = {KEYS[name][0]: metrics[ours][:, member].astype(float).tolist() for name, ours in RECORDED.items()}
    updates = range(len(metrics["reward"]))
    return Log(rows=tuple((u, {key: values[u] for key, values in columns.items()}) for u in updates))


def warned(rules: Sequence[Rule], log: Log, updates: int) -> list[bool]:
    """Which rules give a warning or an error, asked after so many updates; a note is no alarm."""
    case = Case(log=Log(rows=log.rows[:updates]))
    return [(finding := rule(case)) is not None and finding.severity != "note" for rule in rules]
