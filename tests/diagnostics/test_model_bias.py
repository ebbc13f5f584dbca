"""`gradient_bias` on a small network, against gradients and bootstraps worked out in the test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from dgpo import StepTotals, objectives, policy_loss
from dgpo.diagnostics.model_bias import gradient_bias
from dgpo.objectives import DGPO, GRPO, IS, Objective


@dataclass(frozen=True)
class Problem:
    """A small network over contexts, responses of 4 tokens, 3 responses for each of 5 prompts."""

    model: nn.Module
    context: Tensor
    action: Tensor
    old_logprob: Tensor
    advantage: Tensor
    mask: Tensor
    groups: list[Tensor]

    def loss(self, objective: Objective, rows: Tensor | None) -> Tensor:
        rows = torch.arange(len(self.context)) if rows is None else rows
        logprob = self.model(self.context[rows]).log_softmax(-1).gather(-1, self.action[rows].unsqueeze(-1)).squeeze(-1)
        return policy_loss(
            logprob,
            self.old_logprob[rows],
            self.advantage[rows],
            self.mask[rows],
            objective,
            totals=StepTotals.of(self.mask),
        ).value


@pytest.fixture
def problem() -> Problem:
    P, G, T, D, V = 5, 3, 4, 6, 9
    model = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, V)).double()
    context, action = torch.randn(P * G, T, D).double(), torch.randint(V, (P * G, T))
    with torch.no_grad():
        logprob = model(context).log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    mask = torch.rand(P * G, T) < 0.8
    mask[:, 0] = True
    return Problem(
        model=model,
        context=context,
        action=action,
        old_logprob=logprob + 0.8 * torch.randn(P * G, T).double(),
        advantage=torch.randn(P * G).double(),
        mask=mask,
        groups=list(torch.arange(P * G).view(P, G)),
    )


def flat(problem: Problem, objective: Objective, rows: Tensor | None) -> Tensor:
    grads = torch.autograd.grad(problem.loss(objective, rows), list(problem.model.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("objective", [DGPO(), GRPO(), objectives.make("gspo")], ids=lambda o: type(o).__name__)
def test_gradient_bias_against_two_gradients(problem: Problem, objective: Objective) -> None:
    G, H = flat(problem, objective, None), flat(problem, IS(), None)
    for groups in (None, problem.groups):
        found = gradient_bias(problem.loss, problem.model.parameters(), groups, objective)
        assert found.cosine == pytest.approx((G @ H / (G.norm() * H.norm())).item())
        assert found.norm_ratio == pytest.approx((G.norm() / H.norm()).item())
        assert found.relative_bias == pytest.approx(((G - H).norm() / H.norm()).item())
        assert (found.spread is None) == (groups is None)
    assert all(p.grad is None for p in problem.model.parameters())


def test_spread_against_brute_force(problem: Problem) -> None:
    """The bootstrap written out: every resample adds up the gradients of its prompts."""
    g = torch.stack([flat(problem, DGPO(), rows) for rows in problem.groups])
    h = torch.stack([flat(problem, IS(), rows) for rows in problem.groups])
    P, scale = len(g), h.sum(0).square().sum()
    found = gradient_bias(problem.loss, problem.model.parameters(), problem.groups, "dgpo", resamples=300, seed=4)
    spread = found.spread
    assert spread is not None
    assert spread.prompts == P

    drawn = torch.randint(P, (300, P), generator=torch.Generator().manual_seed(4))
    G, H = g[drawn].sum(1), h[drawn].sum(1)
    limits = torch.tensor([0.025, 0.975], dtype=torch.float64)
    expected = {
        "cosine": torch.cosine_similarity(G, H),
        "norm_ratio": G.norm(dim=1) / H.norm(dim=1),
        "relative_bias": (G - H).norm(dim=1) / H.norm(dim=1),
    }
    for name, values in expected.items():
        assert getattr(spread, name) == pytest.approx(tuple(values.quantile(limits).tolist()))

    def variance(each: Tensor) -> float:
        """Of a sum over P independent prompts: P times the sample variance."""
        return (P * each.var(0, unbiased=True).sum() / scale).item()

    assert spread.variance == pytest.approx(variance(g))
    assert spread.reference_variance == pytest.approx(variance(h))
    gap = (g - h).sum(0).square().sum() / scale
    assert spread.bias_squared == pytest.approx(gap.item() - variance(g - h))
    assert spread.mse == pytest.approx(spread.bias_squared + spread.variance)


def test_the_variance_is_the_limit_of_the_bootstrap(problem: Problem) -> None:
    g = torch.stack([flat(problem, DGPO(), rows) for rows in problem.groups])
    scale = flat(problem, IS(), None).square().sum()
    found = gradient_bias(problem.loss, problem.model.parameters(), problem.groups, DGPO()).spread
    assert found is not None
    P = len(g)
    drawn = torch.randint(P, (20_000, P))
    resampled = g[drawn].sum(1)
    bootstrapped = (resampled - resampled.mean(0)).square().sum(1).mean() / scale
    assert found.variance == pytest.approx(P / (P - 1) * bootstrapped.item(), rel=0.03)


def test_bias_squared_is_unbiased() -> None:
    """Over many batches of independent prompts its mean is the squared difference of the expected gradients."""
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([0.3, -0.1], dtype=torch.float64)
    generator, P, found = torch.Generator().manual_seed(1), 6, []
    for _ in range(200):
        noise = torch.randn(2, P, 2, generator=generator, dtype=torch.float64)

        def loss(objective: Objective, rows: Tensor | None, noise: Tensor = noise) -> Tensor:
            assert rows is not None
            shift = truth if isinstance(objective, GRPO) else torch.zeros(2)
            each = 1 + noise[int(isinstance(objective, GRPO))] + shift
            return (each[rows].sum(0) * theta).sum()

        result = gradient_bias(loss, [theta], list(torch.arange(P).view(P, 1)), GRPO(), resamples=1).spread
        assert result is not None
        scale = (1 + noise[0]).sum(0).square().sum().item()
        found.append(result.bias_squared * scale)
    values = torch.tensor(found)
    expected = (P * truth).square().sum().item()
    assert values.mean().item() == pytest.approx(expected, abs=4 * values.std().item() / math.sqrt(200))


def test_on_policy_there_is_no_bias(problem: Problem) -> None:
    with torch.no_grad():
        every = problem.model(problem.context).log_softmax(-1)
        problem.old_logprob.copy_(every.gather(-1, problem.action.unsqueeze(-1)).squeeze(-1))
    found = gradient_bias(problem.loss, problem.model.parameters(), problem.groups, "dgpo")
    assert found.cosine == pytest.approx(1.0)
    assert found.norm_ratio == pytest.approx(1.0)
    assert found.relative_bias == pytest.approx(0.0, abs=1e-7)
    assert found.spread is not None
    assert found.spread.bias_squared == pytest.approx(0.0, abs=1e-12)
    assert found.spread.variance == pytest.approx(found.spread.reference_variance)


def test_the_same_seed_gives_the_same_intervals(problem: Problem) -> None:
    parameters = list(problem.model.parameters())
    first, second = (gradient_bias(problem.loss, parameters, problem.groups, "dgpo", seed=2) for _ in range(2))
    other = gradient_bias(problem.loss, parameters, problem.groups, "dgpo", seed=3)
    assert first == second
    assert other.spread != first.spread
    assert other.cosine == first.cosine


def test_a_part_of_the_parameters(problem: Problem) -> None:
    """One that the loss does not reach counts as a gradient of 0."""
    last, unused = list(problem.model.parameters())[-1], torch.zeros(3, requires_grad=True)
    found = gradient_bias(problem.loss, [last, unused], None, "dgpo")
    G, H = (torch.autograd.grad(problem.loss(o, None), last)[0] for o in (DGPO(), IS()))
    assert found.norm_ratio == pytest.approx((G.norm() / H.norm()).item())


def test_an_objective_without_gradient_has_cosine_0() -> None:
    """Every token beyond its boundary, where a hard clip drops it."""
    z = torch.zeros(2, 3, requires_grad=True)
    old = z.detach() + 3.0

    def loss(objective: Objective, rows: Tensor | None) -> Tensor:
        return policy_loss(z, old, torch.tensor([-1.0, -1.0]), torch.ones(2, 3, dtype=torch.bool), objective).value

    found = gradient_bias(loss, [z], None, "grpo")
    assert (found.cosine, found.norm_ratio, found.relative_bias) == (0.0, 0.0, 1.0)


def test_gradient_bias_says_what_is_wrong(problem: Problem) -> None:
    parameters = list(problem.model.parameters())
    rows = [torch.tensor([0, 1]), torch.tensor([1, 2])]
    with pytest.raises(ValueError, match="1 group; expected at least 2"):
        gradient_bias(problem.loss, parameters, rows[:1], "dgpo")
    with pytest.raises(ValueError, match="more than one group"):
        gradient_bias(problem.loss, parameters, rows, "dgpo")
    with pytest.raises(ValueError, match=r"groups\[1\] is"):
        gradient_bias(problem.loss, parameters, [rows[0], torch.tensor([], dtype=torch.long)], "dgpo")
    with pytest.raises(ValueError, match="parameters is empty"):
        gradient_bias(problem.loss, [], None, "dgpo")
    with pytest.raises(ValueError, match="resamples = 0"):
        gradient_bias(problem.loss, parameters, None, "dgpo", resamples=0)
    with pytest.raises(ValueError, match="unknown objective 'dgop', did you mean 'dgpo'"):
        gradient_bias(problem.loss, parameters, None, "dgop")
    with pytest.raises(ValueError, match=r"shape \[2\] with requires_grad = False"):
        gradient_bias(lambda objective, rows: torch.zeros(2), parameters, None, "dgpo")
    problem.advantage[3] = math.nan
    with pytest.raises(ValueError, match="a gradient is not finite"):
        gradient_bias(problem.loss, parameters, None, "dgpo")
    problem.advantage.zero_()
    with pytest.raises(ValueError, match="gradient is exactly 0"):
        gradient_bias(problem.loss, parameters, None, "dgpo")
