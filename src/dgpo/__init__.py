"""dgpo: policy optimisation for reinforcement learning with verifiable rewards.

Decoupled Gradient Policy Optimization (arXiv 2603.14389), MASPO (arXiv 2602.17550) and the methods they are compared
with, as weights on one policy gradient. It needs torch and nothing else, which is imported with the first name that is
used: `dgpo --version` imports neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgpo import advantages, aggregation, correction, kl, objectives, regions
    from dgpo.advantages import group_advantage
    from dgpo.aggregation import StepTotals
    from dgpo.fused import LinearPolicyLoss, linear_policy_loss
    from dgpo.loss import PolicyLoss, check_loss, policy_loss
    from dgpo.tokens import MAX_LOG_RATIO, TokenBatch, check

__version__ = "0.1.0"

__all__ = [
    "LinearPolicyLoss",
    "MAX_LOG_RATIO",
    "PolicyLoss",
    "StepTotals",
    "TokenBatch",
    "__version__",
    "advantages",
    "aggregation",
    "check",
    "check_loss",
    "correction",
    "group_advantage",
    "kl",
    "linear_policy_loss",
    "objectives",
    "policy_loss",
    "regions",
]

_HOME = {
    "group_advantage": "advantages",
    "StepTotals": "aggregation",
    "LinearPolicyLoss": "fused",
    "linear_policy_loss": "fused",
    "PolicyLoss": "loss",
    "check_loss": "loss",
    "policy_loss": "loss",
    "MAX_LOG_RATIO": "tokens",
    "TokenBatch": "tokens",
    "check": "tokens",
}
"""Public name -> the module that defines it. Every other name of `__all__` is a module."""

_MODULES = {*(set(__all__) - set(_HOME) - {"__version__"}), *_HOME.values(), "spec"}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the core, when it is first used (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"dgpo.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"dgpo.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
