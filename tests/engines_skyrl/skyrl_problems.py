"""SkyRL's configuration with our overrides, its c·A, its sum over micro-batches, and the comparison of two losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import (
    PolicyLossRegistry,
    apply_loss_reduction_to_advantages_minibatch,
)
from skyrl.train.config import AlgorithmConfig, make_config

from dgpo import objectives
from dgpo.engines import skyrl as plugin

NOT_ADAPTIVE = [name for name, cls in objectives.OBJECTIVES.items() if "batch" not in cls().reads]
PENALISED = [name for name in NOT_ADAPTIVE if objectives.make(name).penalises]
STEADY = [name for name in NOT_ADAPTIVE if name not in PENALISED]
SIGN_ONLY = {"maspo": {"beta_pos": 0.0, "beta_neg": 0.0}}
"""Fields with which the weight reads the sign of A and nothing else of it."""


def algorithm(*overrides: str) -> AlgorithmConfig:
    """The way of a command line to `trainer.algorithm`, through SkyRL's own composition."""
    config = make_config(algorithm_cls=plugin.DGPOAlgorithmConfig)
    found: AlgorithmConfig = config.from_cli_overrides([f"trainer.algorithm.{line}" for line in overrides])
    return found.trainer.algorithm


def of(name: str, *more: str) -> AlgorithmConfig:
    fields = [f"objective_kwargs.{key}={value}" for key, value in SIGN_ONLY.get(name, {}).items()]
    return algorithm(f"policy_loss_type=dgpo:{name}", *fields, *more)


def scaled(batch: Any, reduction: str, **more: Any) -> torch.Tensor:
    """c·A, by SkyRL's own function."""
    advantages = batch.advantage.unsqueeze(1).expand(batch.mask.shape)
    found: torch.Tensor = apply_loss_reduction_to_advantages_minibatch(
        advantages, batch.mask.to(torch.float64), reduction, micro_batch_size=2, max_seq_len=32, **more
    )
    return found


def in_parts(batch: Any, config: AlgorithmConfig, advantages: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """The sum over micro-batches, as a worker adds their gradients."""
    loss = PolicyLossRegistry.get(config.policy_loss_type)
    parts = zip(*(x.split(cuts) for x in (batch.logprob, batch.old_logprob, advantages, batch.mask)), strict=True)
    values = [loss(new, old, A, config=config, loss_mask=mask.to(torch.float64))[0] for new, old, A, mask in parts]
    return torch.stack(values).sum()


def assert_same(batch: Any, found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12) -> None:
    assert found.item() == pytest.approx(expected.item(), rel=rtol)
    pair = [torch.autograd.grad(value, batch.logprob, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*pair, rtol=rtol, atol=1e-15)
