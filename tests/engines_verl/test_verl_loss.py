"""verl's own `ppo_loss` with our losses, through verl's own configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.metric import AggregationType
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl_problems import LENGTHS, MODES, SCALE, actor_config, compose_config, expected, make_batch, run_ppo_loss

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.diagnostics import load
from dgpo.diagnostics.replay import replay
from dgpo.engines import verl as plug_in
from dgpo.engines import verl_recording
from dgpo.engines.verl_overrides import overrides
from dgpo.objectives import OBJECTIVES

EVERYTHING = range(len(LENGTHS))
FIXED = [name for name, cls in OBJECTIVES.items() if not cls.adaptive]


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
        assert POLICY_LOSS_REGISTRY[f"dgpo:{name}"].__module__ == plug_in.__name__
        assert name in theirs or POLICY_LOSS_REGISTRY[name].__module__ == plug_in.__name__


def test_a_plain_name_is_the_objective_with_its_defaults() -> None:
    """Without our class of the configuration: `loss_mode=maspo` is all there is to set."""
    from verl.utils.config import omega_conf_to_dataclass

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
    ],
)
def test_a_wrong_configuration_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plug_in.DGPOPolicyLossConfig(**fields)


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
    name = setting.partition("=")[0]
    config = actor_config(f"actor_rollout_ref.actor.{setting}")
    with pytest.raises(ValueError, match=rf"actor\.{name} = .*default.*objective_kwargs\.eps_low"):
        run_ppo_loss(config, make_batch(), EVERYTHING)


def test_every_setting_that_losses_of_verl_read_is_looked_at() -> None:
    """Of the fields of the actor, from the source of verl's losses: a new one has to be read, or refused."""
    import inspect
    import re

    losses = [loss for loss in POLICY_LOSS_REGISTRY.values() if loss.__module__ == core_algos.__name__]
    read = {name for loss in losses for name in re.findall(r"config\.([a-z_]+)", inspect.getsource(loss))}
    read |= {name for loss in losses for name in re.findall(r"config\.get\(\s*\"([a-z_]+)", inspect.getsource(loss))}
    actor = {field.name for field in dataclasses.fields(ActorConfig)} & read
    assert actor - set(plug_in.ACTOR_SETTINGS) == {"global_batch_info", "policy_loss"}


def test_the_older_trainer_in_bypass_mode_is_refused() -> None:
    with pytest.raises(Exception, match="bypass_mode"):
        actor_config("actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode")


def test_an_adaptive_method_is_refused_behind_pipeline_stages() -> None:
    adaptive = [name for name, cls in OBJECTIVES.items() if cls.adaptive]
    assert adaptive
    for stages, name in ((2, adaptive[0]), (1, adaptive[0]), (2, "dgpo")):
        config = actor_config(
            f"actor_rollout_ref.actor.megatron.pipeline_model_parallel_size={stages}",
            objective=name,
            trainer="ppo_megatron_trainer",
        )
        if stages > 1 and name in adaptive:
            with pytest.raises(ValueError, match="2 pipeline stages"):
                run_ppo_loss(config, make_batch(), EVERYTHING)
        else:
            run_ppo_loss(config, make_batch(), EVERYTHING)


def test_a_loss_needs_the_configuration() -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match="'dgpo:dgpo' needs the configuration"):
        POLICY_LOSS_REGISTRY["dgpo:dgpo"](batch.old_logprob, batch.logprob, batch.advantage, batch.mask)
