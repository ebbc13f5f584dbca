"""Rows of the conformance table for verl, SkyRL and Liger, run where the framework is installed.

None of them shares an environment with TRL's newest release, so here they are skipped; `make test-verl` runs the rows
of verl and SkyRL in theirs.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from dgpo import objectives, policy_loss
from dgpo.objectives import OBJECTIVES


def assert_same(actual, expected):
    assert expected.norm() > 1e-3
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


def available(framework):
    return [name for name, cls in OBJECTIVES.items() if framework in cls.elsewhere and cls.elsewhere[framework].setting]


@pytest.fixture
def batch():
    """Full rows, so that every average is a plain mean over responses and tokens."""
    generator = torch.Generator().manual_seed(0)
    old = -0.1 - 3 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    logprob = (old + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)).clamp(max=-1e-3)
    advantage = torch.tensor([1.2, -0.7, 0.4, -1.5], dtype=torch.float64)
    return logprob.requires_grad_(), old, advantage.unsqueeze(1).expand(4, 6), torch.ones(4, 6, dtype=torch.bool)


def objective_for(name, framework):
    return objectives.make(name, **(OBJECTIVES[name].elsewhere[framework].only or {}))


def our_gradient(batch, name, framework):
    aggregation = OBJECTIVES[name].elsewhere[framework].aggregation
    out = policy_loss(*batch, objective=objective_for(name, framework), aggregation=aggregation)
    return torch.autograd.grad(out.value, batch[0])[0]


@pytest.mark.parametrize("name", available("verl"))
def test_verl(batch, name):
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
    config = pytest.importorskip("verl.workers.config", reason="verl is not installed")
    options = OBJECTIVES[name].elsewhere["verl"].options(objective_for(name, "verl"))
    loss = core_algos.get_policy_loss_fn(options.pop("policy_loss.loss_mode"))
    logprob, old, advantage, mask = batch
    own = {key: options.pop(f"policy_loss.{key}") for key in [k.split(".")[1] for k in options if "." in k]}
    chosen = config.PolicyLossConfig(**own)
    actor = config.ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=4, policy_loss=chosen, **options
    )
    value, _ = loss(old, logprob, advantage, mask, "token-mean", actor)
    torch.testing.assert_close(
        torch.autograd.grad(value, logprob)[0], our_gradient(batch, name, "verl"), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("name", available("skyrl"))
def test_skyrl(batch, name):
    losses = pytest.importorskip("skyrl.backends.skyrl_train.utils.ppo_utils", reason="SkyRL is not installed")
    options = OBJECTIVES[name].elsewhere["skyrl"].options(objective_for(name, "skyrl"))
    config = SimpleNamespace(
        loss_reduction=options.get("loss_reduction", "token_mean"),
        off_policy_correction=SimpleNamespace(
            tis_ratio_type=None,
            sequence_mask_metric=None,
            outlier_token_is_threshold_low=None,
            outlier_token_is_threshold_high=None,
            token_mask_is_threshold_low=None,
            token_mask_is_threshold_high=None,
        ),
        cispo=SimpleNamespace(cispo_anchor="old"),
        sapo=SimpleNamespace(),
        dppo=SimpleNamespace(),
    )
    for option, value in options.items():
        section, _, key = option.rpartition(".")
        setattr(getattr(config, section) if section else config, key, value)
    logprob, old, advantage, mask = batch
    loss = losses.PolicyLossRegistry.get(config.policy_loss_type)
    value, _ = loss(logprob, old, advantage / mask.sum(), config, mask.double())  # averaged by the caller there
    torch.testing.assert_close(
        torch.autograd.grad(value, logprob)[0], our_gradient(batch, name, "skyrl"), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("name", available("liger"))
def test_liger(name):
    """A head without hidden layers: the gradient reaches the weight of the projection."""
    liger = pytest.importorskip("liger_kernel.chunked_loss", reason="Liger is not installed")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 8, generator=generator)
    ids = torch.randint(0, 11, (4, 6), generator=generator)
    weight = torch.randn(11, 8, generator=generator).div(math.sqrt(8)).requires_grad_()
    advantage = torch.tensor([1.2, -0.7, 0.4, -1.5])
    logprob = (hidden @ weight.T).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    old = (logprob + 0.4 * torch.randn(4, 6, generator=generator)).detach()
    record, objective = OBJECTIVES[name].elsewhere["liger"], objective_for(name, "liger")
    options = {option: value for option, value in record.options(objective).items() if value is not None}
    loss = liger.LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, **options)
    value, *_ = loss(hidden, weight, ids, torch.ones(4, 6), advantage, old_per_token_logps=old)
    mask = torch.ones(4, 6, dtype=torch.bool)
    out = policy_loss(logprob, old, advantage, mask, objective=objective, aggregation=record.aggregation)
    expected = torch.autograd.grad(out.value, weight)[0]
    assert_same(torch.autograd.grad(value, weight)[0], expected)
