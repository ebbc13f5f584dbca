"""ρ against exact enumeration: a sampler that differs from the policy, on the real trainer and on `policy_loss`."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from enumeration import LONGEST, PROMPT, Rollouts, gradient, log_probs, micro_batch, policy, responses, tokenizer

from dgpo import StepTotals, aggregation, correction, policy_loss
from dgpo.kl import k1, k3
from dgpo.training import DGPOConfig, DGPOTrainer

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "studies" / "sampler_correction"
UNBIASED = {"name": "truncate", "level": "sequence", "cap": math.inf}
SAMPLER = 0.6


def reward(completions, **kwargs):
    """By place, so that no response is left out of the statistics for an advantage of 0."""
    return [(0.0, 1.0, 2.0, 4.0)[i % 4] for i in range(len(completions))]


@pytest.fixture
def trainer_of(quick, tmp_path):
    def trainer_of(rollouts, **options):
        defaults = {
            "objective": "is",
            "aggregation": "seq-mean-token-sum-norm",
            "advantage": "none",
            "correction": UNBIASED,
            "max_completion_length": LONGEST,
            "optim": "sgd",
            "max_grad_norm": 1e9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DGPOTrainer(
                policy(),
                reward,
                DGPOConfig(output_dir=str(tmp_path / "run"), **{**quick, **defaults, **options}),
                train_dataset=Dataset.from_dict({"prompt": [PROMPT] * 256}),
                processing_class=tokenizer(),
                rollout_func=rollouts,
            )

    return trainer_of


# --- the expected gradient, exactly ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """All responses of one policy with log μ, a fixed reward each, and the gradient of Σ_y π(y) R(y)."""
    model = policy()
    everything = list(responses())
    rewards = torch.randn(len(everything), generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    with torch.no_grad():
        sampler = [log_probs(model, y, SAMPLER) for y in everything]
    pi = [log_probs(model, y).sum().exp() for y in everything]
    truth = gradient(model, sum(p * r for p, r in zip(pi, rewards, strict=True)))
    assert len(everything) == 40
    assert sum(pi).item() == pytest.approx(1, abs=1e-12)
    assert sum(s.sum().exp() for s in sampler).item() == pytest.approx(1, abs=1e-12)
    # no log ratio reaches the clamp of 20 nats
    assert max(abs(p.log().item() - s.sum().item()) for p, s in zip(pi, sampler, strict=True)) < 10
    return list(zip(everything, rewards, sampler, strict=True)), truth


def distance(found, truth):
    return ((found - truth).norm() / truth.norm()).item()


def expected_by_trainer(trainer, gradient_of, world, *, old=False):
    """Σ_y μ(y) · -∇loss(y), every loss from the trainer's own `_compute_loss`, as an optimiser step of one response.

    The aggregation divides by `LONGEST`, which is no part of the policy gradient.
    """
    total = 0.0
    for response, advantage, sampler in world:
        inputs = micro_batch((response, advantage, sampler))
        if old:
            logprob = log_probs(trainer.model, response).detach()
            inputs["old_per_token_logps"] = torch.nn.functional.pad(logprob, (0, LONGEST - len(response)))[None]
        total = total - sampler.sum().exp() * LONGEST * gradient_of(trainer, inputs)[1]
    return total


def expected_by_policy_loss(world, rho):
    model = policy()
    total = 0.0
    for response, advantage, sampler in world:
        loss = policy_loss(
            log_probs(model, response).unsqueeze(0),
            None,
            torch.tensor([advantage], dtype=torch.float64),
            torch.ones(1, len(response), dtype=torch.bool),
            objective="is",
            aggregation=aggregation.SeqMeanTokenSumNorm(length=LONGEST),
            totals=StepTotals(tokens=len(response), sequences=1),
            rollout_logprob=sampler.unsqueeze(0),
            correction=rho,
        ).value
        total = total - sampler.sum().exp() * LONGEST * gradient(model, loss)
    return total


@pytest.mark.parametrize("old", [False, True])
def test_expected_gradient_of_the_trainer_is_the_true_one(trainer_of, gradient_of, world, old):
    known, truth = world
    found = expected_by_trainer(trainer_of(Rollouts(SAMPLER)), gradient_of, known, old=old)
    assert distance(found, truth) < 1e-10
    assert (found - truth).abs().max() < 1e-10


def test_expected_gradient_of_all_responses_in_one_step(trainer_of, gradient_of, world):
    """Ragged rows in one micro-batch; μ(y) goes into the advantage, in which the loss is linear."""
    known, truth = world
    rows = [(response, advantage * sampler.sum().exp(), sampler) for response, advantage, sampler in known]
    _, of_loss = gradient_of(trainer_of(Rollouts(SAMPLER)), micro_batch(*rows))
    assert distance(-of_loss * LONGEST * len(rows), truth) < 1e-10


def test_expected_gradient_through_log_probs_is_the_true_one(trainer_of, gradient_of, world):
    """TRL's own head computes log-probs in float32, whatever the model's dtype."""
    known, truth = world
    trainer = trainer_of(Rollouts(SAMPLER), fused_loss=False)
    assert distance(expected_by_trainer(trainer, gradient_of, known), truth) < 1e-5


def test_expected_gradient_of_policy_loss_is_the_true_one(world):
    known, truth = world
    found = expected_by_policy_loss(known, correction.make(**UNBIASED))
    assert distance(found, truth) < 1e-10
    assert (found - truth).abs().max() < 1e-10


def test_without_correction_it_is_not(trainer_of, gradient_of, world):
    known, truth = world
    trainer = trainer_of(Rollouts(SAMPLER), correction=None)
    found = expected_by_trainer(trainer, gradient_of, known)
    assert distance(found, truth) > 0.1
    torch.testing.assert_close(found, expected_by_policy_loss(known, None), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "rho", [correction.Truncate(cap=math.inf), correction.Truncate(level="sequence"), correction.Band(level="sequence")]
)
def test_a_factor_per_token_or_with_a_bound_is_biased(world, rho):
    known, truth = world
    assert distance(expected_by_policy_loss(known, rho), truth) > 1e-3


@pytest.mark.parametrize("given", [UNBIASED, json.dumps(UNBIASED), correction.Truncate(level="sequence", cap=math.inf)])
def test_no_cap_can_be_written(given, tmp_path):
    made = DGPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, correction=given)
    assert made.make_correction() == correction.Truncate(level="sequence", cap=math.inf)


# --- a stand-in for vLLM on the real trainer ------------------------------------------------------------------------


def divergence(temperature, trained=1.0):
    """KL(μ ‖ π) of a token of n sampled responses: expectation, and standard deviation times √n of k3 and of k1."""
    with torch.no_grad():
        model = policy()
        known = [(log_probs(model, y, temperature), log_probs(model, y, trained)) for y in responses()]
    mu = torch.stack([log_mu.sum() for log_mu, _ in known]).exp()
    length = torch.tensor([len(log_mu) for log_mu, _ in known]).double()
    found = []
    for estimator in (k3, k1):
        size = torch.stack([estimator(log_mu, log_pi).sum() for log_mu, log_pi in known])
        mean = (mu * size).sum() / (mu * length).sum()
        spread = (mu * (size - mean * length).square()).sum().sqrt() / (mu * length).sum()
        found.append((mean.item(), spread.item()))
    assert found[0][0] == pytest.approx(found[1][0])  # nothing is cut off, so that both are unbiased
    return found


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(("sampled", "trained"), [(0.6, 1.0), (1.5, 1.0), (1.0, 0.7)])
def test_the_sampler_shows_in_the_log(trainer_of, sampled, trained):
    """The generation of a policy that has not moved, against its enumeration."""
    rollouts = Rollouts(sampled)
    trainer = trainer_of(rollouts, temperature=trained, per_device_train_batch_size=256, max_steps=4, learning_rate=0.0)
    trainer.train()
    assert [len(call) for call in rollouts.calls] == [1024]
    for (mean, spread), name in zip(divergence(sampled, trained), ("kl/sampler", "kl/sampler_k1"), strict=True):
        shown = logged(trainer, f"objective/{name}")
        assert len(shown) == 4
        # every update weighs its own tokens, so this is a mean of four ratios
        assert sum(shown) / 4 == pytest.approx(mean, abs=4 * spread / math.sqrt(1024))
        if name == "kl/sampler":
            assert mean > 6 * spread / math.sqrt(1024)  # not to be mistaken for 0
    metrics = [logged(trainer, f"objective/{name}") for name in ("kl/sampler", "kl/sampler_k1", "sampler/cut_mass")]
    for third, first, cut in zip(*metrics, strict=True):
        assert third == pytest.approx(first - cut, abs=1e-7)  # over the same tokens; metrics are float32


@pytest.mark.parametrize("rollouts", [Rollouts(1.0), Rollouts(0.6, reported=1.0)])
def test_kl_sampler_is_zero_for_the_policys_own_log_probs(trainer_of, rollouts):
    """Also where an engine reports them before its temperature: the statistic believes what the sampler says."""
    trainer = trainer_of(rollouts, max_steps=4, learning_rate=0.0)
    trainer.train()
    assert max(logged(trainer, "objective/kl/sampler")) < 1e-12


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [math.inf, 1.1])
def test_what_enters_the_loss_is_the_old_policy_over_the_sampler(trainer_of, monkeypatch, level, cap):
    """Four updates of one generation; the policy moves between them, ρ does not."""

    def pieces(*tensors):
        """Whole responses, or tokens one by one, because the fused loss may ask for them in chunks of its own."""
        return zip(*((t,) if level == "sequence" else t.split(1) for t in tensors), strict=True)

    given = []
    factor = correction.Truncate.factor
    monkeypatch.setattr(
        correction.Truncate, "factor", lambda self, tokens: given.append((factor(self, tokens), tokens)) or given[-1][0]
    )
    rollouts = Rollouts(SAMPLER)
    trainer = trainer_of(rollouts, correction={"name": "truncate", "level": level, "cap": cap}, max_steps=4)
    trainer.train()
    known = {}
    for _, log_mu, log_pi in rollouts.calls[0]:
        log_mu = log_mu.float().double()  # TRL makes float32 of the sampler's log-probs
        for piece in pieces(log_pi - log_mu, log_mu):
            known[tuple(piece[1].tolist())] = piece[0].sum().exp().clamp(max=cap)
    seen, moved = 0, 0.0
    for rho, tokens in given:
        for row, mask in enumerate(tokens.mask):
            for values, sampler in pieces(rho[row][mask], tokens.rollout_logprob[row][mask]):
                expected = known[tuple(sampler.tolist())].expand_as(values)
                torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
                seen += len(values)
        moved = max(moved, (tokens.logprob - tokens.old_logprob).abs().max().item())
    assert seen >= sum(len(response) for response, *_ in rollouts.calls[0])
    assert moved > 1e-3


def test_the_update_is_that_of_the_recorded_tokens(trainer_of):
    """Parameters after one update of plain gradient descent, against Σ_y ρ(y)·A(y)·∇log π(y) of what was sampled."""
    rollouts = Rollouts(SAMPLER)
    trainer = trainer_of(
        rollouts, per_device_train_batch_size=16, steps_per_generation=1, max_steps=1, learning_rate=0.1
    )
    start = policy()
    trainer.train()
    sampled = rollouts.calls[0]
    advantage = torch.tensor(reward([None] * 16)).double() - 1.75  # of a group of 4
    objective = 0.0
    for (response, log_mu, log_pi), a in zip(sampled, advantage, strict=True):
        rho = (log_pi - log_mu.float().double()).sum().exp()
        objective = objective + rho * a * log_probs(start, response).sum() / (16 * LONGEST)
    expected = torch.cat([p.detach().flatten() for p in start.parameters()]) + 0.1 * gradient(start, objective)
    found = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found - torch.cat([p.detach().flatten() for p in start.parameters()])).abs().max() > 1e-3


def test_a_sampler_without_log_probs_is_an_error(trainer_of):
    rollouts = Rollouts(SAMPLER)

    def silent(prompts, trainer):
        return {**rollouts(prompts, trainer), "logprobs": None}

    with pytest.raises(ValueError, match=r"correction = \{'name': 'truncate'.* needs the sampler's log-probs"):
        trainer_of(silent).train()

    def lacking(prompts, trainer):
        return {name: value for name, value in rollouts(prompts, trainer).items() if name != "logprobs"}

    with pytest.raises(ValueError, match=r"rollout_func must return keys \['logprobs'\]"):
        trainer_of(lacking).train()


# --- the study and its page -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    """studies/sampler_correction/run.py as a module."""
    spec = importlib.util.spec_from_file_location("sampler_correction_study", STUDY / "run.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDY)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return json.loads((STUDY / "results.json").read_text(encoding="utf-8"))


METRICS = ("kl", "k1", "cut")


def flat(values, name=""):
    if not isinstance(values, dict):
        return {name: values}
    return {k: v for key, value in values.items() for k, v in flat(value, f"{name}/{key}").items()}


def test_the_results_are_what_the_study_computes(study, results):
    assert flat(study.study()) == pytest.approx(flat(results), rel=1e-4, abs=1e-9)


def test_the_page_shows_the_results(study, results):
    page = (ROOT / "docs" / "correction.md").read_text(encoding="utf-8")
    for table in study.tables(results):
        assert table in page


def test_what_the_page_says_of_them(results):
    found = results["corrections"]
    bias = {sampler: {n: one[n]["bias"]["median"] for n in one if n not in METRICS} for sampler, one in found.items()}
    error = {sampler: {n: one[n]["error"]["median"] for n in one if n not in METRICS} for sampler, one in found.items()}
    with_support = [sampler for sampler in found if sampler != "top-p 0.9"]
    for sampler in with_support:
        assert found[sampler]["sequence, no cap"]["bias"] == {"median": 0, "low": 0, "high": 0}
        assert bias[sampler]["none"] > bias[sampler]["token, no cap"] > bias[sampler]["sequence, cap 2"]
        assert error[sampler]["sequence, cap 2"] <= 1.03 * min(error[sampler].values())
    assert min(bias["top-p 0.9"].values()) == bias["top-p 0.9"]["sequence, no cap"] > 0.18
    assert found["top-p 0.9"]["kl"]["median"] < 0.003
    assert found["top-p 0.9"]["k1"]["median"] > 0.04
    assert found["top-p 0.9"]["cut"]["median"] > 0.04
    for sampler in with_support:
        assert found[sampler]["cut"] == {"median": 0, "low": 0, "high": 0}
        assert found[sampler]["k1"] == found[sampler]["kl"]
    assert found["noise 0.1"]["kl"]["median"] < 0.003
    assert 1 - bias["τ = 0.8"]["token, no cap"] / bias["τ = 0.8"]["none"] == pytest.approx(0.19, abs=0.01)
    assert found["τ = 0.6"]["sequence, no cap"]["variance"]["median"] == pytest.approx(4.0, abs=0.1)
    lengths = [one["token, no cap"]["bias"]["median"] for one in results["length"].values()]
    assert lengths[0] == 0
    assert lengths == sorted(lengths)
    aggregations = {name: one["median"] for name, one in results["aggregations"].items()}
    assert aggregations["seq-mean-token-sum-norm"] == 0
    assert aggregations["seq-mean-token-mean"] > 0.01
