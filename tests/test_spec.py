"""One specification behind both losses: the same keywords, the same errors, and bitwise the same numbers."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo
from dgpo import objectives
from dgpo.aggregation import Fixed, SeqMeanTokenMean, SeqMeanTokenSumNorm, TokenMean
from dgpo.correction import Band, Given, Truncate
from dgpo.fused.operator import linear_loss_of
from dgpo.loss import loss_of
from dgpo.spec import LossSpec

TERMS = [field.name for field in dataclasses.fields(LossSpec)]


def problem() -> dict[str, Tensor]:
    """Hidden states of 4 responses of up to 6 tokens, with everything that a term of the loss reads."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(4, 6).abs()
    return {
        "hidden": normal(4, 6, 5).requires_grad_(),
        "lm_head": normal(11, 5).requires_grad_(),
        "token_ids": torch.randint(0, 11, (4, 6), generator=generator),
        "old_logprob": old,
        "advantage": normal(4),
        "mask": torch.arange(6) < torch.tensor([[6], [2], [5], [1]]),
        "rollout_logprob": old + 0.1 * normal(4, 6),
        "ref_logprob": old - 0.2 * normal(4, 6).abs(),
    }


def policy_arguments() -> dict[str, Tensor]:
    """The same for `policy_loss`, with log-probs and entropies in the place of hidden states."""
    given = problem()
    logp = torch.log_softmax(given.pop("hidden") @ given.pop("lm_head").T, -1).detach().requires_grad_()
    ids = given.pop("token_ids")
    return given | {
        "logprob": logp.detach().gather(-1, ids.unsqueeze(-1)).squeeze(-1).requires_grad_(),
        "entropy": -(logp.detach().exp() * logp.detach()).sum(-1).requires_grad_(),
    }


def test_both_losses_take_the_terms_of_the_specification_with_the_same_defaults() -> None:
    of = inspect.signature(LossSpec.of).parameters
    defaults = {field.name: field.default for field in dataclasses.fields(LossSpec)}
    assert set(of) == set(TERMS)
    for loss in (dgpo.policy_loss, dgpo.linear_policy_loss):
        found = inspect.signature(loss).parameters
        assert [found[name].default for name in ("objective", "aggregation")] == ["dgpo", "token-mean"]
        for name in TERMS[2:]:
            assert found[name].default == defaults[name], (loss.__name__, name)


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"objective": "dgpoo"}, ValueError, "unknown objective 'dgpoo', did you mean 'dgpo'"),
    ({"objective": None}, TypeError, "objective is None; expected a name or an instance of Objective"),
    ({"objective": objectives.DGPO}, TypeError, "objective is <class"),
    ({"aggregation": "mean"}, ValueError, "unknown aggregation 'mean'"),
    ({"aggregation": "seq-mean-token-sum-norm"}, ValueError, "aggregation 'seq-mean-token-sum-norm'"),
    ({"aggregation": None}, TypeError, "aggregation is None; expected a name or an instance of Aggregation"),
    ({"entropy_aggregation": "mean"}, ValueError, "unknown aggregation 'mean'"),
    ({"entropy_aggregation": 1}, TypeError, "entropy_aggregation is 1; expected a name, an instance of Aggregation or"),
    ({"correction": "trunkate"}, ValueError, "unknown correction 'trunkate', did you mean 'truncate'"),
    ({"correction": 2.0}, TypeError, "correction is 2.0; expected a name, an instance of Correction or None"),
    ({"kl": "k4"}, ValueError, "unknown kl 'k4'; known: k2, k3, k3_ratio, "),
    ({"kl": None}, ValueError, "unknown kl None"),
    ({"kl_coef": -1}, ValueError, "kl_coef = -1 is not allowed; expected a number in [0, inf)"),
    ({"kl_coef": True}, ValueError, "kl_coef = True is not allowed"),
    ({"entropy_coef": math.nan}, ValueError, "entropy_coef = nan is not allowed; expected a number in (-inf, inf)"),
    ({"entropy_coef": "0.1"}, ValueError, "entropy_coef = '0.1' is not allowed"),
]


@pytest.mark.parametrize(("change", "kind", "text"), ERRORS, ids=lambda value: str(value)[:40])
def test_a_bad_term_is_the_same_error_everywhere(change: dict[str, Any], kind: type[Exception], text: str) -> None:
    terms: dict[str, Any] = {"objective": "dgpo", "aggregation": "token-mean", "correction": None, "kl": "k3"}
    terms |= {"kl_coef": 0.0, "entropy_coef": 0.0, "entropy_aggregation": None}
    calls: list[Callable[[], object]] = [
        lambda: LossSpec.of(**terms | change),
        lambda: dgpo.policy_loss(**policy_arguments(), **change),  # type: ignore[arg-type]
        lambda: dgpo.linear_policy_loss(**problem(), **change),  # type: ignore[arg-type]
    ]
    errors = []
    for call in calls:
        with pytest.raises(kind) as error:
            call()
        errors.append(str(error.value))
    assert errors[0].startswith(text)
    assert len(set(errors)) == 1


def test_a_replaced_field_is_checked_again() -> None:
    spec = LossSpec(objective=objectives.DGPO(), aggregation=TokenMean())
    with pytest.raises(ValueError, match="kl_coef = -1 is not allowed"):
        dataclasses.replace(spec, kl_coef=-1)
    with pytest.raises(TypeError, match="objective is 'dgpo'; expected"):
        LossSpec(objective="dgpo", aggregation=TokenMean())  # type: ignore[arg-type]


SPECS: list[dict[str, Any]] = [
    {"objective": objectives.DGPO(n=2), "aggregation": TokenMean()},
    {"objective": objectives.make("gspo"), "aggregation": SeqMeanTokenMean(), "correction": Truncate(cap=1.1)},
    {"objective": objectives.make("bapo"), "aggregation": SeqMeanTokenSumNorm(length=9), "correction": Band()},
    {
        "objective": objectives.make("maspo"),
        "aggregation": SeqMeanTokenMean(),
        "correction": Given(values=torch.full((4, 1), 0.7)),
        "kl": "k3_sequence_ratio",
        "kl_coef": 0.2,
        "entropy_coef": -0.1,
        "entropy_aggregation": Fixed(values=torch.full((4, 6), 0.03)),
    },
]


@pytest.mark.parametrize("terms", SPECS, ids=["dgpo", "gspo", "bapo", "all terms"])
def test_a_specification_built_once_gives_bitwise_the_same_as_the_keywords(terms: dict[str, Any]) -> None:
    spec = LossSpec(**terms)
    given = policy_arguments()
    entropy, ref_logprob = given["entropy"], given["ref_logprob"]
    fields = {name: value for name, value in given.items() if name != "ref_logprob"}
    for _ in range(2):  # a specification keeps nothing of a call
        one = dgpo.policy_loss(**given, **terms)
        other = loss_of(spec, dgpo.TokenBatch(**fields), entropy=entropy, ref_logprob=ref_logprob)
        assert_equal(one, other, [given["logprob"], *([entropy] if spec.entropy_coef else [])])
        hidden = problem()
        one, other = dgpo.linear_policy_loss(**hidden, **terms), linear_loss_of(spec, **hidden)
        assert_equal(one, other, [hidden["hidden"], hidden["lm_head"]])


def assert_equal(one: dgpo.PolicyLoss, other: dgpo.PolicyLoss, leaves: list[Tensor]) -> None:
    assert torch.equal(one.value, other.value)
    assert torch.equal(one.weight, other.weight)
    assert one.statistics.keys() == other.statistics.keys()
    assert all(torch.equal(value, other.statistics[name]) for name, value in one.statistics.items())
    pairs = zip(*(torch.autograd.grad(loss.value, leaves) for loss in (one, other)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
