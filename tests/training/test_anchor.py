"""The policy that the ratio is taken against, by exact enumeration: π_old, or the sampler μ."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from datasets import Dataset
from enumeration import LONGEST, PROMPT, Rollouts, gradient, log_probs, micro_batch, policy, responses, tokenizer

from dgpo import StepTotals, aggregation, policy_loss
from dgpo.correction import Truncate
from dgpo.diagnostics import load
from dgpo.diagnostics.replay import replay
from dgpo.fused.operator import linear_policy_loss
from dgpo.training import DGPOConfig, DGPOTrainer

SAMPLER = 0.6
BY_TOKEN = {"name": "truncate", "level": "token", "cap": math.inf}


@pytest.fixture
def trainer_of(quick, tmp_path):
    def trainer_of(**options):
        defaults = {
            "objective": "is",
            "aggregation": "seq-mean-token-sum-norm",
            "advantage": "none",
            "anchor": "rollout",
            "max_completion_length": LONGEST,
            "optim": "sgd",
            "max_grad_norm": 1e9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DGPOTrainer(
                policy(),
                lambda completions, **kwargs: [(0.0, 1.0, 2.0, 4.0)[i % 4] for i in range(len(completions))],
                DGPOConfig(output_dir=str(tmp_path / "run"), **{**quick, **defaults, **options}),
                train_dataset=Dataset.from_dict({"prompt": [PROMPT] * 256}),
                processing_class=tokenizer(),
                rollout_func=Rollouts(SAMPLER),
            )

    return trainer_of


def world(one_token=False):
    """(response, A, log μ) of everything that the sampler may write; or of its first tokens alone."""
    model, known = policy(), [[token] for token in range(4)] if one_token else list(responses())
    rewards = torch.randn(len(known), generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    with torch.no_grad():
        return [(y, reward, log_probs(model, y, SAMPLER)) for y, reward in zip(known, rewards, strict=True)]


def expected_by_trainer(trainer, gradient_of, rows):
    """Σ_y μ(y) · -∇loss(y), as one optimiser step of all responses: μ(y) goes into A, in which the loss is linear."""
    weighed = [(y, advantage * log_mu.sum().exp(), log_mu) for y, advantage, log_mu in rows]
    # the aggregation divides by the responses and by `LONGEST`
    return -LONGEST * len(rows) * gradient_of(trainer, micro_batch(*weighed))[1]


def expected_by_formula(rows, per_token):
    """∇ Σ_y μ(y) Σ_t per_token(π/μ, A), by autograd through the model's plain forward pass."""
    model = policy()
    value = sum(log_mu.sum().exp() * per_token((log_probs(model, y) - log_mu).exp(), a).sum() for y, a, log_mu in rows)
    return gradient(model, value)


def surrogate(ratio, advantage):
    """PPO's clipped surrogate."""
    return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("objective", "per_token"), [("is", lambda r, a: r * a), ("grpo", surrogate)], ids=["is", "grpo"]
)
def test_expected_gradient_against_the_sampler(trainer_of, gradient_of, objective, per_token, fused):
    """On-policy, where every ratio against π_old is 1: the clip acts on π/μ."""
    rows = world()
    found = expected_by_trainer(trainer_of(objective=objective, fused_loss=fused), gradient_of, rows)
    # TRL's own head computes log-probs in float32
    torch.testing.assert_close(found, expected_by_formula(rows, per_token), rtol=0, atol=1e-10 if fused else 1e-5)


def test_the_first_token_is_unbiased_against_the_sampler_alone(trainer_of, gradient_of):
    """Σ_a μ(a) (π/μ) R ∇log π = ∇ Σ_a π(a) R, which π/π_old = 1 does not give."""
    rows, model = world(one_token=True), policy()
    truth = gradient(model, sum(log_probs(model, y).sum().exp() * reward for y, reward, _ in rows))
    found = expected_by_trainer(trainer_of(), gradient_of, rows)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
    other = expected_by_trainer(trainer_of(anchor="old"), gradient_of, rows)
    assert (other - truth).norm() > 0.05 * truth.norm()


def test_the_old_policy_leaves_a_clip_nothing_to_do_on_policy(trainer_of, gradient_of):
    rows = world()
    found = [expected_by_trainer(trainer_of(objective=o, anchor="old"), gradient_of, rows) for o in ("is", "grpo")]
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)


def test_a_ratio_against_the_sampler_is_the_product_of_ratio_and_correction():
    """w(π/μ) of unclipped importance sampling is w(π/π_old) · π_old/μ."""
    torch.manual_seed(0)
    logprob, old, sampler = (-torch.rand(3, 3, 5, dtype=torch.float64)).unbind()
    found = []
    for chosen in ({"anchor": "rollout"}, {"correction": Truncate(cap=math.inf)}):
        given = logprob.clone().requires_grad_()
        out = policy_loss(
            given, old, torch.tensor([1.0, -2.0, 0.5]), torch.ones(3, 5, dtype=torch.bool), "is",
            rollout_logprob=sampler, **chosen,
        )  # fmt: skip
        found.append(torch.autograd.grad(out.value, given)[0])
        # these are of π_old either way
        assert out.statistics["kl/old"] == pytest.approx(float(((logprob - old).exp() - 1 - (logprob - old)).mean()))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("objective", ["grpo", "gspo", "bapo", "dppo_tv"])
@pytest.mark.parametrize("kl", ["k3", "k3_ratio"])
def test_it_is_the_loss_with_the_sampler_for_the_old_policy(objective, kl):
    """Both losses, with and without a π_old beside; a method that calibrates itself on the batch too."""
    torch.manual_seed(1)
    hidden, head = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    ids, mask = torch.randint(0, 11, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    all_logprob = (hidden @ head.T).log_softmax(-1)
    logprob = all_logprob.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    old, sampler, reference = (logprob + 0.4 * torch.randn(3, 2, 6, dtype=torch.float64)).unbind()
    options = {"objective": objective, "ref_logprob": reference, "kl_coef": 0.1, "kl": kl}
    advantage = torch.tensor([1.0, -1.5], dtype=torch.float64)

    def of_logprob(old, **more):
        given = logprob.clone().requires_grad_()
        out = policy_loss(given, old, advantage, mask, **options, **more)
        return out.value.detach(), out.weight, torch.autograd.grad(out.value, given)[0]

    expected = of_logprob(sampler)
    torch.testing.assert_close(of_logprob(old, rollout_logprob=sampler, anchor="rollout"), expected)
    torch.testing.assert_close(of_logprob(None, rollout_logprob=sampler, anchor="rollout"), expected)
    for backend in ("reference", "chunked"):
        given = hidden.clone().requires_grad_()
        out = linear_policy_loss(
            given, head, ids, old, advantage, mask, **options, rollout_logprob=sampler, anchor="rollout",
            backend=backend, chunk_tokens=4,
        )  # fmt: skip
        torch.testing.assert_close((out.value.detach(), out.weight), expected[:2])
        # d logprob / d hidden is W[a] - Σ_v π(v) W[v]
        slope = head[ids] - all_logprob.exp() @ head
        of_hidden = torch.autograd.grad(out.value, given)[0]
        torch.testing.assert_close(of_hidden, expected[2].unsqueeze(-1) * slope)


def test_a_run_says_what_its_ratios_are_against(trainer_of, tmp_path):
    """Log, token files, run.json and replay of an on-policy run, in which only π/μ differs from 1."""
    folder = tmp_path / "record"
    trainer = trainer_of(objective="grpo", steps_per_generation=1, max_steps=2, record=str(folder))
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["objective/kl/old"] == 0
    assert first["objective/fraction/inside"] < 1
    assert first["clip_ratio/region_mean"] > 0
    assert json.loads((folder / "run.json").read_text())["config"]["anchor"] == "rollout"
    run = load(folder)
    recorded = run.tokens(1)
    assert recorded.anchor == "rollout"
    torch.testing.assert_close(recorded.weighed.old_logprob, recorded.tokens.rollout_logprob)
    torch.testing.assert_close(recorded.tokens.old_logprob, recorded.tokens.logprob)
    found = replay(run, "is", updates=[1])
    own = next(row for row in found.rows if row.own)
    assert own.weight_mean == pytest.approx(first["objective/weight/mean"], rel=1e-5)
    assert own.bias > 0


def config(tmp_path, **options):
    return DGPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"anchor": "sampler"}, "anchor = 'sampler' is not known"),
        ({"anchor": "rolout"}, "did you mean 'rollout'"),
        ({"anchor": "rollout", "correction": "truncate"}, "count the same difference twice"),
        (
            {"anchor": "rollout", "vllm_importance_sampling_mode": "token_mask"},
            "vllm_importance_sampling_mode was changed from TRL's default; set one of them",
        ),
    ],
)
def test_refusals(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **options)


def test_the_correction_of_trl_is_left_out(tmp_path, trainer_of, gradient_of):
    """As it says; its factor is formed all the same, because TRL then checks what vLLM's log-probs are."""
    with pytest.warns(UserWarning, match="TRL's correction .* is left out"):
        config(tmp_path, anchor="rollout", use_vllm=True)
    rows = [(y, 1.0, log_mu) for y, _, log_mu in world(one_token=True)]
    found = []
    for anchor, factor in (("rollout", 1.0), ("rollout", 0.5), ("old", 1.0), ("old", 0.5)):
        trainer, inputs = trainer_of(anchor=anchor), micro_batch(*rows)
        trainer.use_vllm = True  # as far as the loss can tell
        inputs["importance_sampling_ratio"] = torch.full((len(rows), LONGEST), factor, dtype=torch.float64)
        found.append(gradient_of(trainer, inputs)[1])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2] / 2, found[3])


def test_it_needs_the_log_probs_of_the_sampler(build, tmp_path):
    with pytest.raises(ValueError, match="anchor = 'rollout' needs the sampler's log-probs: set use_vllm = True"):
        build(DGPOTrainer, anchor="rollout")
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"pass rollout_logprob \[B, T\], got None"):
        policy_loss(one, None, one, one.bool(), anchor="rollout", aggregation=aggregation.TokenMean())
    with pytest.raises(ValueError, match="count the same difference twice"):
        policy_loss(one, None, one, one.bool(), anchor="rollout", rollout_logprob=one, correction="band")
    assert StepTotals.of(one.bool())
