"""Presets set three options together; the auxiliary likelihood on correct responses is normalised over the step."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo import aggregation, objectives
from dgpo.advantages import Centred, Standardised
from dgpo.objectives.presets import PRESETS
from dgpo.training import DGPOConfig, DGPOTrainer


def config(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return DGPOConfig("unused", bf16=False, use_cpu=True, **options)


def test_dapo():
    made = config(preset="dapo")
    assert made.make_objective() == objectives.GRPO(eps_low=0.2, eps_high=0.28)
    assert made.make_aggregation() == aggregation.TokenMean()
    assert made.make_advantage() == Standardised()


def test_dr_grpo():
    made = config(preset="dr_grpo", max_completion_length=3000)
    assert made.make_objective() == objectives.GRPO()
    assert made.make_aggregation() == aggregation.SeqMeanTokenSumNorm(length=3000)
    assert made.make_advantage() == Centred()


def test_luspo():
    """Without the warning about lengths, which count here on purpose, and whatever the completion budget is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "preset = 'luspo' trains with")
        made = config(preset="luspo", max_completion_length=3000)
    assert made.make_objective() == objectives.GSPO(eps_low=2e-3, eps_high=2.5e-3)
    assert made.make_aggregation() == aggregation.SeqMeanTokenSumNorm(length=1)
    assert made.make_advantage() == Standardised()
    with pytest.raises(ValueError, match="preset = 'luspo' sets aggregation_kwargs = {'length': 1}"):
        config(preset="luspo", aggregation_kwargs={"length": 8})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_config_that_survives_a_copy(name):
    made = config(preset=name)
    options = ("preset", "objective", "objective_kwargs", "aggregation", "advantage")
    again = config(**{option: getattr(made, option) for option in options})
    assert again.make_objective() == made.make_objective()
    assert again.make_aggregation() == made.make_aggregation()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "dapoo"}, r"unknown preset 'dapoo', did you mean 'dapo'\?"),
        (
            {"preset": "dapo", "objective": "maspo"},
            r"preset = 'dapo' sets objective = 'grpo', but it was set to 'maspo'",
        ),
        ({"preset": "dr_grpo", "aggregation": "seq-mean-token-mean"}, r"preset = 'dr_grpo' sets aggregation"),
        (
            {"preset": "dapo", "loss_type": "seq-mean-token-mean"},
            r"preset = 'dapo' sets aggregation = 'token-mean', but",
        ),
        ({"preset": "dapo", "advantage": "none"}, r"preset = 'dapo' sets advantage = 'std'"),
        ({"advantage": "smooth", "dynamic_sampling": True}, r"dynamic_sampling replaces them; set one of them"),
        ({"positive_nll_coef": -0.1}, r"positive_nll_coef = -0.1 is not allowed"),
    ],
)
def test_conflicts_are_errors(options, said):
    with pytest.raises(ValueError, match=said):
        config(**options)


@pytest.fixture
def build(tiny_folder, prompts, quick, tmp_path):
    def scripted(asked, trainer):
        tokenizer = trainer.processing_class
        texts = [("31+4=" * 2)[i % 5 : i % 5 + 1 + i % 6] for i in range(len(asked))]
        return {
            "prompt_ids": [tokenizer(p)["input_ids"] for p in asked],
            "completion_ids": [tokenizer(t)["input_ids"] for t in texts],
            "logprobs": None,
        }

    def reward(completions, **kwargs):
        return [float(i % 3 == 0) for i in range(len(completions))]

    def build(**options):
        return DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            reward,
            DGPOConfig(output_dir=str(tmp_path), **{**quick, "optim": "sgd", "max_grad_norm": 1e9, **options}),
            train_dataset=prompts,
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            rollout_func=scripted,
        )

    return build


@pytest.mark.parametrize("name", ["token-mean", "seq-mean-token-mean"])
def test_the_likelihood_of_correct_responses(build, name):
    trainer = build(positive_nll_coef=0.5, aggregation=name, max_steps=1)
    seen = {}
    original = trainer._compute_loss

    def spy(model, inputs):
        loss = original(model, inputs)
        with torch.no_grad():
            trainer.args.positive_nll_coef = 0.0
            seen["extra"] = loss.detach() - original(model, inputs)
            trainer.args.positive_nll_coef = 0.5
            seen["logprob"], seen["inputs"] = trainer._forward(model, inputs)[0], inputs
        return loss

    trainer._compute_loss = spy
    trainer.train()
    mask = seen["inputs"]["completion_mask"].bool()
    rows = [row for row in range(len(mask)) if seen["inputs"]["correct"][row]]
    nll = [-seen["logprob"][row][mask[row]] for row in rows]
    assert 0 < len(rows) < len(mask)
    expected = torch.cat(nll).mean() if name == "token-mean" else torch.stack([one.mean() for one in nll]).mean()
    assert seen["extra"] == pytest.approx(0.5 * expected.item(), abs=1e-5)


def test_accumulation_does_not_change_it(build):
    trained = []
    for accumulation in (1, 2, 4):
        trainer = build(
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            num_iterations=3,
            max_steps=3,
            learning_rate=0.2,
            positive_nll_coef=0.3,
        )
        trainer.train()
        trained.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(trained[1], trained[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(trained[2], trained[0], rtol=0, atol=1e-6)
