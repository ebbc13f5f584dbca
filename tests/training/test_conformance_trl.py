"""Every row of the conformance table against the framework itself, on the very same inputs.

TRL is installed where these tests run. The rows of verl, SkyRL and Liger run where those are.
"""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dgpo import objectives, policy_loss
from dgpo.objectives.conformance import CONFORMANCE
from dgpo.training import DGPOConfig, DGPOTrainer

# every TRL row, with the defaults and with other values
CASES = [
    ("grpo", {}),
    ("grpo", {"eps_low": 0.1, "eps_high": 0.28, "dual_clip": 1.5}),
    ("is", {}),
    ("cispo", {}),
    ("cispo", {"cap": 1.2}),
    ("sapo", {}),
    ("sapo", {"tau_pos": 2.0, "tau_neg": 3.0}),
    ("gspo", {}),
    ("gspo", {"eps_low": 0.05, "eps_high": 0.1}),
    ("gmpo", {}),
    ("gmpo", {"log_clip_low": 0.1, "log_clip_high": 0.3}),
    ("vespo", {}),
    ("vespo", {"k_pos": 1.0, "lambda_pos": 1.5, "k_neg": 2.0, "lambda_neg": 0.5}),
]


@pytest.fixture
def build(tiny_folder, prompts, quick, digit_reward, tmp_path):
    def build(trainer_class, config_class, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trainer_class(
                AutoModelForCausalLM.from_pretrained(tiny_folder),
                digit_reward,
                config_class(output_dir=str(tmp_path / "run"), **quick, **options),
                train_dataset=prompts,
                processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            )

    return build


def gradient(trainer, advantages=(1.2, -0.7, 0.4, -1.5), seed=0):
    """Of one micro-batch of ragged completions whose old log-probs are well off the policy's."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (4, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)).long()
    inputs = {
        "prompt_ids": torch.randint(3, 50, (4, 5), generator=generator),
        "prompt_mask": torch.ones(4, 5, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": 4 * mask.sum(),  # of the generation batch: four micro-batches, each an optimiser step
    }
    joined = [torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], 1) for kind in ("ids", "mask")]
    with torch.no_grad():
        logprob, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, *joined, 6)
    inputs["old_per_token_logps"] = logprob + 0.4 * torch.randn(4, 6, generator=generator)
    trainer.current_gradient_accumulation_steps = 1
    trainer._buffered_inputs = [inputs] * 4
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.model.train()
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def stock(name, build, options):
    if name != "gmpo":
        return build(GRPOTrainer, GRPOConfig, **options)
    gmpo = pytest.importorskip("trl.experimental.gmpo", reason="this TRL has no GMPO trainer")
    return build(gmpo.GMPOTrainer, gmpo.GMPOConfig, **options)


def ours(build, name, fields, aggregation):
    return build(DGPOTrainer, DGPOConfig, objective=name, objective_kwargs=fields, aggregation=aggregation)


def assert_same(actual, expected):
    assert expected.norm() > 1e-3
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("name", "fields"), CASES, ids=[f"{name}-{'set' if kw else 'default'}" for name, kw in CASES])
def test_the_setting_gives_the_gradient(build, name, fields):
    record = CONFORMANCE[name]["trl"]
    theirs = stock(name, build, record.options(objectives.make(name, **fields)))
    mine = ours(build, name, fields, record.aggregation)
    for seed in (0, 2):  # between them, ratios of tokens and of responses lie on either side of every bound
        assert_same(gradient(mine, seed=seed), gradient(theirs, seed=seed))


@pytest.mark.parametrize(
    ("loss_type", "aggregation"),
    [("grpo", "seq-mean-token-mean"), ("bnpo", "token-mean"), ("dr_grpo", "seq-mean-token-sum-norm")],
)
def test_the_other_names_of_the_clip_differ_in_the_average_alone(build, loss_type, aggregation):
    options = CONFORMANCE["grpo"]["trl"].options(objectives.GRPO()) | {"loss_type": loss_type}
    assert_same(gradient(ours(build, "grpo", {}, aggregation)), gradient(stock("grpo", build, options)))


def test_delta_below_the_upper_bound_clips_positive_advantages_too(build):
    """The note of the row: the same numbers do not mean the same there."""
    options = CONFORMANCE["grpo"]["trl"].options(objectives.GRPO(dual_clip=1.05))
    positive = (1.2, 0.7, 0.4, 1.5)
    theirs = gradient(stock("grpo", build, options), positive)
    expected = gradient(ours(build, "grpo", {"dual_clip": 1.05}, "token-mean"), positive)
    assert (theirs - expected).norm() > 1e-2 * expected.norm()


def test_the_default_of_cispo_caps_every_weight_far_below_one(build):
    """The note of the row: epsilon_high is absolute, and unset it is epsilon = 0.2."""
    theirs = gradient(stock("cispo", build, {"loss_type": "cispo"}))
    expected = gradient(ours(build, "cispo", {}, "token-mean"))
    assert theirs.norm() < 0.5 * expected.norm()


# --- frameworks that are read, and run where they are installed ---------------------------------------------------


def available(framework):
    return [name for name, records in CONFORMANCE.items() if records[framework].setting is not None]


@pytest.fixture
def batch():
    """Full rows, so that every average is a plain mean over responses and tokens."""
    generator = torch.Generator().manual_seed(0)
    old = -0.1 - 3 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    logprob = (old + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)).clamp(max=-1e-3)
    advantage = torch.tensor([1.2, -0.7, 0.4, -1.5], dtype=torch.float64)
    return logprob.requires_grad_(), old, advantage.unsqueeze(1).expand(4, 6), torch.ones(4, 6, dtype=torch.bool)


def objective_for(name, framework):
    return objectives.make(name, **(CONFORMANCE[name][framework].only or {}))


def our_gradient(batch, name, framework):
    aggregation = CONFORMANCE[name][framework].aggregation
    out = policy_loss(*batch, objective=objective_for(name, framework), aggregation=aggregation)
    return torch.autograd.grad(out.value, batch[0])[0]


@pytest.mark.parametrize("name", available("verl"))
def test_verl(batch, name):
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
    config = pytest.importorskip("verl.workers.config", reason="verl is not installed")
    options = CONFORMANCE[name]["verl"].options(objective_for(name, "verl"))
    loss = core_algos.get_policy_loss_fn(options.pop("policy_loss.loss_mode"))
    logprob, old, advantage, mask = batch
    actor = config.ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=4, **options)
    value, _ = loss(old, logprob, advantage, mask, "token-mean", actor)
    torch.testing.assert_close(
        torch.autograd.grad(value, logprob)[0], our_gradient(batch, name, "verl"), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("name", available("skyrl"))
def test_skyrl(batch, name):
    losses = pytest.importorskip("skyrl.backends.skyrl_train.utils.ppo_utils", reason="SkyRL is not installed")
    options = CONFORMANCE[name]["skyrl"].options(objective_for(name, "skyrl"))
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
    record, objective = CONFORMANCE[name]["liger"], objective_for(name, "liger")
    options = {option: value for option, value in record.options(objective).items() if value is not None}
    loss = liger.LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, **options)
    value, *_ = loss(hidden, weight, ids, torch.ones(4, 6), advantage, old_per_token_logps=old)
    mask = torch.ones(4, 6, dtype=torch.bool)
    out = policy_loss(logprob, old, advantage, mask, objective=objective, aggregation=record.aggregation)
    expected = torch.autograd.grad(out.value, weight)[0]
    assert_same(torch.autograd.grad(value, weight)[0], expected)
