"""Every row of the conformance table against the framework itself, on the very same inputs.

TRL is installed where these tests run. The rows of verl, SkyRL and Liger run where those are.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dgpo import objectives
from dgpo.objectives import OBJECTIVES
from dgpo.training import DGPOConfig, DGPOTrainer

OTHER_VALUES = {
    "grpo": {"eps_low": 0.1, "eps_high": 0.28, "dual_clip": 1.5},
    "cispo": {"cap": 1.2},
    "sapo": {"tau_pos": 2.0, "tau_neg": 3.0},
    "gspo": {"eps_low": 0.05, "eps_high": 0.1},
    "gmpo": {"log_clip_low": 0.1, "log_clip_high": 0.3},
    "vespo": {"k_pos": 1.0, "lambda_pos": 1.5, "k_neg": 2.0, "lambda_neg": 0.5},
}


def available(framework):
    return [name for name, cls in OBJECTIVES.items() if framework in cls.elsewhere and cls.elsewhere[framework].setting]


# every TRL row with the defaults, and those that have fields with other values
CASES = [*((name, {}) for name in available("trl")), *OTHER_VALUES.items()]


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


def gradient(trainer, advantages=(1.2, -0.7, 0.4, -1.5), seed=0, reference=False):
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
    if reference:
        inputs["ref_per_token_logps"] = logprob + 0.5 * torch.randn(4, 6, generator=generator)
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
    record = OBJECTIVES[name].elsewhere["trl"]
    theirs = stock(name, build, record.options(objectives.make(name, **fields)))
    mine = ours(build, name, fields, record.aggregation)
    for seed in (0, 2):  # between them, ratios of tokens and of responses lie on either side of every bound
        assert_same(gradient(mine, seed=seed), gradient(theirs, seed=seed))


SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1}


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("grpo", {"loss_type": "grpo"}),
        ("grpo", {"loss_type": "dr_grpo", "epsilon": 0.1}),
        ("grpo", {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.5}),
        ("sapo", {"loss_type": "sapo", "sapo_temperature_neg": 2.0}),
        ("cispo", {"loss_type": "cispo", "epsilon_high": 1.5}),
        ("vespo", {"loss_type": "vespo", "vespo_k_pos": 1.0}),
        ("gspo", {"loss_type": "grpo", **SEQUENCE}),
        ("gspo", {"loss_type": "luspo", **SEQUENCE}),
    ],
    ids=str,
)
def test_options_that_agree_with_the_objective_mean_what_they_mean_in_trl(build, objective, options):
    theirs = build(GRPOTrainer, GRPOConfig, **options)
    mine = build(DGPOTrainer, DGPOConfig, objective=objective, **options)
    assert_same(gradient(mine), gradient(theirs))


@pytest.mark.parametrize(
    ("loss_type", "aggregation"),
    [("grpo", "seq-mean-token-mean"), ("bnpo", "token-mean"), ("dr_grpo", "seq-mean-token-sum-norm")],
)
def test_the_other_names_of_the_clip_differ_in_the_average_alone(build, loss_type, aggregation):
    options = OBJECTIVES["grpo"].elsewhere["trl"].options(objectives.GRPO()) | {"loss_type": loss_type}
    assert_same(gradient(ours(build, "grpo", {}, aggregation)), gradient(stock("grpo", build, options)))


def test_delta_below_the_upper_bound_clips_positive_advantages_too(build):
    """The note of the row: the same numbers do not mean the same there."""
    options = OBJECTIVES["grpo"].elsewhere["trl"].options(objectives.GRPO(dual_clip=1.05))
    positive = (1.2, 0.7, 0.4, 1.5)
    theirs = gradient(stock("grpo", build, options), positive)
    expected = gradient(ours(build, "grpo", {"dual_clip": 1.05}, "token-mean"), positive)
    assert (theirs - expected).norm() > 1e-2 * expected.norm()


def test_the_default_of_cispo_caps_every_weight_far_below_one(build):
    """The note of the row: epsilon_high is absolute, and unset it is epsilon = 0.2."""
    theirs = gradient(stock("cispo", build, {"loss_type": "cispo"}))
    expected = gradient(ours(build, "cispo", {}, "token-mean"))
    assert theirs.norm() < 0.5 * expected.norm()


def with_kl(build, name, unbiased):
    """Gradients with a KL term, ours and TRL's: the micro-batch carries log-probs of a reference model."""
    fields = {} if name != "gspo" else {"eps_low": 0.05, "eps_high": 0.1}
    record = OBJECTIVES[name].elsewhere["trl"]
    common = {"beta": 0.5, "use_bias_correction_kl": unbiased}
    theirs = build(GRPOTrainer, GRPOConfig, **record.options(objectives.make(name, **fields)), **common)
    mine = build(
        DGPOTrainer, DGPOConfig, objective=name, objective_kwargs=fields, aggregation=record.aggregation, **common
    )
    return gradient(mine, reference=True), gradient(theirs, reference=True)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("name", ["grpo", "is", "cispo", "sapo", "vespo", "gspo"])
def test_with_a_kl_term(build, name, unbiased):
    """docs/mapping.md: TRL's default multiplies k3 with a ratio, for GSPO with that of the response."""
    assert_same(*with_kl(build, name, unbiased))
