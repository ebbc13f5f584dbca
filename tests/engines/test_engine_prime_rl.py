"""The loss for prime-rl against its documented call, as in src/prime_rl/trainer/rl/loss.py.

PrimeIntellect-ai/prime-rl@559b4477 (v0.8.1.dev67, 2026-08-21) is not on a package index: its two dataclasses are
repeated here, by the names of their fields.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo import StepTotals, objectives, policy_loss

STEADY = [name for name, cls in objectives.OBJECTIVES.items() if "batch" not in cls().reads]


@dataclass
class LossInputs:
    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = None


@dataclass
class LossOutputs:
    loss: Tensor
    metrics: dict[str, Tensor]


@pytest.fixture(autouse=True)
def prime_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.rl", "prime_rl.trainer.rl.loss"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = sys.modules["prime_rl.trainer.rl.loss"]
    module.LossInputs, module.LossOutputs = LossInputs, LossOutputs  # type: ignore[attr-defined]


def imported(path: str) -> Callable[..., LossOutputs]:
    """The way of `import_path` to a function, as in `setup_rl_loss_fn`."""
    module, _, name = path.rpartition(".")
    function: Callable[..., LossOutputs] = getattr(importlib.import_module(module), name)
    return function


def sequences(batch: Any, weights: Tensor | None = None) -> list[LossInputs]:
    """One entry per response, cut to another length each, with NaN where the trainer's mask is False."""
    found = []
    for row in range(len(batch.advantage)):
        length = batch.mask.shape[1] - row % 2
        mask = batch.mask[row, :length]
        found.append(
            LossInputs(
                trainer_logprobs=batch.logprob[row, :length],
                inference_logprobs=torch.where(mask, batch.rollout_logprob[row, :length], torch.nan),
                ref_logprobs=None,
                advantages=batch.advantage[row].expand(length),
                loss_mask=mask,
                loss_weights=None if weights is None else weights[row, :length],
            )
        )
    return found


@pytest.mark.parametrize("name", STEADY)
def test_the_sum_over_sequences_is_the_token_mean_of_the_step(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.mask[:, -1] = False  # so that no token is lost where a sequence is cut
    batch.logprob.requires_grad_()
    loss = imported("dgpo.engines.prime_rl.loss")
    outputs = [loss(inputs, **{"objective": name, "objective_kwargs": {}}) for inputs in sequences(batch)]
    total = sum(out.loss for out in outputs) / batch.mask.sum()
    expected = policy_loss(batch.logprob, batch.rollout_logprob, batch.advantage, batch.mask, name)
    assert total.item() == pytest.approx(expected.value.item(), rel=1e-12)
    pair = [torch.autograd.grad(value, batch.logprob)[0] for value in (total, expected.value)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-15)
    assert all(set(out.metrics) == set(outputs[0].metrics) for out in outputs)
    assert all(value.dim() == 0 and value.isfinite() for out in outputs for value in out.metrics.values())
    assert {"objective/fraction/left", "objective/weight/mean"} <= set(outputs[0].metrics)


def test_fields_of_the_objective_and_weights_of_tokens(make_batch: Callable[..., Any]) -> None:
    batch = make_batch(B=1)
    weights = torch.rand(1, 7, dtype=torch.float64)
    (inputs,) = sequences(batch, weights)
    kwargs = {"objective": "dgpo", "objective_kwargs": {"n": 2, "m": 3}}
    out = imported("dgpo.engines.prime_rl.loss")(inputs, **kwargs)
    tokens = [
        policy_loss(
            batch.logprob[:, t : t + 1],
            batch.rollout_logprob[:, t : t + 1],
            batch.advantage,
            batch.mask[:, t : t + 1],
            objectives.DGPO(n=2, m=3),
            totals=StepTotals(tokens=1, sequences=1),
        ).value
        for t in range(7)
    ]
    assert out.loss.item() == pytest.approx(float(weights[0] @ torch.stack(tokens)), rel=1e-12)


def test_a_sequence_without_a_token_is_zero_and_has_a_gradient(make_batch: Callable[..., Any]) -> None:
    batch = make_batch(B=1)
    batch.logprob.requires_grad_()
    batch.mask[:] = False
    out = imported("dgpo.engines.prime_rl.loss")(sequences(batch)[0], objective="dgpo")
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert batch.logprob.grad.abs().sum() == 0
    assert all(value.isfinite() for value in out.metrics.values())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"objective": "dgop"}, ValueError, "unknown objective 'dgop', did you mean 'dgpo'"),
        ({"objective": "bapo"}, ValueError, "prime-rl: objective 'bapo' calibrates itself"),
        ({"objective": "dgpo", "objective_kwargs": {"k": 1}}, ValueError, "no field 'k'"),
        ({"objective": "dgpo", "objective_kwargs": [1]}, TypeError, r"objective_kwargs = \[1\] is of type list"),
        ({"objective": "aspo", "objective_kwargs": {"entropy_quantile": 0.8}}, ValueError, "prime-rl does not provide"),
        ({"objective": "dgpo", "eps": 0.2}, TypeError, "eps"),
        ({}, TypeError, "objective"),
    ],
)
def test_wrong_settings_are_refused(
    kwargs: dict[str, Any], error: type[Exception], message: str, make_batch: Callable[..., Any]
) -> None:
    with pytest.raises(error, match=message):
        imported("dgpo.engines.prime_rl.loss")(sequences(make_batch())[0], **kwargs)
