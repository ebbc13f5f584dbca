"""The policy losses for SkyRL inside SkyRL: its registry, configuration, normalisation and corrections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import (
    PolicyLossRegistry,
    gspo_policy_loss,
    ppo_policy_loss,
    repopulate_all_registries,
)
from skyrl.backends.skyrl_train.workers.worker_utils import reduce_metrics
from skyrl.train.config import AlgorithmConfig
from skyrl_problems import PENALISED, SIGN_ONLY, STEADY, algorithm, assert_same, in_parts, of, scaled

from dgpo import aggregation, objectives, policy_loss
from dgpo.correction import Truncate
from dgpo.engines import skyrl as plugin

REDUCTIONS = {
    "token_mean": aggregation.TokenMean(),
    "sequence_mean": aggregation.SeqMeanTokenMean(),
    "seq_mean_token_sum_norm": aggregation.SeqMeanTokenSumNorm(length=32),
}


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


WRONG = [
    (["policy_loss_type=dgpo:dgpo", "eps_clip_high=0.28"], r"eps_clip_high = 0.28 \(default 0.2\)"),
    (["policy_loss_type=dgpo:dgpo", "clip_ratio_c=5.0"], r"clip_ratio_c = 5.0 \(default 3.0\)"),
    (["policy_loss_type=dgpo:dgpo", "cispo.cispo_eps_clip_high=4.5"], "cispo = CISPOConfig"),
    (["policy_loss_type=dgpo:dgpo", "objective_kwargs.k=1"], "no field 'k'"),
    (["policy_loss_type=dgpo:dgop"], "unknown objective 'dgop', did you mean 'dgpo'"),
    (["policy_loss_type=dgpo:maspo"], "size of A"),
    (["policy_loss_type=dgpo:bapo"], "calibrates itself"),
    *(([f"policy_loss_type=dgpo:{name}"], "subtracts a penalty") for name in PENALISED),
    (["policy_loss_type=dgpo:p3o", "objective_kwargs.ess=0.5"], "subtracts a penalty"),
    (["policy_loss_type=dgpo:aspo", "objective_kwargs.entropy_quantile=0.8"], "SkyRL does not provide"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_wrong_settings_are_refused_when_the_configuration_is_made(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(*overrides)


def test_wrong_settings_are_refused_by_the_loss_too(make_batch: Callable[..., Any]) -> None:
    """Where the configuration is SkyRL's own, or was changed after it was made."""
    batch = make_batch()
    with pytest.raises(ValueError, match="size of A"):
        in_parts(batch, AlgorithmConfig(policy_loss_type="dgpo:maspo"), scaled(batch, "token_mean"), [5])
    config = of("dgpo")
    config.eps_clip_high = 0.28
    with pytest.raises(ValueError, match="eps_clip_high = 0.28"):
        in_parts(batch, config, scaled(batch, "token_mean"), [5])
    config = of("dgpo", "off_policy_correction.tis_ratio_type=token")
    with pytest.raises(ValueError, match="rollout_logprobs is None"):
        in_parts(batch, config, scaled(batch, "token_mean"), [5])


def test_no_fields_are_the_defaults_and_losses_of_skyrl_are_left_alone() -> None:
    assert algorithm("policy_loss_type=dgpo:dgpo", "objective_kwargs=null").objective_kwargs is None
    assert algorithm("eps_clip_high=0.28").eps_clip_high == 0.28


# --- the anchor of the ratio ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "gspo", "dppo_tv"])
def test_the_ratio_against_the_inference_engine(name: str, make_batch: Callable[..., Any]) -> None:
    """SkyRL's old log-probs are the policy's own, as under asynchronous training: π/π_old is 1 and π/μ is not."""
    batch = make_batch()
    batch.logprob.requires_grad_()
    sampler = batch.old_logprob
    config = of(name, "anchor=rollout", "loss_reduction=token_mean")
    value, statistics = PolicyLossRegistry.get(config.policy_loss_type)(
        batch.logprob,
        batch.logprob.detach(),
        scaled(batch, "token_mean"),
        config=config,
        loss_mask=batch.mask.to(torch.float64),
        rollout_logprobs=sampler,
    )
    expected = policy_loss(batch.logprob, sampler, batch.advantage, batch.mask, name)
    assert_same(batch, value, expected.value)
    assert statistics["objective/kl/old"] == 0
    assert statistics["objective/kl/sampler"] > 0


def test_the_anchor_stands_alone() -> None:
    with pytest.raises(ValueError, match="count the same difference twice"):
        of("grpo", "anchor=rollout", "off_policy_correction.tis_ratio_type=token")
    with pytest.raises(ValueError, match="anchor = 'sampler' is not known"):
        of("grpo", "anchor=sampler")
