"""policy_loss: its value and gradient in plain arithmetic, its extra terms, its statistics, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo import PolicyLoss, StepTotals, TokenBatch, aggregation, check_loss, objectives, policy_loss
from dgpo.correction import Band, Truncate
from dgpo.objectives import DGPO, GRPO, MASPO, Objective, Penalty
from dgpo.regions import REGIONS

every_name = pytest.mark.parametrize("name", objectives.OBJECTIVES)
STATISTICS = {
    *(f"fraction/{region}" for region in REGIONS),
    *(f"mass/{region}" for region in REGIONS),
    "weight/mean",
    "weight/max",
    "weight/zero_fraction",
    "weight/ess",
    "kl/old",
    "advantage/zero_fraction",
}


def positional(batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch.logprob, batch.old_logprob, batch.advantage, batch.mask


def gradient_of(out: PolicyLoss, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.value, leaves, retain_graph=True)


# --- value and gradient -----------------------------------------------------------------------------------------------


def test_a_worked_example() -> None:
    """Two responses, one of them masked in part: every number by hand."""
    old = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.0, -9.0]], dtype=torch.float64)
    ratio = torch.tensor([[1.1, 1.5, 0.5], [0.5, 2.0, 7.0]], dtype=torch.float64)
    logprob = (old + ratio.log()).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    out = policy_loss(logprob, old, torch.tensor([2.0, -1.0]), mask, objective=DGPO(n=1, m=2))
    w = [[1.1, 1.2 * math.sqrt(1.5 / 1.2), 0.5], [0.5**2 / 0.8, 2.0, 0.0]]
    phi = [[1.1, 1.2 * (1 + 2 * (math.sqrt(1.5 / 1.2) - 1)), 0.5], [0.8 * (1 + ((0.5 / 0.8) ** 2 - 1) / 2), 2.0, 0.0]]
    (gradient,) = gradient_of(out, logprob)
    assert out.value.item() == pytest.approx(-(2 * sum(phi[0]) - sum(phi[1])) / 5, rel=1e-12)
    assert gradient[0].tolist() == pytest.approx([-2 * value / 5 for value in w[0]], rel=1e-12)
    assert gradient[1].tolist() == pytest.approx([value / 5 for value in w[1]], rel=1e-12)
    assert out.weight.flatten().tolist() == pytest.approx([*w[0], *w[1]], rel=1e-12)
    assert not out.weight.requires_grad


@every_name
def test_a_name_is_the_objective_with_its_defaults(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    by_name = policy_loss(*positional(batch), name, "seq-mean-token-mean")
    by_value = policy_loss(*positional(batch), objectives.make(name), aggregation.SeqMeanTokenMean())
    assert by_name.value == by_value.value
    torch.testing.assert_close(
        gradient_of(by_name, batch.logprob), gradient_of(by_value, batch.logprob), rtol=0, atol=0
    )


def test_defaults_are_dgpo_and_the_token_mean(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    expected = policy_loss(*positional(batch), objective=DGPO(), aggregation=aggregation.TokenMean())
    assert policy_loss(*positional(batch)).value == expected.value


@every_name
@pytest.mark.parametrize("how", ["token-mean", "seq-mean-token-mean"])
def test_on_policy_every_objective_is_the_plain_policy_gradient(
    name: str, how: str, make_batch: Callable[..., Any]
) -> None:
    """old_logprob = None: ratio 1, gradient -c·A, value -Σ c·A; the same as passing logprob itself."""
    batch = make_batch()
    batch.logprob.requires_grad_()
    out = policy_loss(batch.logprob, None, batch.advantage, batch.mask, name, how)
    explicit = policy_loss(batch.logprob, batch.logprob, batch.advantage, batch.mask, name, how)
    c = aggregation.make(how).coefficient(batch.mask, StepTotals.of(batch.mask), torch.float64)
    expected = -c * batch.advantage.unsqueeze(1)
    if objectives.make(name).properties().unit_on_policy:
        torch.testing.assert_close(gradient_of(out, batch.logprob)[0], expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(out.value, expected.sum(), rtol=1e-12, atol=1e-15)
    assert explicit.value == out.value
    torch.testing.assert_close(gradient_of(explicit, batch.logprob), gradient_of(out, batch.logprob), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precisions_agree_with_float64(dtype: torch.dtype, make_batch: Callable[..., Any]) -> None:
    batch = make_batch(dtype=dtype)
    batch.logprob.requires_grad_()
    out = policy_loss(*positional(batch))
    exact = policy_loss(*(values.double() if values.is_floating_point() else values for values in positional(batch)))
    assert (out.value.dtype, out.weight.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(out.value.double(), exact.value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.weight.double(), exact.weight, rtol=1e-5, atol=1e-7)
    (gradient,) = gradient_of(out, batch.logprob)
    assert gradient.dtype == dtype
    (exact_gradient,) = gradient_of(exact, batch.logprob)
    torch.testing.assert_close(gradient.double(), exact_gradient.double(), rtol=1e-2, atol=1e-6)


def test_totals_replace_those_of_the_batch(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    own = StepTotals.of(batch.mask)
    plain, doubled = (
        policy_loss(*positional(batch), totals=totals).value
        for totals in (None, StepTotals(tokens=2 * own.tokens, sequences=2 * own.sequences))
    )
    torch.testing.assert_close(doubled, plain / 2, rtol=1e-13, atol=0)
    tensor_totals = StepTotals(torch.tensor(float(own.tokens)), torch.tensor(float(own.sequences)))
    torch.testing.assert_close(policy_loss(*positional(batch), totals=tensor_totals).value, plain, rtol=1e-13, atol=0)


def test_an_objective_of_the_user_needs_no_registry(make_batch: Callable[..., Any]) -> None:
    """Calibrated exactly once, its weight detached although it is written without no_grad, its potential shown."""
    calls: list[str] = []

    @dataclass(frozen=True, kw_only=True)
    class Constant(Objective):
        level_of_weight: float = 0.5

        def calibrate(self, tokens: TokenBatch) -> Constant:
            calls.append("calibrate")
            return dataclasses.replace(self, level_of_weight=3.0)

        def weight(self, tokens: TokenBatch) -> Tensor:
            calls.append("weight")
            return self.level_of_weight * tokens.ratio / tokens.ratio

        def potential(self, tokens: TokenBatch) -> Tensor:
            return 7 + 0 * tokens.logprob

    batch = make_batch()
    batch.logprob.requires_grad_()
    out = policy_loss(*positional(batch), objective=Constant())
    c = aggregation.TokenMean().coefficient(batch.mask, StepTotals.of(batch.mask), torch.float64)
    scale = -c * batch.advantage.unsqueeze(1)
    torch.testing.assert_close(out.value, (7 * scale).sum(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient_of(out, batch.logprob)[0], 3 * scale, rtol=1e-12, atol=0)
    assert calls.count("calibrate") == 1
    assert not Constant().weight(batch.tokens()).requires_grad


# --- the KL term and the entropy bonus --------------------------------------------------------------------------------


def naive_kl(kl: str, logprob: Tensor, ref_logprob: Tensor, old_logprob: Tensor, mask: Tensor) -> Tensor:
    d = ref_logprob - logprob
    k3 = d.exp() - d - 1
    ratio = (logprob - old_logprob).exp()
    by_response = ratio.log().mul(mask).sum(-1, keepdim=True).div(mask.sum(-1, keepdim=True).clamp(min=1)).exp()
    return {"k2": d**2 / 2, "k3": k3, "k3_ratio": ratio * k3, "k3_sequence_ratio": by_response * k3}[kl]


@pytest.mark.parametrize("kl", ["k2", "k3", "k3_ratio", "k3_sequence_ratio"])
@pytest.mark.parametrize("how", ["token-mean", "seq-mean-token-mean"])
def test_kl_term(kl: str, how: str, make_batch: Callable[..., Any]) -> None:
    """kl_coef · Σ c·κ over all valid tokens, those with A = 0 included, without ρ."""
    batch = make_batch()
    batch.logprob.requires_grad_()
    settings = {"aggregation": how, "rollout_logprob": batch.rollout_logprob, "correction": Truncate(cap=1.1)}
    out = policy_loss(*positional(batch), ref_logprob=batch.ref_logprob, kl_coef=0.3, kl=kl, **settings)
    plain = policy_loss(*positional(batch), **settings)
    c = aggregation.make(how).coefficient(batch.mask, StepTotals.of(batch.mask), torch.float64)
    term = 0.3 * (c * naive_kl(kl, batch.logprob, batch.ref_logprob, batch.old_logprob, batch.mask)).sum()
    torch.testing.assert_close(out.value, plain.value + term, rtol=1e-11, atol=1e-13)
    expected = gradient_of(plain, batch.logprob)[0] + torch.autograd.grad(term, batch.logprob)[0]
    torch.testing.assert_close(gradient_of(out, batch.logprob)[0], expected, rtol=1e-10, atol=1e-13)
    assert out.statistics == plain.statistics


def test_ratio_kl_on_policy_differentiates_the_ratio(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    out = policy_loss(
        batch.logprob, None, torch.zeros(5), batch.mask, ref_logprob=batch.ref_logprob, kl_coef=1.0, kl="k3_ratio"
    )
    d = (batch.ref_logprob - batch.logprob).detach()
    expected = torch.where(batch.mask, (d.exp() - d - 1) + (1 - d.exp()), 0.0) / batch.mask.sum()
    torch.testing.assert_close(gradient_of(out, batch.logprob)[0], expected, rtol=1e-10, atol=1e-14)


def test_the_reference_is_not_differentiated(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    batch.ref_logprob.requires_grad_()
    out = policy_loss(*positional(batch), ref_logprob=batch.ref_logprob, kl_coef=0.5)
    found = torch.autograd.grad(out.value, (batch.logprob, batch.ref_logprob), allow_unused=True)
    assert found[0] is not None
    assert found[1] is None


@pytest.mark.parametrize("how", ["token-mean", "seq-mean-token-mean"])
def test_entropy_bonus(how: str, make_batch: Callable[..., Any]) -> None:
    """-entropy_coef · Σ c·H, through the logits, against the expression that everybody writes."""
    batch = make_batch()
    logits = torch.randn(5, 7, 11, dtype=torch.float64).requires_grad_()
    chosen = torch.randint(11, (5, 7, 1))

    def terms() -> tuple[Tensor, Tensor]:
        log_softmax = logits.log_softmax(-1)
        return log_softmax.gather(-1, chosen).squeeze(-1), -(log_softmax.exp() * log_softmax).sum(-1)

    logprob, entropy = terms()
    out = policy_loss(
        logprob, batch.old_logprob, batch.advantage, batch.mask, "dgpo", how, entropy=entropy, entropy_coef=0.07
    )
    found = gradient_of(out, logits)[0]
    logprob, entropy = terms()
    plain = policy_loss(logprob, batch.old_logprob, batch.advantage, batch.mask, "dgpo", how)
    c = aggregation.make(how).coefficient(batch.mask, StepTotals.of(batch.mask), torch.float64)
    naive = plain.value - 0.07 * (c * entropy).sum()
    torch.testing.assert_close(out.value, naive, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, torch.autograd.grad(naive, logits)[0], rtol=1e-11, atol=1e-14)


def test_the_entropy_bonus_may_have_coefficients_of_its_own(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    arguments = positional(batch)
    settings = {"aggregation": "seq-mean-token-mean", "entropy": batch.entropy, "entropy_coef": 0.07}
    plain = policy_loss(*arguments, aggregation="seq-mean-token-mean").value
    mean = torch.where(batch.mask, batch.entropy, 0.0).sum() / batch.mask.sum()
    found = policy_loss(*arguments, **settings, entropy_aggregation="token-mean").value
    torch.testing.assert_close(found, plain - 0.07 * mean, rtol=1e-12, atol=1e-14)
    some = torch.rand(batch.mask.shape, dtype=torch.float64)
    found = policy_loss(*arguments, **settings, entropy_aggregation=aggregation.Fixed(values=some)).value
    expected = plain - 0.07 * torch.where(batch.mask, some * batch.entropy, 0.0).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@every_name
def test_entropy_is_differentiated_by_the_bonus_only(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    batch.entropy.requires_grad_()
    leaves = (batch.logprob, batch.entropy)
    without = policy_loss(*positional(batch), name, entropy=batch.entropy)
    assert torch.autograd.grad(without.value, leaves, allow_unused=True)[1] is None
    out = policy_loss(*positional(batch), name, entropy=batch.entropy, entropy_coef=0.3)
    expected = -0.3 * batch.mask.double() / batch.mask.sum()
    torch.testing.assert_close(gradient_of(out, *leaves)[1], expected, rtol=1e-13, atol=0)


# --- statistics -------------------------------------------------------------------------------------------------------


def statistics_in_plain_python(batch: Any, weight: Tensor, eps_low: float, eps_high: float) -> dict[str, float]:
    count, fraction, mass = 0, dict.fromkeys(REGIONS, 0), dict.fromkeys(REGIONS, 0.0)
    weights: list[float] = []
    kl_old = kl_sampler = k1 = cut = idle = 0.0
    B, T = batch.mask.shape
    for i in range(B):
        for t in range(T):
            if not batch.mask[i, t]:
                continue
            count += 1
            advantage, w = batch.advantage[i].item(), weight[i, t].item()
            x = (batch.logprob[i, t] - batch.old_logprob[i, t]).item()
            r = math.exp(x)
            if r < 1 - eps_low and advantage != 0:
                region = "left" if advantage < 0 else "reverse_left"
            elif r > 1 + eps_high and advantage != 0:
                region = "right" if advantage > 0 else "reverse_right"
            else:
                region = "inside"
            fraction[region] += 1
            mass[region] += abs(advantage * w)
            weights.append(w)
            kl_old += r - x - 1
            d = (batch.old_logprob[i, t] - batch.rollout_logprob[i, t]).item()
            kl_sampler += math.exp(d) - d - 1
            k1 -= d
            cut += 1 - math.exp(d)
            idle += advantage == 0
    return {
        **{f"fraction/{region}": fraction[region] / count for region in REGIONS},
        **{f"mass/{region}": mass[region] / sum(mass.values()) for region in REGIONS},
        "weight/mean": sum(weights) / count,
        "weight/max": max(weights),
        "weight/zero_fraction": weights.count(0.0) / count,
        "weight/ess": sum(map(abs, weights)) ** 2 / (count * sum(w * w for w in weights)),
        "kl/old": kl_old / count,
        "kl/sampler": kl_sampler / count,
        "kl/sampler_k1": k1 / count,
        "sampler/cut_mass": cut / count,
        "advantage/zero_fraction": idle / count,
    }


def test_the_effective_sample_size_of_huge_weights_is_a_number() -> None:
    """Squares of float32 weights of 1e20 overflow, and inf/inf is no number; it is scale-free."""
    old = torch.tensor([[-25.0, -0.01, -1.0]])
    arguments = torch.tensor([[-0.01, -30.0, -1.0]]), old, torch.tensor([-1.0]), torch.ones(1, 3, dtype=torch.bool)
    out = policy_loss(*arguments, objective=objectives.make("drpo", delta=1e-20))
    assert out.weight.abs().max() > 1e20
    assert out.statistics["weight/ess"].item() == pytest.approx(1 / 3)  # one token holds everything


@pytest.mark.parametrize(
    ("objective", "eps"),
    [
        (DGPO(), (0.2, 0.2)),
        (DGPO(eps_low=0.1, eps_high=0.28), (0.1, 0.28)),
        (GRPO(eps_high=0.5), (0.2, 0.5)),
        (MASPO(), (0.0, 0.0)),
        (objectives.make("cispo_two_sided", eps_low=0.3), (0.3, 0.2)),
    ],
    ids=str,
)
def test_statistics_against_plain_python(
    objective: Objective, eps: tuple[float, float], make_batch: Callable[..., Any]
) -> None:
    batch = make_batch(B=8, T=9, seed=2)
    out = policy_loss(*positional(batch), objective=objective, rollout_logprob=batch.rollout_logprob)
    expected = statistics_in_plain_python(batch, out.weight, *eps)
    found = {name: value.item() for name, value in out.statistics.items()}
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert all(expected[f"fraction/{region}"] > 0 for region in REGIONS)  # the batch reaches every region
    assert sum(found[f"fraction/{region}"] for region in REGIONS) == pytest.approx(1)
    assert sum(found[f"mass/{region}"] for region in REGIONS) == pytest.approx(1)


def moved(log_ratio: Tensor, old: float = -1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of both signs of A in turn, by response."""
    x = log_ratio.double()
    advantage = torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0).double()
    return x + old, torch.full_like(x, old), advantage, torch.ones_like(x, dtype=torch.bool)


def test_a_sequence_level_clip_looks_at_the_sequence_ratio() -> None:
    """With s = 1 exactly nothing is clipped, however far the tokens have moved; they alone would be outside."""
    half = torch.arange(1, 9) / 16
    x = torch.stack([torch.cat([half, -half]), torch.cat([-half, half])])
    out = policy_loss(*moved(x), "gspo")
    assert out.weight.unique().tolist() == [1.0]
    assert out.statistics["fraction/inside"] == out.statistics["mass/inside"] == 1
    far = policy_loss(*moved(x + 0.01), "gspo")
    assert far.statistics["fraction/right"] == far.statistics["fraction/reverse_right"] == 0.5
    assert far.statistics["mass/reverse_right"] == 1


def test_the_bounds_of_an_adaptive_clip_are_those_of_the_batch() -> None:
    """Where w = r everywhere, everything is inside, although the ratios leave 0.8 to 1.2."""
    x = torch.linspace(math.log(0.62), math.log(1.18), 40).repeat(4, 1)
    logprob, old, advantage, mask = moved(x)
    given = policy_loss(logprob, old, advantage, mask, objectives.make("bapo", c_low=0.6, c_high=1.2))
    torch.testing.assert_close(given.weight, x.double().exp())
    assert given.statistics["fraction/inside"] == 1
    # P/N = 1 misses a target of 1.05, and c_low is raised to its limit
    calibrated = policy_loss(logprob, old, advantage, mask, objectives.make("bapo", target_ratio=1.05, c_high_max=1.2))
    left = (advantage.unsqueeze(1) < 0) & (x < math.log(0.9))
    assert calibrated.statistics["fraction/left"] == left.double().mean()
    assert torch.equal(calibrated.weight == 0, left)


def test_bounds_that_depend_on_the_probability_are_those_of_the_token() -> None:
    """DAC at q = 0.01: r up to 1/2 + 1/2 · sqrt(81) = 5 is kept, and what lies beyond is clipped."""
    x = torch.tensor([0.51, 1.3, 4.9, 5.1]).log().repeat(2, 1)
    out = policy_loss(*moved(x, math.log(0.01)), "dac")
    assert (out.weight > 0).tolist() == [[True, True, True, False], [True, True, True, True]]
    fractions = {region: out.statistics[f"fraction/{region}"].item() for region in REGIONS}
    assert fractions == {"inside": 0.75, "left": 0, "right": 0.125, "reverse_left": 0, "reverse_right": 0.125}


@every_name
def test_statistics_have_the_same_keys_for_every_objective(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    batch.logprob.requires_grad_()
    out = policy_loss(*positional(batch), name)
    assert set(out.statistics) == STATISTICS
    with_sampler = policy_loss(*positional(batch), name, rollout_logprob=batch.rollout_logprob)
    assert set(with_sampler.statistics) == STATISTICS | {"kl/sampler", "kl/sampler_k1", "sampler/cut_mass"}
    for value in out.statistics.values():
        assert (value.dim(), value.requires_grad) == (0, False)


def test_on_policy_statistics() -> None:
    logprob = -torch.rand(3, 4, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 0.0])
    out = policy_loss(logprob, None, advantage, torch.ones(3, 4, dtype=torch.bool))
    expected = dict.fromkeys(STATISTICS, 0.0) | {
        "fraction/inside": 1.0,
        "mass/inside": 1.0,
        "weight/mean": 1.0,
        "weight/max": 1.0,
        "weight/ess": 1.0,
        "advantage/zero_fraction": 1 / 3,
    }
    assert {name: value.item() for name, value in out.statistics.items()} == pytest.approx(expected, abs=1e-15)


@dataclass(frozen=True, kw_only=True)
class Everywhere(Objective):
    """The same weight for every token, masked ones included."""

    value: float

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.full_like(tokens.logprob, self.value)


@pytest.mark.parametrize(("value", "zero_fraction", "ess"), [(-2.0, 0.0, 1.0), (0.0, 1.0, 0.0), (3.0, 0.0, 1.0)])
def test_statistics_of_a_constant_weight_see_valid_tokens_only(
    value: float, zero_fraction: float, ess: float, make_batch: Callable[..., Any]
) -> None:
    """A weight may be negative: its largest value is not the 0 of the padding."""
    found = policy_loss(*positional(make_batch()), objective=Everywhere(value=value)).statistics
    assert found["weight/mean"].item() == pytest.approx(value, rel=1e-14)
    assert found["weight/max"].item() == value
    assert found["weight/zero_fraction"].item() == zero_fraction
    assert found["weight/ess"].item() == pytest.approx(ess, rel=1e-14)


@every_name
def test_a_nan_at_a_valid_position_is_not_hidden(name: str, make_batch: Callable[..., Any]) -> None:
    """Finding it is `check`'s work, but no statistic may pretend that all is well."""
    for wrong in (math.nan, -math.inf):
        batch = make_batch()
        batch.logprob[0, 0] = wrong
        out = policy_loss(*positional(batch), name)
        assert not out.value.isfinite()
        assert not out.statistics["kl/old"].isfinite()
    broken = policy_loss(*positional(make_batch()), objective=Everywhere(value=math.nan)).statistics
    assert all(broken[key].isnan() for key in ("weight/mean", "weight/max", "weight/ess"))


# --- batches with nothing in them -------------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("how", aggregation.AGGREGATIONS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 3)], ids=str)
def test_a_batch_without_a_valid_token_is_zero(name: str, how: str, shape: tuple[int, int]) -> None:
    logprob = torch.full(shape, math.nan, requires_grad=True)
    entropy = torch.full(shape, math.nan, requires_grad=True)
    junk, nothing = torch.full(shape, -math.inf), torch.zeros(shape, dtype=torch.bool)
    summed = aggregation.make(how, **({"length": 4} if how == "seq-mean-token-sum-norm" else {}))
    out = policy_loss(
        logprob,
        junk,
        torch.ones(shape[0]),
        nothing,
        name,
        summed,
        rollout_logprob=junk,
        correction=Band(),
        entropy=entropy,
        ref_logprob=junk,
        kl_coef=0.1,
        entropy_coef=0.1,
    )
    assert out.value.item() == 0
    for gradient in gradient_of(out, logprob, entropy):
        assert gradient.tolist() == torch.zeros(shape).tolist()
    assert {value.item() for value in out.statistics.values()} == {0.0}


# --- the exact policy gradient of a policy that can be enumerated -----------------------------------------------------

V = 6


def enumerated(logits: Tensor, old_logits: Tensor | None, advantage: Tensor, objective: Objective | str) -> Tensor:
    """E over actions of π_old of the loss of one token, with every action a batch of its own."""
    logprob = logits.log_softmax(0).unsqueeze(1)
    old = None if old_logits is None else old_logits.log_softmax(0).unsqueeze(1)
    sampled = (logits if old_logits is None else old_logits).detach().softmax(0)
    mask = torch.ones(1, 1, dtype=torch.bool)
    losses = [
        policy_loss(
            logprob[a : a + 1], None if old is None else old[a : a + 1], advantage[a : a + 1], mask, objective=objective
        ).value
        for a in range(V)
    ]
    return (sampled * torch.stack(losses)).sum()


def exact_gradient(logits: Tensor, advantage: Tensor) -> Tensor:
    """∇ E_π[A] for the logits."""
    return torch.autograd.grad((logits.softmax(0) * advantage).sum(), logits)[0]


@pytest.mark.parametrize("seed", range(5))
def test_without_clipping_the_expected_gradient_is_the_exact_policy_gradient(seed: int) -> None:
    """Off-policy, for the objective whose weight is the importance ratio: descent on the loss is ascent on E_π[A]."""
    generator = torch.Generator().manual_seed(seed)
    logits, old_logits, advantage = 2 * torch.randn(3, V, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    expected_loss = enumerated(logits, old_logits, advantage, DGPO(n=0, m=math.inf))
    (found,) = torch.autograd.grad(expected_loss, logits)
    torch.testing.assert_close(found, -exact_gradient(logits, advantage), rtol=1e-10, atol=1e-10)
    value = -(logits.softmax(0) * advantage).sum()
    torch.testing.assert_close(expected_loss, value, rtol=1e-10, atol=1e-10)


@every_name
def test_on_policy_the_expected_gradient_is_the_exact_policy_gradient(name: str) -> None:
    logits, advantage = torch.randn(2, V, dtype=torch.float64)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(enumerated(logits, None, advantage, name), logits)
    torch.testing.assert_close(found, -exact_gradient(logits, advantage), rtol=1e-10, atol=1e-10)


def test_off_policy_a_clipped_objective_is_biased() -> None:
    """The contrast: where the ratio leaves the clip range, what GRPO drops and DGPO decays is missing."""
    logits, old_logits, advantage = 2 * torch.randn(3, V, dtype=torch.float64)
    logits.requires_grad_()
    exact = -exact_gradient(logits, advantage)
    for objective in ("grpo", "dgpo"):
        (found,) = torch.autograd.grad(enumerated(logits, old_logits, advantage, objective), logits)
        assert (found - exact).abs().max() > 1e-2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(5, 6)}, r"mask has shape \(5, 6\); expected \(5, 7\), the shape of logprob"),
        ({"advantage": torch.ones(4)}, r"advantage has shape \(4,\); expected \[B\] = \[5\]"),
        ({"old_logprob": torch.ones(7, 5)}, r"old_logprob has shape \(7, 5\); expected \(5, 7\)"),
        ({"objective": "dgpoo"}, r"unknown objective 'dgpoo', did you mean 'dgpo'\?; known: aspo"),
        ({"objective": "ppo3000"}, "unknown objective 'ppo3000'"),
        ({"aggregation": "token-maen"}, r"unknown aggregation 'token-maen', did you mean 'token-mean'\?"),
        ({"aggregation": "seq-mean-token-sum-norm"}, "aggregation 'seq-mean-token-sum-norm' needs 'length'"),
        (
            {"kl_coef": 0.1, "kl": "k33"},
            r"unknown kl 'k33', did you mean 'k3'\?; known: k2, k3, k3_ratio, k3_sequence_ratio",
        ),
        ({"kl_coef": 0.1, "kl": "k1"}, "unknown kl 'k1'"),
        ({"kl_coef": 0.1, "ref_logprob": None}, r"kl_coef != 0 needs ref_logprob \[B, T\], got None"),
        ({"kl_coef": 0.1, "ref_logprob": torch.ones(5)}, r"ref_logprob has shape \(5,\); expected \(5, 7\)"),
        ({"entropy_coef": 0.1, "entropy": None}, r"entropy_coef = 0\.1 needs entropy \[B, T\], got None"),
        ({"entropy": torch.ones(5)}, r"entropy has shape \(5,\); expected \(5, 7\)"),
        ({"correction": Truncate(), "rollout_logprob": None}, r"pass rollout_logprob \[B, T\], got None"),
        ({"rollout_logprob": torch.ones(5)}, r"rollout_logprob has shape \(5,\); expected \(5, 7\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    arguments = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)} | change
    with pytest.raises(ValueError, match=message):
        policy_loss(**arguments)


def test_what_is_not_a_tensor_is_refused(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match=r"logprob is a list; expected a torch\.Tensor"):
        policy_loss(batch.logprob.tolist(), batch.old_logprob, batch.advantage, batch.mask)
    with pytest.raises(TypeError, match=r"advantage is a list; expected a torch\.Tensor"):
        policy_loss(batch.logprob, batch.old_logprob, batch.advantage.tolist(), batch.mask)


def test_a_correction_may_be_a_name(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    rollout = batch.old_logprob - 0.3
    named = policy_loss(*positional(batch), correction="truncate", rollout_logprob=rollout)
    given = policy_loss(*positional(batch), correction=Truncate(), rollout_logprob=rollout)
    assert torch.equal(named.value, given.value)
    with pytest.raises(ValueError, match="unknown correction 'trunkate', did you mean 'truncate'"):
        policy_loss(*positional(batch), correction="trunkate", rollout_logprob=rollout)
    with pytest.raises(TypeError, match="totals is 20; expected a StepTotals or None"):
        policy_loss(*positional(batch), totals=20)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "said"), [("dapo", "preset 'dapo'"), ("DCPO", "'dac'"), ("geo_mean", "'gmpo'")])
def test_names_from_elsewhere_are_translated(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"unknown objective {word!r}: here it is .*{said}"):
        objectives.make(word)


# --- check_loss -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Broken(Objective):
    """w = 1, φ = 1, κ = κ' = 1, and `value` in place of one of them where r > 1."""

    part: str = ""
    value: float = math.nan

    def _one(self, part: str, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.log_ratio > 0, self.value if part == self.part else 1.0, 1.0).to(tokens.dtype)

    def weight(self, tokens: TokenBatch) -> Tensor:
        return self._one("weight", tokens)

    def potential(self, tokens: TokenBatch) -> Tensor:
        return self._one("potential", tokens)

    penalises = True

    def penalty(self, tokens: TokenBatch) -> Penalty:
        return Penalty(self._one("penalty", tokens), self._one("slope", tokens))


def checked_loss(objective: Objective, **change: Any) -> tuple[PolicyLoss, TokenBatch]:
    logprob = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, 0.0]])
    old = torch.tensor([[-1.0, -2.0, -1.0], [-2.0, -1.0, -7.0]])
    given = {"advantage": torch.tensor([0.5, -0.25]), "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), **change}
    arguments = {"logprob": logprob, "old_logprob": old, **given}
    return policy_loss(**arguments, objective=objective, entropy=logprob.abs()), TokenBatch(**arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("part", ["weight", "potential", "penalty", "slope"])
def test_a_value_that_is_not_finite_is_blamed_on_the_method_that_returned_it(part: str, value: float) -> None:
    objective = Broken(part=part, value=value)
    loss, tokens = checked_loss(objective)
    with pytest.raises(ValueError) as error:
        check_loss(loss, tokens, objective)
    name = "penalty" if part == "slope" else part
    assert f"Broken.{name} returned {value} at A = 0.5, r = 1.649 (row 0, column 2; 2 of 5 valid" in str(error.value)


def test_with_an_advantage_of_zero_too_and_only_at_valid_tokens() -> None:
    objective = Broken(part="weight")
    loss, tokens = checked_loss(objective, advantage=torch.zeros(2))
    with pytest.raises(ValueError, match=r"Broken.weight returned nan at A = 0, r = 1.649"):
        check_loss(loss, tokens, objective)
    masked = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    check_loss(*checked_loss(objective, mask=masked), objective)
    check_loss(*checked_loss(DGPO()), DGPO())


def test_a_batch_that_is_not_finite_is_not_blamed_on_the_objective() -> None:
    loss, tokens = checked_loss(DGPO(), advantage=torch.tensor([math.inf, 1.0]))
    with pytest.raises(ValueError, match=r"advantage\[0, 0\] = inf at a valid position"):
        check_loss(loss, tokens, DGPO())
    finite = checked_loss(DGPO())[1]
    with pytest.raises(ValueError, match="the loss is -inf, although its batch and the values of DGPO are finite"):
        check_loss(loss, finite, DGPO())
