"""verl's own `ppo_loss` with our losses, through verl's own configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.metric import AggregationType
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl_problems import LENGTHS, MODES, SCALE, actor_config, compose_config, expected, make_batch, run_ppo_loss

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.diagnostics import load
from dgpo.diagnostics.replay import replay
from dgpo.engines import verl as plug_in
from dgpo.engines import verl_config, verl_loss, verl_recording
from dgpo.engines.verl_overrides import ACTOR_SETTINGS, overrides
from dgpo.objectives import OBJECTIVES

EVERYTHING = range(len(LENGTHS))
FIXED = [name for name, cls in OBJECTIVES.items() if "batch" not in cls().reads]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_ppo_loss_is_policy_loss(name: str, dtype: torch.dtype, error: float) -> None:
    batch = make_batch(dtype)
    value, gradient, _ = run_ppo_loss(actor_config(objective=name), batch, EVERYTHING)
    leaf = batch.logprob.clone().requires_grad_()
    ours = policy_loss(leaf, batch.old_logprob, batch.advantage, batch.mask, name)
    ours.value.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(value, ours.value.detach(), atol=error, rtol=0)
    torch.testing.assert_close(gradient, leaf.grad, atol=error, rtol=0)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dgpo", "gspo"])
def test_micro_batches_and_ranks_add_up(name: str, mode: str) -> None:
    """Two ranks with two micro-batches each: gradients summed on a rank and averaged over ranks are the formula's."""
    batch = make_batch()
    config = actor_config(
        f"actor_rollout_ref.actor.loss_agg_mode={mode}",
        f"actor_rollout_ref.actor.loss_scale_factor={SCALE}",
        objective=name,
    )
    value, gradient = expected(batch, name, mode)
    for split in ([[0, 1], [2, 3], [4, 5], [6, 7]], [[2], [0, 7, 1, 5], [3], [6, 4]]):
        parts = [run_ppo_loss(config, batch, rows, dp_size=2) for rows in split]
        torch.testing.assert_close(sum(part[0] for part in parts) / 2, value, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(sum(part[1] for part in parts) / 2, gradient, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_without_totals_a_batch_is_its_own_step(mode: str) -> None:
    """As in verl: then responses without a valid token do not count, and the scale factor is the longest response."""
    batch = make_batch()
    config = actor_config(f"actor_rollout_ref.actor.loss_agg_mode={mode}", objective="dgpo")
    value, gradient, _ = run_ppo_loss(config, batch, EVERYTHING, totals=False)
    tokens = TokenBatch(batch.logprob.clone().requires_grad_(), batch.old_logprob, batch.advantage, batch.mask)
    objective = objectives.make("dgpo")
    wanted = core_algos.agg_loss(-batch.advantage * objective.potential(tokens).detach(), batch.mask, mode)
    slope = torch.autograd.grad(
        core_algos.agg_loss(-batch.advantage * objective.weight(tokens) * tokens.logprob, batch.mask, mode),
        tokens.logprob,
    )[0]
    torch.testing.assert_close((value, gradient), (wanted, slope), atol=1e-12, rtol=0)


def test_several_ranks_need_the_totals() -> None:
    with pytest.raises(ValueError, match="batch_num_tokens is required"):
        run_ppo_loss(actor_config(), make_batch(), EVERYTHING, dp_size=2, totals=False)


@pytest.mark.parametrize("name", FIXED)
def test_rollout_weights_are_rho(name: str) -> None:
    batch = make_batch()
    value, gradient, _ = run_ppo_loss(actor_config(objective=name), batch, EVERYTHING, weights=True)
    wanted, slope = expected(batch, name, weights=True)
    torch.testing.assert_close(value, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, slope, atol=1e-12, rtol=0)


def test_fields_reach_the_objective() -> None:
    batch = make_batch()
    fields = {"n": 2, "m": 3.5, "eps_low": 0.1, "right_cap": None}
    value, gradient, _ = run_ppo_loss(actor_config(objective="dgpo", **fields), batch, EVERYTHING)
    wanted, slope = expected(batch, "dgpo", **fields)
    torch.testing.assert_close((value, gradient), (wanted, slope), atol=1e-12, rtol=0)
    assert not torch.allclose(slope, expected(batch, "dgpo")[1])


def test_statistics_are_metrics() -> None:
    batch = make_batch()
    metrics = run_ppo_loss(actor_config(), batch, EVERYTHING)[2]
    ours = policy_loss(batch.logprob, batch.old_logprob, batch.advantage, batch.mask).statistics
    for name, value in ours.items():
        metric = metrics[f"actor/objective/{name}"]
        assert metric.aggregation == AggregationType.MEAN
        assert metric.aggregate() == pytest.approx(value.item(), abs=1e-6)
    assert "actor/pg_loss" in metrics


def test_micro_batches_are_recorded(tmp_path: Path) -> None:
    """The files hold what the loss was given; a run that goes on numbers on."""
    batch, folder = make_batch(torch.float32), tmp_path / "run"
    for line in overrides("dgpo", {}, record=str(folder)):
        assert line == f"+actor_rollout_ref.actor.policy_loss.record={folder}" or "record" not in line
    config = actor_config(f"+actor_rollout_ref.actor.policy_loss.record={folder}")
    for rows in ([0, 1, 2], [3, 4]):
        run_ppo_loss(config, batch, rows)
    verl_recording._series.cache_clear()
    run_ppo_loss(config, batch, [5])
    run = load(folder)
    assert run.updates == [1, 2, 3]
    for update, rows in ((1, [0, 1, 2]), (2, [3, 4]), (3, [5])):
        found, wanted = run.tokens(update).tokens, batch.rows(rows)
        assert found.mask.sum() == wanted.mask.sum()
        for name in ("logprob", "old_logprob", "advantage"):
            assert torch.equal(getattr(found, name)[found.mask], getattr(wanted, name)[wanted.mask])
    assert {row.name for row in replay(run, ["dgpo", "gspo"]).rows} == {"dgpo", "gspo"}


def test_a_mini_batch_without_tokens_gives_nothing() -> None:
    batch = make_batch()
    value, gradient, _ = run_ppo_loss(actor_config(), batch, [6])
    assert value == 0
    assert (gradient == 0).all()


# --- names ------------------------------------------------------------------------------------------------------------


def test_losses_of_verl_are_not_replaced() -> None:
    theirs = {name for name, loss in POLICY_LOSS_REGISTRY.items() if loss.__module__ == core_algos.__name__}
    assert {"vanilla", "gspo", "sapo", "cispo", "dppo_tv", "dppo_kl", "bypass_mode"} <= theirs
    for name in OBJECTIVES:
        assert POLICY_LOSS_REGISTRY[f"dgpo:{name}"].__module__ == verl_loss.__name__
        assert name in theirs or POLICY_LOSS_REGISTRY[name].__module__ == verl_loss.__name__


def test_a_plain_name_is_the_objective_with_its_defaults() -> None:
    """Without our class of the configuration: `loss_mode=maspo` is all there is to set."""
    config = compose_config("actor_rollout_ref.actor.policy_loss.loss_mode=maspo")
    batch = make_batch()
    _, gradient, _ = run_ppo_loss(omega_conf_to_dataclass(config.actor_rollout_ref.actor), batch, EVERYTHING)
    torch.testing.assert_close(gradient, expected(batch, "maspo")[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_mode": "dgpo:dgpo", "objective": "maspo"}, "expected loss_mode = 'dgpo:maspo'"),
        ({"loss_mode": "gspo", "objective": "gspo"}, "expected loss_mode = 'dgpo:gspo'"),
        ({"objective": "dgpo"}, "loss_mode = 'vanilla'"),
        ({"loss_mode": "dgpo:dgpo"}, "unknown objective ''"),
        ({"loss_mode": "dgpo:dgpo", "objective": "dgop"}, "did you mean 'dgpo'"),
        ({"loss_mode": "dgpo", "objective": "dgpo", "objective_kwargs": {"epslow": 1}}, "did you mean 'eps_low'"),
        ({"loss_mode": "dgpo", "objective": "dgpo", "objective_kwargs": {"n": -1}}, "n = -1"),
        ({"loss_mode": "dgpo", "objective": "dgpo", "ppo_kl_coef": 0.2}, "policy_loss.ppo_kl_coef = 0.2"),
        ({"loss_mode": "bypass_mode", "objective": "dgpo"}, "expected loss_mode = 'dgpo:dgpo'"),
        (
            {"loss_mode": "dgpo:aspo", "objective": "aspo", "objective_kwargs": {"entropy_quantile": 0.8}},
            "reads the entropy of the tokens, which verl does not provide",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plug_in.DGPOPolicyLossConfig(**fields)


def test_fields_that_are_no_mapping_are_refused_and_null_is_the_defaults() -> None:
    with pytest.raises(TypeError, match=r"objective_kwargs = \[1\] is of type list; expected a mapping"):
        plug_in.DGPOPolicyLossConfig(loss_mode="dgpo:dgpo", objective="dgpo", objective_kwargs=[1])  # type: ignore
    batch = make_batch()
    config = actor_config("+actor_rollout_ref.actor.policy_loss.objective_kwargs=null")
    _, gradient, _ = run_ppo_loss(config, batch, EVERYTHING)
    torch.testing.assert_close(gradient, expected(batch, "dgpo")[1], atol=1e-12, rtol=0)


def test_a_loss_of_another_objective_is_refused() -> None:
    class Both(PolicyLossConfig):
        objective = "maspo"

    config = dataclasses.replace(actor_config(), policy_loss=Both(loss_mode="dgpo:dgpo"))
    with pytest.raises(ValueError, match="objective = 'maspo'"):
        run_ppo_loss(config, make_batch(), EVERYTHING)


# --- settings that would be ignored -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    ["clip_ratio=0.1", "clip_ratio_low=0.3", "clip_ratio_high=0.28", "clip_ratio_c=10", "tau_pos=2", "tau_neg=2"],
)
def test_a_setting_of_verl_that_we_do_not_read_is_refused(setting: str) -> None:
    """By the check that verl makes in the driver before it starts Ray; without our class of the actor, by the loss."""
    name, said = setting.partition("=")[0], r"default.*objective_kwargs\.eps_low"
    lines = [*overrides("dgpo", {}), f"actor_rollout_ref.actor.{setting}"]
    with pytest.raises(InstantiationException, match=rf"actor\.{name} = .*{said}"):
        validate_config(compose_config(*lines), use_reference_policy=False, use_critic=False)
    lines.append("actor_rollout_ref.actor._target_=verl.workers.config.FSDPActorConfig")
    config = omega_conf_to_dataclass(compose_config(*lines).actor_rollout_ref.actor)
    with pytest.raises(ValueError, match=rf"actor\.{name} = .*{said}"):
        run_ppo_loss(config, make_batch(), EVERYTHING)


@pytest.mark.parametrize("engine", ["dp", "megatron", "veomni", "torchtitan"])
def test_the_actor_has_the_class_that_verl_has_for_it(engine: str) -> None:
    """And the same values, for every `model_engine` that verl has a configuration of."""
    choice = f"model_engine={engine}"
    theirs = omega_conf_to_dataclass(compose_config(choice).actor_rollout_ref.actor)
    ours = actor_config(choice)
    assert type(ours) is type(theirs)
    for declared in dataclasses.fields(theirs):
        if declared.name not in ("policy_loss", "_target_"):
            assert getattr(ours, declared.name) == getattr(theirs, declared.name)


def test_every_class_of_an_actor_is_known() -> None:
    from verl.workers import config

    classes = {one for one in vars(config).values() if isinstance(one, type) and issubclass(one, ActorConfig)}
    assert classes - {ActorConfig} == set(verl_config.ACTORS.values())


def test_an_actor_that_we_cannot_make_is_refused() -> None:
    class_of_actor = "actor_rollout_ref.actor._target_=dgpo.engines.verl.actor_config"
    with pytest.raises(InstantiationException, match="loss_mode = 'vanilla' is not a loss of dgpo"):
        omega_conf_to_dataclass(compose_config(class_of_actor).actor_rollout_ref.actor)
    with pytest.raises(InstantiationException, match="actor.strategy = 'deepspeed'; expected one of fsdp, fsdp2"):
        actor_config("actor_rollout_ref.actor.strategy=deepspeed")


def test_every_setting_that_losses_of_verl_read_is_looked_at() -> None:
    """Of the fields of the actor, from the source of verl's losses: a new one has to be read, or refused."""
    import inspect
    import re

    losses = [loss for loss in POLICY_LOSS_REGISTRY.values() if loss.__module__ == core_algos.__name__]
    read = {name for loss in losses for name in re.findall(r"config\.([a-z_]+)", inspect.getsource(loss))}
    read |= {name for loss in losses for name in re.findall(r"config\.get\(\s*\"([a-z_]+)", inspect.getsource(loss))}
    actor = {field.name for field in dataclasses.fields(ActorConfig)} & read
    assert actor - set(ACTOR_SETTINGS) == {"global_batch_info", "policy_loss"}


def test_bypass_mode_of_the_older_trainer_comes_after_the_workers_have_their_loss() -> None:
    """It renames the loss in the configuration of the driver, within a step: that of a worker, made before, is ours."""
    from verl.trainer.ppo.rollout_corr_helper import apply_bypass_mode

    driver = compose_config(*overrides("dgpo", {}), "algorithm.rollout_correction.bypass_mode=true")
    worker = omega_conf_to_dataclass(driver.actor_rollout_ref.actor)
    batch = make_batch()
    rollout = DataProto.from_dict(tensors={"rollout_log_probs": batch.rho})
    apply_bypass_mode(rollout, driver.algorithm.rollout_correction, driver.actor_rollout_ref.actor.policy_loss)
    assert driver.actor_rollout_ref.actor.policy_loss.loss_mode == "bypass_mode"
    assert worker.policy_loss.loss_mode == "dgpo:dgpo"
    assert torch.equal(rollout.batch["old_log_probs"], batch.rho)


def test_an_adaptive_method_is_refused_behind_pipeline_stages() -> None:
    adaptive = [name for name, cls in OBJECTIVES.items() if "batch" in cls().reads]
    assert adaptive
    for stages, name in ((2, adaptive[0]), (1, adaptive[0]), (2, "dgpo")):
        line = f"actor_rollout_ref.actor.megatron.pipeline_model_parallel_size={stages}"
        if stages > 1 and name in adaptive:
            with pytest.raises(InstantiationException, match="2 pipeline stages"):
                actor_config(line, objective=name, trainer="ppo_megatron_trainer")
        else:
            run_ppo_loss(actor_config(line, objective=name, trainer="ppo_megatron_trainer"), make_batch(), EVERYTHING)


def test_a_loss_needs_the_configuration() -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match="'dgpo:dgpo' needs the configuration"):
        POLICY_LOSS_REGISTRY["dgpo:dgpo"](batch.old_logprob, batch.logprob, batch.advantage, batch.mask)
