"""The engine of the atlas is the real thing: an ordinary GPT-2, policy_loss, torch's AdamW and DGPOTrainer agree."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass, replace

import engine
import pytest
import torch
from arms import METHODS, OBJECTIVES, Arm, arms
from datasets import Dataset
from engine import (
    METRICS,
    MiniBatch,
    Optimised,
    Setting,
    State,
    adam,
    answer_probability,
    drawn,
    generate,
    gradient,
    train,
)
from ordinary import model_of, words
from problems import BACKWARD, END, EQUALS, FORWARD, PLUS, PROBLEMS, VOCABULARY
from scipy.stats import chisquare
from stacked import Shape, logits, sample
from start import HABIT_GROWS, right_share, warm_up
from transformers import GPT2LMHeadModel

from dgpo import objectives, policy_loss
from dgpo.advantages import group_advantage
from dgpo.objectives import Objective
from dgpo.training import DGPOConfig, DGPOTrainer
from pretended_gpu import pretended_gpu

REVERSE = PROBLEMS["reverse"]
SHAPE = Shape(VOCABULARY, width=8, layers=2, heads=2, prompt=REVERSE.prompt, response=REVERSE.response)
MEMBERS, PROMPTS, GROUP = 3, 2, 4
ROWS = PROMPTS * GROUP
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SEVERAL = ("dgpo(1,2)", "grpo", "maspo", "bapo")
"""Objectives for the slower tests; bapo reads the batch."""
DIFFERENT = (*METHODS, "dgpo(2,2) capped")
"""One of every kind: the others of the ablation have other exponents."""


def weights(members: int = MEMBERS, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Parameters [S, size] of which every one matters: norms and biases are random too."""
    generator = torch.Generator().manual_seed(seed)
    return (0.6 * torch.randn(members, SHAPE.size, generator=generator, dtype=torch.float64)).to(dtype)


def logprob_by(model: GPT2LMHeadModel, batch: MiniBatch, member: int) -> torch.Tensor:
    """[P·G, T] of one member's responses, each in a sequence of its own."""
    prompts, responses = batch.prompts[member], batch.responses[member]
    prompts = prompts.unsqueeze(1).expand(*responses.shape[:2], -1)
    ids = torch.cat([prompts, responses], -1).flatten(0, 1)
    scores = model(input_ids=ids).logits[:, prompts.shape[-1] - 1 : -1].log_softmax(-1)
    return scores.gather(-1, responses.flatten(0, 1).unsqueeze(-1)).squeeze(-1)


def logprob_of(flat: torch.Tensor, batch: MiniBatch) -> torch.Tensor:
    """[S·P·G, T] by the engine."""
    scores = logits(SHAPE, SHAPE.views(flat), batch.prompts, batch.responses).log_softmax(-1)
    return scores.gather(-1, batch.responses.unsqueeze(-1)).squeeze(-1).flatten(0, 2)


def made(flat: torch.Tensor, stale: bool, seed: int = 0) -> MiniBatch:
    """Random prompts, responses of every length and advantages of both signs; off-policy where `stale`."""
    generator = torch.Generator().manual_seed(seed)
    members, length = len(flat), SHAPE.response
    prompts = torch.randint(0, VOCABULARY, (members, PROMPTS, SHAPE.prompt), generator=generator)
    responses = torch.randint(0, END, (members, PROMPTS, GROUP, length), generator=generator)
    ends = torch.randint(0, length + 2, (members, PROMPTS, GROUP, 1), generator=generator)
    place = torch.arange(length)
    responses = torch.where(place >= ends, END, responses)
    advantage = torch.randn(members * ROWS, generator=generator, dtype=torch.float64).to(flat.dtype)
    advantage[::5] = 0
    batch = MiniBatch(
        prompts, responses, (place <= ends).flatten(0, 2), torch.zeros_like(advantage), advantage, old_logprob=None
    )
    if not stale:
        return batch
    # log ratios of every size up to 2, so that all boundaries lie between some
    log_ratio = torch.linspace(-2, 2, batch.mask.numel(), dtype=torch.float64).to(flat.dtype)
    log_ratio = log_ratio[torch.randperm(len(log_ratio), generator=generator)].view(batch.mask.shape)
    return replace(batch, old_logprob=(logprob_of(flat, batch) - log_ratio).detach())


def rows_of(batch: MiniBatch, member: int) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """log π_old, advantages and mask of one member, as policy_loss takes them."""
    rows = slice(member * ROWS, (member + 1) * ROWS)
    old = None if batch.old_logprob is None else batch.old_logprob[rows]
    return old, batch.advantage[rows], batch.mask[rows]


def setting_of(label: str = "is", **fields) -> Setting:
    fields = {"updates": 4, "prompts": PROMPTS, "group": GROUP, "evaluate_every": 2, **fields}
    return Setting(REVERSE, objectives.make(OBJECTIVES[label]), **fields)


def gradient_of(label: str | Objective, flat: torch.Tensor, batch: MiniBatch):
    """Gradient [S, size] and metrics."""
    into = torch.full_like(flat, torch.nan)
    setting = setting_of(label) if isinstance(label, str) else replace(setting_of(), objective=label)
    metrics = gradient(setting, SHAPE, flat, batch, into)
    return into, metrics


def named(flat: torch.Tensor, member: int) -> dict[str, torch.Tensor]:
    return {name: view[member] for name, view in SHAPE.views(flat).items()}


@pytest.mark.parametrize("stale", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("members", [1, MEMBERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_log_probs_and_gradients_are_those_of_an_ordinary_model_under_policy_loss(dtype, members, stale):
    """Every objective of the atlas, every parameter; lengths from one token to a response that never ends."""
    flat = weights(members, dtype)
    batch, tolerance = made(flat, stale), TOLERANCE[dtype]
    lengths = batch.mask.sum(-1)
    assert lengths.min() == 1
    assert lengths.max() == SHAPE.response
    assert (batch.responses != END).all(-1).any()
    ours = logprob_of(flat, batch).view(members, ROWS, -1)
    # an objective's gradients differ from others' off-policy only
    found = {
        label: gradient_of(label, flat, batch)[0]
        for label in (OBJECTIVES if stale and len(flat) > 1 and dtype == torch.float64 else SEVERAL)
    }
    for member in range(members):
        model = model_of(SHAPE, flat, member)
        logprob = logprob_by(model, batch, member)
        torch.testing.assert_close(ours[member], logprob, rtol=0, atol=tolerance)
        parameters = dict(model.named_parameters())
        assert list(parameters) == list(SHAPE.parameters)
        old, advantage, mask = rows_of(batch, member)
        for label, all_members in found.items():
            loss = policy_loss(logprob, old, advantage, mask, objective=OBJECTIVES[label], aggregation="token-mean")
            expected = torch.autograd.grad(loss.value, list(parameters.values()), retain_graph=True)
            largest = max(float(part.abs().max()) for part in expected)
            assert largest > 1e-2
            for (name, mine), theirs in zip(named(all_members, member).items(), expected, strict=True):
                error = float((mine - theirs).abs().max())
                assert error <= tolerance * max(largest, 1), f"{label}, {name}: {error:.1e} of {largest:.1e}"


def test_a_member_has_the_parameters_of_an_ordinary_model():
    assert SHAPE.size == sum(p.numel() for p in model_of(SHAPE, weights(), 0).parameters())
    assert Shape(VOCABULARY, 64, 2, 4, REVERSE.prompt, REVERSE.response).size == 101_824
    start = named(SHAPE.initial([0, 1]), 1)
    torch.manual_seed(1)
    for name, theirs in GPT2LMHeadModel(model_of(SHAPE, weights(), 0).config).named_parameters():
        # a few hundred draws: their standard deviation is right within 30 %
        assert float(start[name].std()) == pytest.approx(float(theirs.detach().std()), rel=0.3, abs=1e-9), name
        assert float(start[name].mean()) == pytest.approx(float(theirs.detach().mean()), abs=1e-2), name


def test_on_policy_all_methods_have_one_gradient():
    """Why the atlas has a single arm at one update per generation."""
    flat = weights()
    batch = made(flat, stale=False)
    expected, _ = gradient_of("is", flat, batch)
    for label in OBJECTIVES:
        torch.testing.assert_close(gradient_of(label, flat, batch)[0], expected, rtol=0, atol=1e-12, msg=label)
    assert [arm for arm in arms() if arm.k == 1] == [Arm(task, 1, "is") for task in PROBLEMS]


def test_off_policy_the_methods_differ():
    """The comparisons above could not fail if they did not. The caps of the ablation may bind nowhere."""
    flat = weights()
    batch = made(flat, stale=True)
    found = [gradient_of(label, flat, batch)[0] for label in OBJECTIVES if "capped" not in label]
    for first, second in itertools.combinations(found, 2):
        assert (first - second).abs().max() > 1e-6


def reference_run(setting: Setting, flat: torch.Tensor, seed: int, learning_rate: float) -> torch.Tensor:
    """One member as anybody would train it: an ordinary model, policy_loss, AdamW, clip_grad_norm_. [updates, size]."""
    model = model_of(SHAPE, flat, 0)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    history: list[torch.Tensor] = []
    while len(history) < setting.updates:
        now = torch.cat([p.detach().flatten() for p in parameters])[None]
        for batch in generate(setting, SHAPE, now, [seed], len(history)):
            old, advantage, mask = rows_of(batch, 0)
            loss = policy_loss(logprob_by(model, batch, 0), old, advantage, mask, objective=setting.objective)
            optimizer.zero_grad()
            loss.value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, engine.MAX_GRAD_NORM)
            optimizer.step()
            history.append(torch.cat([p.detach().flatten() for p in parameters]))
    return torch.stack(history)


@pytest.fixture
def easy(monkeypatch):
    """Reward for an even first digit: responses that a random policy gives, where right answers are too rare."""
    plain = engine.group_advantage
    sampled = engine.sample
    seen: list[torch.Tensor] = []

    def watched(*args):
        found = sampled(*args)
        seen.append(found[0])
        return found

    def rewarded(reward, group):
        return plain((seen[-1][..., 0] % 2 == 0).to(reward).flatten(), group)

    monkeypatch.setattr(engine, "sample", watched)
    monkeypatch.setattr(engine, "group_advantage", rewarded)


@pytest.mark.parametrize("label", ["dgpo(1,2)", "bapo"])
def test_a_run_is_that_of_an_ordinary_model(easy, monkeypatch, label):
    """Two generations of two updates: sampling, staleness, learning rates of their own, Adam, clipping, scores."""
    # between the norms of these gradients
    monkeypatch.setattr(engine, "MAX_GRAD_NORM", 0.3)
    setting = setting_of(label, updates=4, updates_per_generation=2)
    flat, seeds, rates = weights(), [5, 6, 7], [1e-2, 3e-2, 1e-3]
    state = train(setting, SHAPE, flat, seeds, torch.tensor(rates, dtype=torch.float64))
    asked, right = engine.evaluation_problems(REVERSE)
    for member in range(MEMBERS):
        history = reference_run(setting, flat[member : member + 1], seeds[member], rates[member])
        torch.testing.assert_close(state.parameters[member], history[-1], rtol=0, atol=1e-8)
        assert (history[-1] - flat[member]).abs().max() > rates[member]
        # the scores, with the product over the tokens taken one by one
        policies = [flat[member], *history[1::2]]
        for score, policy in zip(state.scores[:, member], policies, strict=True):
            batch = MiniBatch(asked[None], right[None, :, None], *[torch.empty(0)] * 3, None)
            each = logprob_by(model_of(SHAPE, policy[None], 0), batch, 0).detach().exp()
            assert float(score) == pytest.approx(float(each.prod(-1).mean()), rel=1e-6)
    ratios = state.metrics[:, :, METRICS.index("kl_old")]
    assert (ratios[[0, 2]] == 0).all()
    assert (ratios[[1, 3]] > 0).all()
    norms = state.metrics[:, :, METRICS.index("grad_norm")]
    assert norms.min() < engine.MAX_GRAD_NORM < norms.max()


def test_adam_is_that_of_torch():
    """With gradients on both sides of the clip."""
    flat, rates = weights(), torch.tensor([1e-2, 1e-3, 3e-2], dtype=torch.float64)
    state = Optimised.start(flat)
    theirs = [row.clone().requires_grad_() for row in flat]
    optimizers = [
        torch.optim.AdamW([p], lr=float(rate), weight_decay=0.0, betas=engine.BETAS, eps=engine.EPSILON)
        for p, rate in zip(theirs, rates, strict=True)
    ]
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1.0, 1e-6, 30.0, 1e-2):
        gradients = size * torch.randn(flat.shape, generator=generator, dtype=torch.float64)
        adam(state, gradients, rates, torch.ones(MEMBERS, dtype=torch.bool))
        state.update += 1
        for p, row, optimizer in zip(theirs, gradients, optimizers, strict=True):
            p.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([p], engine.MAX_GRAD_NORM)
            optimizer.step()
    torch.testing.assert_close(state.parameters, torch.stack([p.detach() for p in theirs]), rtol=0, atol=1e-13)


def same(first: State, second: State, members: list[int]) -> None:
    for name in ("parameters", "first", "second"):
        assert torch.equal(getattr(first, name)[members], getattr(second, name)[members]), name
    for name in ("metrics", "scores"):
        mine, theirs = getattr(first, name)[:, members], getattr(second, name)[:, members]
        assert torch.equal(mine.nan_to_num(-1), theirs.nan_to_num(-1)), name
        assert mine.isfinite().all()


@pytest.mark.parametrize("label", ["dgpo(1,2)", "bapo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_members_do_not_know_of_each_other(easy, label, dtype):
    """Another start, seed and learning rate of the middle one: the others are the same, bit for bit."""
    setting = setting_of(label, updates_per_generation=2)
    rates = torch.tensor([1e-2, 3e-2, 1e-3])
    flat = weights(dtype=dtype)
    state = train(setting, SHAPE, flat, [1, 2, 3], rates)
    other, faster = flat.clone(), rates.clone()
    other[1], faster[1] = weights(1, dtype, seed=1)[0], 0.1
    changed = train(setting, SHAPE, other, [1, 9, 3], faster)
    same(state, changed, [0, 2])
    assert not torch.equal(state.parameters[1], changed.parameters[1])
    if dtype == torch.float32:
        return  # Adam divides the rounding of a gradient that is 0 (of a key's bias) by its own size
    alone = train(setting, SHAPE, flat[1:2], [2], rates[1:2])
    torch.testing.assert_close(alone.parameters[0], state.parameters[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(alone.metrics[:, 0], state.metrics[:, 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.scores[:, 0], state.scores[:, 1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("label", DIFFERENT)
def test_no_method_looks_across_members(label):
    """Another policy, tokens, advantages and log π_old of one member change no gradient or metric of the others."""
    flat = weights()
    batch = made(flat, stale=True)
    before, metrics = gradient_of(label, flat, batch)
    other = made(flat, stale=True, seed=1)
    rows = slice(ROWS, 2 * ROWS)
    assert batch.old_logprob is not None
    assert other.old_logprob is not None
    for name in ("mask", "advantage", "old_logprob"):
        getattr(batch, name)[rows] = getattr(other, name)[rows]
    batch.prompts[1], batch.responses[1] = other.prompts[1], other.responses[1]
    flat = flat.clone()
    flat[1] *= 1.1
    after, changed = gradient_of(label, flat, batch)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])
    for name, values in metrics.items():
        assert torch.equal(values[[0, 2]], changed[name][[0, 2]]), name


def test_every_tensor_is_where_the_parameters_are(monkeypatch):
    """On the stand-in for a GPU, where a product of tensors of two devices is an error, all is as on the CPU."""
    few = replace(setting_of("bapo", updates_per_generation=2), updates=2, evaluate_every=1)
    # a start that takes two steps: the habit grows from the first on
    rare = replace(PROBLEMS["rare"], start=1e-3)
    monkeypatch.setattr("start.TOGETHER", 0.0)
    monkeypatch.setattr("start.HABIT_GROWS", 1)
    monkeypatch.setattr("start.HABIT_RESTS", 3)

    def everything(device):
        begun, score = warm_up(rare, [1, 2], device)
        state = train(few, SHAPE, weights(2, torch.float32).to(device), [1, 2], torch.tensor([1e-3, 2e-3]))
        return {"starts": begun, "score": score, "parameters": state.parameters}, [state.metrics, state.scores]

    expected, recorded = everything("cpu")
    with pretended_gpu() as device:
        found, recorded_there = everything(device)
        assert {values.device for values in found.values()} == {device}
        found = {name: values.cpu() for name, values in found.items()}
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
    for ours, theirs in zip(recorded_there, recorded, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@dataclass(frozen=True, kw_only=True)
class BreaksTheSecond(Objective):
    """Importance sampling whose weight is infinite, where tokens are off-policy, in the second of three members."""

    def weight(self, tokens):
        ratio = tokens.ratio.clone()
        rows = slice(len(ratio) // 3, 2 * len(ratio) // 3)
        ratio[rows] = torch.where(ratio[rows] == 1, ratio[rows], math.inf)
        return ratio


def test_an_update_without_a_finite_gradient_is_left_out_and_counted(easy):
    setting, rates = setting_of(updates=3, updates_per_generation=3, evaluate_every=1), torch.full((MEMBERS,), 1e-2)
    healthy = train(setting, SHAPE, weights(), [1, 2, 3], rates)
    broken = train(replace(setting, objective=BreaksTheSecond()), SHAPE, weights(), [1, 2, 3], rates)
    assert broken.skipped.tolist() == [0, 2, 0]
    assert healthy.skipped.tolist() == [0, 0, 0]
    same(healthy, broken, [0, 2])
    first = train(replace(setting, updates=1), SHAPE, weights(), [1, 2, 3], rates)
    for name in ("parameters", "first", "second"):
        assert torch.equal(getattr(broken, name)[1], getattr(first, name)[1])
    assert not broken.metrics[1:, 1, METRICS.index("grad_norm")].isfinite().any()


def test_the_log_probs_of_sampled_tokens_are_those_of_the_forward_pass():
    for dtype in (torch.float32, torch.float64):
        flat = weights(dtype=dtype)
        setting = setting_of(updates_per_generation=3)
        batches = generate(setting, SHAPE, flat, [1, 2, 3], 0)
        assert len(batches) == 3
        assert batches[0].old_logprob is None
        for batch in batches[1:]:
            difference = (batch.old_logprob - logprob_of(flat, batch))[batch.mask]
            assert difference.abs().max() <= TOLERANCE[dtype]
        # the last generation of a run whose updates k does not divide
        assert len(generate(setting, SHAPE, flat, [1, 2, 3], 3)) == 1


def test_a_response_is_masked_behind_its_first_end():
    flat = weights()
    # no bias in the output layer of GPT-2: a larger embedding of END makes it likely for some and unlikely for others
    SHAPE.views(flat)["transformer.wte.weight"][:, END] *= 2
    uniform = torch.rand(MEMBERS, PROMPTS, 64, SHAPE.response, dtype=torch.float64)
    prompts = torch.randint(0, 10, (MEMBERS, PROMPTS, SHAPE.prompt))
    tokens, _, mask = sample(SHAPE, SHAPE.views(flat), prompts, uniform, END)
    for response, kept in zip(tokens.flatten(0, 2).tolist(), mask.flatten(0, 2).tolist(), strict=True):
        length = response.index(END) + 1 if END in response else SHAPE.response
        assert kept == [place < length for place in range(SHAPE.response)]
        assert response[length:] == [END] * (SHAPE.response - length)
    assert set(mask.sum(-1).flatten().tolist()) == set(range(1, SHAPE.response + 1))


def test_responses_are_as_frequent_as_they_are_probable():
    """Chi-square over all 211 responses of up to two tokens, for two members and two prompts at once."""
    shape, draws = replace(SHAPE, response=2), 20_000
    generator = torch.Generator().manual_seed(3)
    flat = 0.4 * torch.randn(2, shape.size, generator=generator)
    views = shape.views(flat)
    prompts = torch.randint(0, 10, (2, 2, shape.prompt), generator=generator)
    tokens, _, _ = sample(shape, views, prompts, torch.rand(2, 2, draws, 2, generator=generator), END)
    every = torch.tensor([*itertools.product(range(END), range(VOCABULARY)), (END, END)])
    scores = logits(shape, views, prompts, every.expand(2, 2, -1, 2)).double().log_softmax(-1)
    each = scores.gather(-1, every.expand(2, 2, -1, 2).unsqueeze(-1)).squeeze(-1)
    # END first: nothing is drawn any more
    each[:, :, -1, 1] = 0
    probability = each.sum(-1).exp()
    torch.testing.assert_close(probability.sum(-1), torch.ones(2, 2, dtype=torch.float64), rtol=0, atol=1e-6)
    for member, prompt in itertools.product(range(2), range(2)):
        code = (tokens[member, prompt] * VOCABULARY).select(-1, 0) + tokens[member, prompt, :, 1]
        counts = torch.bincount(code, minlength=VOCABULARY**2)[(every * torch.tensor([VOCABULARY, 1])).sum(-1)]
        assert counts.sum() == draws
        expected = draws * probability[member, prompt] / probability[member, prompt].sum()
        # rare responses count with the rarest of the others
        rare = expected < 5
        found, wanted = counts[~rare].double(), expected[~rare].clone()
        found[wanted.argmin()] += counts[rare].sum()
        wanted[wanted.argmin()] += expected[rare].sum()
        assert len(found) > 80
        assert chisquare(found.numpy(), wanted.numpy()).pvalue > 1e-3


def test_draws_are_those_of_the_seed_and_the_update_alone():
    """The same prompts and uniform numbers for every k; others for another update or seed."""
    first = drawn(REVERSE, 3, 7, PROMPTS, GROUP)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(REVERSE, 3, 7, PROMPTS, GROUP), strict=True))
    others = [drawn(REVERSE, seed, update, PROMPTS, GROUP) for seed, update in ((3, 8), (4, 7))]
    assert all(not torch.equal(first[0], other[0]) and not torch.equal(first[2], other[2]) for other in others)
    flat, seeds = weights(), [1, 2, 3]
    one_by_one = [generate(setting_of(), SHAPE, flat, seeds, update)[0] for update in range(4)]
    for batch, other in zip(
        one_by_one, generate(setting_of(updates_per_generation=4), SHAPE, flat, seeds, 0), strict=True
    ):
        assert torch.equal(batch.prompts, other.prompts)
        assert torch.equal(batch.responses, other.responses)
        assert torch.equal(batch.advantage, other.advantage)


def test_the_probability_of_an_answer_is_the_product_over_its_tokens():
    flat = weights()
    asked, right = REVERSE.draw(5, torch.Generator().manual_seed(0))
    found = answer_probability(SHAPE, flat, asked, right)
    for member in range(MEMBERS):
        model = model_of(SHAPE, flat, member)
        for problem, (prompt, answer) in enumerate(zip(asked, right, strict=True)):
            scores = (
                model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1].detach().softmax(-1)
            )
            product = math.prod(float(scores[t, token]) for t, token in enumerate(answer))
            assert float(found[member, problem]) == pytest.approx(product, rel=1e-9)


@pytest.mark.parametrize("label", DIFFERENT)
def test_metrics_are_the_statistics_of_policy_loss(label):
    flat = weights()
    batch = made(flat, stale=True)
    into, metrics = gradient_of(label, flat, batch)
    assert set(metrics) == set(METRICS)
    logprob = logprob_of(flat, batch)
    scores = logits(SHAPE, SHAPE.views(flat), batch.prompts, batch.responses).log_softmax(-1).flatten(0, 2)
    for member in range(MEMBERS):
        old, advantage, mask = rows_of(batch, member)
        rows = slice(member * ROWS, (member + 1) * ROWS)
        loss = policy_loss(logprob[rows], old, advantage, mask, objective=OBJECTIVES[label])
        ratios = policy_loss(logprob[rows], old, advantage, mask, objective="is")
        expected = {name: value for name, value in loss.statistics.items() if name in METRICS}
        assert len(expected) == 10
        expected |= {
            "ess": loss.statistics["weight/ess"],
            "ratio_ess": ratios.statistics["weight/ess"],
            "kl_old": loss.statistics["kl/old"],
            "largest_weight": loss.weight.abs().max(),
            "grad_norm": into[member].norm(),
            "entropy": torch.distributions.Categorical(logits=scores[rows]).entropy()[mask].mean(),
            "informative": (advantage.view(PROMPTS, GROUP) != 0).any(-1).double().mean(),
        }
        for name, value in expected.items():
            assert float(metrics[name][member]) == pytest.approx(float(value), rel=1e-6, abs=1e-9), name


def test_a_reward_is_a_right_answer_and_its_advantage_that_of_its_group():
    """A policy that is sure of one token: its one answer is right for one prompt and wrong for the others."""
    prompts = torch.tensor([[7, 7, 7, 7, 7, 11], [7, 7, 7, 7, 8, 11]])
    right = torch.cat([prompts[:, :5].flip(1), torch.full((2, 1), END)], 1)
    problems = replace(REVERSE, draw=lambda count, generator: (prompts, right))
    flat = weights()
    batch = generate(replace(setting_of(), problems=problems), SHAPE, flat, [1, 2, 3], 0)[0]
    assert not batch.reward.any()
    # the tokens that it samples are the right answer now, to the second prompt, of the first member
    problems = replace(problems, draw=lambda count, generator: (prompts, batch.responses[0, :, 1]))
    rewarded = generate(replace(setting_of(), problems=problems), SHAPE, flat, [1, 2, 3], 0)[0]
    expected = (batch.responses == batch.responses[0, :, 1][None, :, None]).all(-1).double().flatten()
    assert expected[[1, 5]].tolist() == [1, 1]
    assert torch.equal(rewarded.reward, expected)
    torch.testing.assert_close(rewarded.advantage, group_advantage(expected, GROUP))


@pytest.mark.parametrize("stop", [5, 6], ids=["inside a generation", "at its first update"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(easy, monkeypatch, tmp_path, stop):
    setting, rates = setting_of(updates=8, updates_per_generation=2), torch.full((MEMBERS,), 1e-2)
    arguments = setting, SHAPE, weights(dtype=torch.float32), [1, 2, 3], rates
    whole = train(*arguments)
    checkpoint = tmp_path / "state.pt"
    step, calls = engine.adam, []

    def interrupted(state, *rest):
        calls.append(state.update)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        step(state, *rest)

    monkeypatch.setattr(engine, "adam", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, checkpoint, save_every=4)
    assert State.load(checkpoint, torch.device("cpu")).update == 4
    resumed = train(*arguments, checkpoint, save_every=4)
    assert calls == [*range(stop + 1), *range(4, 8)]
    same(whole, resumed, [0, 1, 2])
    assert torch.equal(whole.skipped, resumed.skipped)
    # a finished run is read, not run again
    same(whole, train(*arguments, checkpoint, save_every=4), [0, 1, 2])
    assert len(calls) == stop + 1 + 4


class Watched(DGPOTrainer):
    """Keeps the gradient of the loss, before it is clipped, and the parameters, of every update."""

    def training_step(self, model, *args, **kwargs):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss = super().training_step(model, *args, **kwargs)
        self.seen.append((before, {name: p.grad.clone() for name, p in model.named_parameters()}))
        return loss


@pytest.mark.parametrize(
    ("label", "dtype"),
    [("dgpo(1,2)", torch.float32), ("bapo", torch.float64)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_updates_are_those_of_the_trainer(tmp_path, label, dtype):
    """Three updates on one generation, the second and third off-policy: gradients of all parameters, and AdamW."""
    flat, rate = weights(1, dtype), 2e-2
    prompts = made(flat, stale=False).prompts[0]
    batch = replace(made(flat, stale=False), prompts=prompts[None])
    given = iter(zip(batch.responses.flatten(0, 2).tolist(), batch.mask.sum(-1).tolist(), strict=True))

    def rollouts(texts, trainer):
        rows = [trainer.processing_class(text)["input_ids"] for text in texts]
        assert rows == prompts.repeat_interleave(GROUP, 0).tolist()
        completions = [row[:length] for row, length in itertools.islice(given, ROWS)]
        return {"prompt_ids": rows, "completion_ids": completions, "logprobs": None}

    def reward(completion_ids, **columns):
        return [float(sum(ids) % 2) for ids in completion_ids]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = DGPOConfig(
            output_dir=str(tmp_path),
            objective=OBJECTIVES[label],
            # exact in every dtype for these rewards: the trainer keeps advantages in float32
            advantage="none",
            per_device_train_batch_size=ROWS,
            num_generations=GROUP,
            steps_per_generation=1,
            num_iterations=3,
            max_steps=3,
            max_completion_length=SHAPE.response,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=engine.MAX_GRAD_NORM,
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Watched(
            model_of(SHAPE, flat, 0),
            reward,
            config,
            train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, row)) for row in prompts.tolist()]}),
            processing_class=words(),
            rollout_func=rollouts,
        )
    trainer.seen = []
    trainer.train()
    assert len(trainer.seen) == 3

    # END, behind the end of a response, is even
    rewards = batch.responses.sum(-1).flatten() % 2
    batch = replace(batch, advantage=group_advantage(rewards.to(dtype), GROUP, "none"))
    assert END % 2 == 0
    assert (batch.advantage > 0).any()
    state = Optimised.start(flat)
    generated = logprob_of(flat, batch)
    for update, (parameters, gradients) in enumerate(trainer.seen):
        now = torch.cat([p.flatten() for p in parameters.values()])[None]
        if dtype == torch.float64:
            torch.testing.assert_close(state.parameters, now, rtol=0, atol=1e-8)
        state.parameters = now
        into, metrics = gradient_of(label, now, replace(batch, old_logprob=generated if update else None))
        assert (metrics["ratio_ess"] < 1 - 1e-4).all() == (update > 0)
        largest = float(into.abs().max())
        assert largest > 1e-2
        for name, mine in named(into, 0).items():
            error = float((mine - gradients[name]).abs().max())
            assert error <= TOLERANCE[dtype] * max(largest, 1), f"update {update}, {name}: {error:.1e} of {largest:.1e}"
        adam(state, into, torch.tensor([rate], dtype=dtype), torch.ones(1, dtype=torch.bool))
        state.update += 1
    if dtype == torch.float64:
        trained = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])[None]
        torch.testing.assert_close(state.parameters, trained, rtol=0, atol=1e-8)


def test_the_answers_of_the_tasks_are_right():
    for name, problems in PROBLEMS.items():
        prompts, answers = problems.draw(200, torch.Generator().manual_seed(0))
        assert prompts.shape == (200, problems.prompt)
        assert answers.shape == (200, problems.response)
        assert (answers[:, -1] == END).all()
        assert (answers[:, :-1] != END).all()
        for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
            if name == "addition":
                first, second = 10 * prompt[0] + prompt[1], prompt[3]
                assert prompt[2::2] == [PLUS, EQUALS]
                assert 100 * answer[0] + 10 * answer[1] + answer[2] == first + second
            elif name == "reverse":
                assert answer[:-1] == prompt[:-1][::-1]
            else:
                assert answer[:-1] == [BACKWARD, *prompt[:-1][::-1]]
        if problems.habit is not None:
            habits = problems.habit(prompts)
            assert habits.shape == answers.shape
            # wrong from its first token on, even for a palindrome
            assert (habits[:, 0] == FORWARD).all()
            assert torch.equal(habits[:, 1:-1], prompts[:, :-1])


def test_the_share_of_right_answers_falls_geometrically_to_the_start():
    rare = PROBLEMS["rare"]
    shares = right_share(
        rare, torch.tensor([0.0, HABIT_GROWS / 2, HABIT_GROWS, 2.0 * HABIT_GROWS], dtype=torch.float64)
    )
    assert shares.tolist() == pytest.approx([0.5, math.sqrt(0.5 * rare.start), rare.start, rare.start])
