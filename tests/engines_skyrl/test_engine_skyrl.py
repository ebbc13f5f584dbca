"""The policy losses for SkyRL inside SkyRL: its registry, configuration, normalisation, corrections and Ray actor."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import (
    PolicyLossRegistry,
    apply_loss_reduction_to_advantages_minibatch,
    gspo_policy_loss,
    ppo_policy_loss,
    repopulate_all_registries,
    sync_registries,
)
from skyrl.backends.skyrl_train.workers.worker_utils import reduce_metrics
from skyrl.train.config import AlgorithmConfig, make_config

from dgpo import aggregation, objectives, policy_loss
from dgpo.correction import Truncate
from dgpo.engines import skyrl as plugin

STEADY = [name for name, cls in objectives.OBJECTIVES.items() if not cls.adaptive]
SIGN_ONLY = {"maspo": {"beta_pos": 0.0, "beta_neg": 0.0}}
"""Fields with which the weight reads the sign of A and nothing else of it."""

REDUCTIONS = {
    "token_mean": aggregation.TokenMean(),
    "sequence_mean": aggregation.SeqMeanTokenMean(),
    "seq_mean_token_sum_norm": aggregation.SeqMeanTokenSumNorm(length=32),
}


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    plugin.register()


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


# --- value and gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[5], [2, 3]], ids=["whole", "parts"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", STEADY)
def test_every_objective_is_policy_loss(
    name: str, reduction: str, cuts: list[int], make_batch: Callable[..., Any]
) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    config = of(name, f"loss_reduction={reduction}", "max_seq_len=32")
    objective = objectives.make(name, **SIGN_ONLY.get(name, {}))
    expected = policy_loss(
        batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective, REDUCTIONS[reduction]
    )
    assert_same(batch, in_parts(batch, config, scaled(batch, reduction), cuts), expected.value)


def test_the_mean_over_prompts(make_batch: Callable[..., Any]) -> None:
    batch = make_batch(B=4)
    batch.logprob.requires_grad_()
    found = in_parts(batch, of("dgpo"), scaled(batch, "prompt_mean", prompt_boundaries=[(0, 1), (1, 4)]), [2, 2])
    halves = [
        policy_loss(batch.logprob[rows], batch.old_logprob[rows], batch.advantage[rows], batch.mask[rows]).value
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert_same(batch, found, torch.stack(halves).mean())


def test_without_a_mask_every_token_counts(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.mask[:] = True
    advantages = scaled(batch, "token_mean")
    value, _ = PolicyLossRegistry.get("dgpo:dgpo")(batch.logprob, batch.old_logprob, advantages, config=of("dgpo"))
    expected = policy_loss(batch.logprob, batch.old_logprob, batch.advantage, batch.mask)
    assert value.item() == pytest.approx(expected.value.item(), rel=1e-12)


def test_a_mask_that_scales_is_a_coefficient(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    config, scale = of("gspo"), torch.rand(5, 7, dtype=torch.float64) + 0.5
    ours = PolicyLossRegistry.get("dgpo:gspo")
    arguments = (batch.logprob, batch.old_logprob, scaled(batch, "token_mean") * scale)
    split, _ = ours(*arguments[:2], arguments[2] / scale, config=config, loss_mask=batch.mask * scale)
    joined, _ = ours(*arguments, config=config, loss_mask=batch.mask.double())
    assert_same(batch, split, joined)


# --- the correction for the sampler -----------------------------------------------------------------------------------

CORRECTIONS = {
    "token": ["tis_ratio_type=token", "token_tis_ratio_clip_high=1.2"],
    "sequence": ["tis_ratio_type=sequence", "sequence_tis_ratio_clip_high=1.1"],
    "token_mask": ["tis_ratio_type=token", "token_mask_is_threshold_low=0.6", "token_mask_is_threshold_high=1.4"],
    "outlier": ["outlier_token_is_threshold_high=1.8"],
    "product": ["sequence_mask_metric=product", "product_mask_low=0.5", "product_mask_high=1.5"],
    "geometric": ["sequence_mask_metric=geometric", "geo_mask_low=0.9", "geo_mask_high=1.1"],
}


@pytest.mark.parametrize(("name", "skyrl_loss"), [("grpo", ppo_policy_loss), ("gspo", gspo_policy_loss)])
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_off_policy_corrections_are_those_of_skyrl(
    kind: str, name: str, skyrl_loss: Callable[..., Any], make_batch: Callable[..., Any]
) -> None:
    """Beside two of SkyRL's own losses; a ratio of the whole response still reads the tokens that a mask drops."""
    batch = make_batch()
    batch.logprob.requires_grad_()
    options = [f"off_policy_correction.{line}" for line in CORRECTIONS[kind]]
    arguments = (batch.logprob, batch.old_logprob, scaled(batch, "sequence_mean"))
    rest = {"loss_mask": batch.mask.to(torch.float64), "rollout_logprobs": batch.rollout_logprob}
    ours = PolicyLossRegistry.get(f"dgpo:{name}")
    eps = ["objective_kwargs.eps_low=0.2", "objective_kwargs.eps_high=0.2"]
    found, metrics = ours(*arguments, config=of(name, *eps, *options), **rest)
    expected, theirs = skyrl_loss(*arguments, config=algorithm("loss_reduction=sequence_mean", *options), **rest)
    assert_same(batch, found, expected, rtol=1e-6)  # SkyRL takes the ratio of its own loss in float32
    assert {key: metrics[key] for key in theirs if key != "clip_ratio"} == {
        key: value for key, value in theirs.items() if key != "clip_ratio"
    }
    assert metrics["objective/kl/sampler"] > 0
    plain, _ = ours(*arguments, config=of(name, *eps), **rest)
    assert 0 != found.item() != pytest.approx(plain.item(), rel=1e-6)  # the options drop something, and not everything


def test_token_tis_is_truncate(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    options = [f"off_policy_correction.{line}" for line in CORRECTIONS["token"]]
    found, _ = PolicyLossRegistry.get("dgpo:dgpo")(
        batch.logprob,
        batch.old_logprob,
        scaled(batch, "token_mean"),
        config=of("dgpo", *options),
        loss_mask=batch.mask.to(torch.float64),
        rollout_logprobs=batch.rollout_logprob,
    )
    expected = policy_loss(
        batch.logprob,
        batch.old_logprob,
        batch.advantage,
        batch.mask,
        rollout_logprob=batch.rollout_logprob,
        correction=Truncate(cap=1.2),
    )
    assert_same(batch, found, expected.value, rtol=1e-6)


# --- registry, configuration, metrics ---------------------------------------------------------------------------------


def test_the_names_stand_beside_those_of_skyrl() -> None:
    repopulate_all_registries()
    names = set(PolicyLossRegistry.list_available())
    assert {f"dgpo:{name}" for name in objectives.OBJECTIVES} <= names
    assert {"regular", "gspo", "cispo", "sapo"} <= names
    assert PolicyLossRegistry.get("gspo").__module__.startswith("skyrl.")
    with pytest.raises(ValueError, match="already registered"):
        plugin.register()


def test_fields_of_the_objective_reach_it(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    config = of("dgpo", "objective_kwargs.n=2", "objective_kwargs.m=3")
    expected = policy_loss(batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objectives.DGPO(n=2, m=3))
    assert_same(batch, in_parts(batch, config, scaled(batch, "token_mean"), [5]), expected.value)


def test_the_config_of_skyrl_itself_means_the_defaults(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    config = AlgorithmConfig(policy_loss_type="dgpo:dgpo")
    value = in_parts(batch, config, scaled(batch, "token_mean"), [5])
    assert value.item() == in_parts(batch, of("dgpo"), scaled(batch, "token_mean"), [5]).item()


def test_metrics_are_reduced_by_skyrl(make_batch: Callable[..., Any]) -> None:
    config, found = of("dgpo"), {}
    for seed in (0, 1):
        batch = make_batch(seed=seed)
        _, metrics = PolicyLossRegistry.get("dgpo:dgpo")(
            batch.logprob, batch.old_logprob, scaled(batch, "token_mean"), config=config, loss_mask=batch.mask.double()
        )
        for key, value in metrics.items():
            found.setdefault(f"loss_metrics/{key}", []).append(value)
    reduced = reduce_metrics(found, sum_loss_metrics=True)
    assert set(reduced) == set(found)
    key = "loss_metrics/objective/fraction/left"
    assert reduced[key] == pytest.approx(sum(found[key]) / 2)
    key = "loss_metrics/objective/weight_max"
    assert reduced[key] == max(found[key])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eps_clip_high=0.28"], r"eps_clip_high = 0.28 \(default 0.2\)"),
        (["clip_ratio_c=5.0"], r"clip_ratio_c = 5.0 \(default 3.0\)"),
        (["cispo.cispo_eps_clip_high=4.5"], "cispo = CISPOConfig"),
        (["objective_kwargs.k=1"], "no field 'k'"),
        (["off_policy_correction.tis_ratio_type=token"], "rollout_logprobs is None"),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], message: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=message):
        in_parts(batch, of("dgpo", *overrides), scaled(batch, "token_mean"), [5])


@pytest.mark.parametrize(("name", "message"), [("maspo", "size of A"), ("bapo", "calibrates itself")])
def test_objectives_that_skyrl_cannot_feed_are_refused(name: str, message: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    config = algorithm(f"policy_loss_type=dgpo:{name}")
    with pytest.raises(ValueError, match=message):
        in_parts(batch, config, scaled(batch, "token_mean"), [5])


# --- Ray --------------------------------------------------------------------------------------------------------------


def typed_dict_of_extensions() -> None:
    if sys.version_info < (3, 12):
        import typing_extensions

        typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]


@pytest.fixture
def cluster() -> Iterator[None]:
    # a worker cannot import this file
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": typed_dict_of_extensions},
    )
    yield
    ray.shutdown()


def losses_in_a_worker(names: list[str], configs: list[AlgorithmConfig], arguments: Any) -> Any:
    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry as fresh

    before = set(fresh._functions)
    found = []
    for name, config in zip(names, configs, strict=True):
        logprob, old, advantages, mask = arguments
        logprob = logprob.clone().requires_grad_()
        value, metrics = fresh.get(f"dgpo:{name}")(logprob, old, advantages, config=config, loss_mask=mask)
        value.backward()
        found.append((value.item(), logprob.grad, metrics))
    return before, found


@pytest.mark.usefixtures("cluster")
def test_a_worker_of_ray_gets_the_losses_from_the_registry(make_batch: Callable[..., Any]) -> None:
    """As in a run: registered in the driver, synchronised, and read by a process that registered nothing."""
    batch = make_batch()
    sync_registries()
    arguments = (batch.logprob, batch.old_logprob, scaled(batch, "token_mean"), batch.mask.to(torch.float64))
    configs = [of(name) for name in STEADY]
    before, found = ray.get(ray.remote(losses_in_a_worker).remote(STEADY, configs, arguments))
    assert "regular" in before
    assert not any(name.startswith("dgpo:") for name in before)
    _, expected = losses_in_a_worker(STEADY, configs, arguments)
    for (value, gradient, metrics), (ours, our_gradient, our_metrics) in zip(found, expected, strict=True):
        assert value == ours
        assert torch.equal(gradient, our_gradient)
        assert metrics == our_metrics
