"""Expected policy gradients, without sampling: every response that a small policy can write, with its probability.

The policy is a table, one row of logits per prefix, so the gradient of a response is known in closed form. All draws of
a policy are computed at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo import StepTotals, policy_loss
from dgpo.aggregation import Aggregation
from dgpo.correction import Correction

EOS = 0


@dataclass(frozen=True, kw_only=True)
class Responses:
    """All R responses of up to T tokens: those that end in `EOS`, and those that are cut off.

    Attributes:
        tokens: [R, T]; `EOS` behind the end.
        mask: [R, T], True up to and including the end.
        state: [R, T], the row of the table that the token was drawn from.
        states: rows S of the table.
    """

    tokens: Tensor
    mask: Tensor
    state: Tensor
    states: int

    @classmethod
    def up_to(cls, length: int, vocabulary: int) -> Responses:
        """All of them, for T = `length` and V = `vocabulary`."""
        rows: dict[tuple[int, ...], int] = {}
        for size in range(length):
            for prefix in itertools.product(range(1, vocabulary), repeat=size):
                rows[prefix] = len(rows)
        found = list(_all(length, vocabulary))
        padded = [(*y, *[EOS] * (length - len(y))) for y in found]
        return cls(
            tokens=torch.tensor(padded),
            mask=torch.arange(length) < torch.tensor([[len(y)] for y in found]),
            state=torch.tensor([[rows[y[:t]] if t < len(y) else 0 for t in range(length)] for y in found]),
            states=len(rows),
        )

    @property
    def lengths(self) -> Tensor:
        """[R] tokens."""
        return self.mask.sum(-1)

    def of_tokens(self, table: Tensor) -> Tensor:
        """[D, R, T] entries of `table` [D, S, V] for the tokens; 0 behind the end."""
        return torch.where(self.mask, table[:, self.state, self.tokens], 0.0)


def _all(length: int, vocabulary: int) -> Iterator[tuple[int, ...]]:
    words = range(1, vocabulary)
    for size in range(length):
        yield from ((*prefix, EOS) for prefix in itertools.product(words, repeat=size))
    yield from itertools.product(words, repeat=length)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Of one response's gradient g under the sampler, for each of D draws.

    Attributes:
        mean: [D, S·V] E g, of the objective that is maximised.
        variance: [D] E |g - E g|².
        kl: [D] expected `kl/sampler` of a token, the k3 estimate.
        k1: [D] expected `kl/sampler_k1` of a token.
        cut: [D] expected `sampler/cut_mass` of a token.
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor
    k1: Tensor
    cut: Tensor


def true_gradient(responses: Responses, logits: Tensor, reward: Tensor) -> Tensor:
    """[D, S·V] gradient of Σ_y π(y) R(y), by differentiating that sum; `logits` [D, S, V], `reward` [D, R]."""
    logits = logits.detach().requires_grad_()
    probability = responses.of_tokens(logits.log_softmax(-1)).sum(-1).exp()
    (gradient,) = torch.autograd.grad((probability * reward).sum(), logits)
    return gradient.flatten(1)


def expected_gradient(
    responses: Responses,
    logits: Tensor,
    log_mu: Tensor,
    reward: Tensor,
    *,
    correction: Correction | None,
    aggregation: Aggregation,
    scale: Tensor | None = None,
) -> Expectation:
    """Σ_y μ(y) g(y), with g(y) = -∇loss(y) from `policy_loss` on-policy (w = 1).

    Args:
        responses: what there is to sample.
        logits: [D, S, V] of the policy.
        log_mu: [D, S, V] log-probs of the sampler.
        reward: [D, R], taken as the advantage.
        correction: ρ.
        aggregation: c, of a step that holds this response alone (`StepTotals(tokens=1, sequences=1)`).
        scale: [D, R] factor on the loss of a response; 1 if None.
    """
    draws = len(logits)
    log_pi = logits.log_softmax(-1)
    logprob = responses.of_tokens(log_pi)
    sampler = responses.of_tokens(log_mu)
    mu = sampler.sum(-1).exp()
    # a response that is never sampled counts 0 times, whatever its factor would be
    sampler = torch.where(sampler.isfinite(), sampler, logprob)
    mask = responses.mask.repeat(draws, 1)
    leaf = logprob.flatten(0, 1).requires_grad_()
    out = policy_loss(
        leaf,
        None,
        reward.flatten(),
        mask,
        objective="is",
        aggregation=aggregation,
        totals=StepTotals(tokens=1.0, sequences=1.0),
        rollout_logprob=sampler.flatten(0, 1),
        correction=correction,
    )
    (of_logprob,) = torch.autograd.grad(-out.value, leaf)
    of_logprob = of_logprob.view_as(logprob)
    if scale is not None:
        of_logprob = of_logprob * scale.unsqueeze(-1)
    # d log π(a|s) / d logits[s] = onehot(a) - π(.|s), and a response meets a state once at most
    pi = log_pi.exp()
    squares = 1 - 2 * pi + pi.square().sum(-1, keepdim=True)
    size = (of_logprob.square() * responses.of_tokens(squares)).sum(-1)
    mass = mu.unsqueeze(-1) * of_logprob
    where = (responses.state * logits.shape[-1] + responses.tokens).flatten().expand(draws, -1)
    taken = torch.zeros(draws, responses.states * logits.shape[-1], dtype=logits.dtype)
    taken = taken.scatter_add(1, where, mass.flatten(1)).view_as(logits)
    mean = (taken - taken.sum(-1, keepdim=True) * pi).flatten(1)
    difference = torch.where(responses.mask, logprob.detach() - sampler, 0.0)

    def per_token(values: Tensor) -> Tensor:
        return (mu * values.sum(-1)).sum(-1) / (mu * responses.lengths).sum(-1)

    k1, cut = per_token(-difference), per_token(-difference.expm1())
    variance = (mu * size).sum(-1) - mean.square().sum(-1)
    return Expectation(mean=mean, variance=variance, kl=k1 - cut, k1=k1, cut=cut)
