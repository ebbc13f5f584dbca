"""The fused loss equals float64 autograd through all logits: for every objective, and for every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_problems import assert_same, companions, gradients, make_problem
from torch import Tensor

import dgpo
from dgpo import StepTotals
from dgpo.aggregation import Fixed
from dgpo.correction import Band, Correction, Given, Truncate
from dgpo.objectives import OBJECTIVES
from dgpo.tokens import TokenBatch


@pytest.mark.parametrize("chunk_tokens", [1, 4, 9, 1000])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective: str, chunk_tokens: int) -> None:
    """Chunks of one token (a response is longer), some, a number that does not divide N, and all of them."""
    problem = make_problem()
    out = assert_same(problem, objective=objective, chunk_tokens=chunk_tokens)
    assert out.value.isfinite()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_with_all_terms(objective: str) -> None:
    problem = make_problem(seed=3)
    out = assert_same(
        problem,
        **companions(problem),
        objective=objective,
        aggregation="seq-mean-token-mean",
        correction="truncate",
        kl_coef=0.2,
        entropy_coef=0.1,
        temperature=0.7,
        softcap=3.0,
    )
    assert torch.equal(out.computed, problem["mask"])


KEYS = ("rollout_logprob", "ref_logprob", "bias")
OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    *[((), {"aggregation": name}) for name in ("token-mean", "seq-mean-token-mean")],
    ((), {"aggregation": dgpo.aggregation.make("seq-mean-token-sum-norm", length=9)}),
    ((), {"totals": StepTotals(tokens=50.0, sequences=torch.tensor(3.0))}),
    ((), {"temperature": 0.6}),
    ((), {"temperature": 1.7, "softcap": 2.0}),
    ((), {"softcap": 2.0, "entropy_coef": 0.1}),
    (("bias",), {}),
    (("bias",), {"temperature": 2.0, "softcap": 4.0, "entropy_coef": -0.2}),
    ((), {"entropy_coef": 0.3}),
    ((), {"entropy_coef": 0.3, "aggregation": "seq-mean-token-mean", "entropy_aggregation": "token-mean"}),
    ((), {"entropy_coef": 0.3, "entropy_aggregation": Fixed(values=torch.linspace(0.0, 0.2, 35).view(5, 7))}),
    *[(("ref_logprob",), {"kl_coef": 0.3, "kl": kl}) for kl in ("k2", "k3", "k3_ratio", "k3_sequence_ratio")],
    (("ref_logprob",), {"kl_coef": 0.3, "entropy_coef": 0.1}),
    (("rollout_logprob",), {}),
    *[(("rollout_logprob",), {"correction": name}) for name in ("truncate", "band")],
    (("rollout_logprob",), {"correction": Truncate(level="sequence", cap=1.1)}),
    (("rollout_logprob",), {"correction": Band(level="sequence")}),
    ((), {"correction": Given(values=torch.linspace(0.1, 2.0, 5).unsqueeze(1))}),
    ((), {"objective": dgpo.objectives.make("dgpo", n=3.0)}),
    ((), {"statistics": "full"}),
]


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("option", range(len(OPTIONS)), ids=[str(i) for i in range(len(OPTIONS))])
def test_every_option(option: int, on_policy: bool) -> None:
    keys, options = OPTIONS[option]
    problem = make_problem(seed=option)
    if on_policy:
        problem["old_logprob"] = None
    extra = {k: v for k, v in companions(make_problem(seed=option)).items() if k in keys}
    assert_same(problem, **extra, **options)
    assert_same(problem, **extra, **options, chunk_tokens=100)


class Neighbour(Correction):
    """A correction from outside, of no declared level: ρ depends on another response."""

    def factor(self, tokens: TokenBatch) -> Tensor:
        assert tokens.rollout_logprob is not None
        return (tokens.old_logprob - tokens.rollout_logprob).roll(1, 0).clamp(-1, 1).exp()


@pytest.mark.parametrize("on_policy", [False, True])
def test_a_correction_of_unknown_reach_sees_the_whole_batch(on_policy: bool) -> None:
    problem = make_problem()
    extra = {"rollout_logprob": companions(problem)["rollout_logprob"]}
    if on_policy:
        problem["old_logprob"] = None
    assert_same(problem, **extra, correction=Neighbour())


def test_advantages_per_token_with_zeros_inside_a_response() -> None:
    problem = make_problem()
    generator = torch.Generator().manual_seed(0)
    problem["advantage"] = torch.randn(5, 7, generator=generator, dtype=torch.float64).relu()
    token = assert_same(problem)
    assert torch.equal(token.computed, problem["mask"] & (problem["advantage"] != 0))
    response = assert_same(problem, objective="gspo")
    positive = (problem["mask"] & (problem["advantage"] != 0)).any(-1, keepdim=True)
    assert torch.equal(response.computed, problem["mask"] & positive)


@pytest.mark.parametrize(("B", "T", "V"), [(1, 1, 1), (1, 1, 2), (2, 3, 1001), (7, 5, 64)])
@pytest.mark.parametrize("objective", ["dgpo", "gspo", "bapo"])
def test_shapes(objective: str, B: int, T: int, V: int) -> None:
    assert_same(make_problem(B, T, V=V), objective=objective, entropy_coef=0.1)


@pytest.mark.parametrize("objective", ["dgpo", "gspo", "bapo"])
@pytest.mark.parametrize("blank", ["mask", "advantage"])
def test_nothing_to_compute_is_a_loss_of_zero(objective: str, blank: str) -> None:
    problem = make_problem()
    problem[blank] = torch.zeros_like(problem[blank])
    out, found = gradients(problem, objective=objective)
    assert out.value == 0
    assert all(value.shape == problem[name].shape and (value == 0).all() for name, value in found.items())
    assert out.computed.any() == (objective == "bapo" and blank == "advantage")
    assert all(torch.isfinite(value) for value in out.statistics.values())


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_masked_rows_may_hold_anything(backend: str) -> None:
    problem = make_problem()
    _, clean = gradients(problem, backend=backend)
    masked = ~problem["mask"]
    dirty = dict(problem)
    with torch.no_grad():
        dirty["hidden"] = problem["hidden"].masked_fill(masked.unsqueeze(-1), torch.nan)
        dirty["old_logprob"] = problem["old_logprob"].masked_fill(masked, torch.inf)
    dirty["hidden"].requires_grad_()
    dirty["token_ids"] = problem["token_ids"].masked_fill(masked, 10**9)
    _, found = gradients(dirty, backend=backend)
    for name, value in clean.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits(size: float, dtype: torch.dtype) -> None:
    """One logit of ±1e4 beside ordinary ones: certain tokens, and tokens of probability exp(-1e4)."""
    problem = make_problem(dtype=dtype)
    bias = torch.zeros(37, dtype=dtype)
    bias[3] = size
    problem["token_ids"][0, 2] = 3
    options = {"bias": bias.requires_grad_(), "entropy_coef": 0.1}
    truth, expected = gradients(problem, backend="reference", **options)
    out, found = gradients(problem, backend="chunked", chunk_tokens=4, **options)
    torch.testing.assert_close(out.value, truth.value)
    torch.testing.assert_close(out.logprob, truth.logprob, equal_nan=True, rtol=1e-5, atol=1e-3 if size > 0 else 1e-5)
    for name, value in expected.items():
        assert found[name].isfinite().all()
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_vocabulary_padded_with_minus_infinity() -> None:
    problem = make_problem()
    ids = problem["token_ids"]
    problem["token_ids"] = torch.where(ids >= 0, ids % 30, ids)
    bias = torch.zeros(37, dtype=torch.float64)
    bias[30:] = -torch.inf
    out, found = gradients(problem, bias=bias, entropy_coef=0.2, chunk_tokens=4)
    truth, expected = gradients(
        problem | {"lm_head": problem["lm_head"].detach()[:30].requires_grad_()}, entropy_coef=0.2, backend="reference"
    )
    torch.testing.assert_close(out.value, truth.value)
    torch.testing.assert_close(found["hidden"], expected["hidden"])
    torch.testing.assert_close(found["lm_head"][:30], expected["lm_head"])
    assert (found["lm_head"][30:] == 0).all()


def test_a_certain_token_keeps_its_gradient_in_float32() -> None:
    """1 - p_y = 1e-6 of a target that float32 would round to within 6 %: from expm1 of the log-prob it is good."""
    hidden = torch.ones(1, 1, 1, requires_grad=True)
    lm_head = torch.tensor([[0.0], [-13.8]])
    arguments = (torch.zeros(1, 1, dtype=torch.long), None, torch.ones(1), torch.ones(1, 1, dtype=torch.bool))
    found = torch.autograd.grad(dgpo.linear_policy_loss(hidden, lm_head, *arguments).value, hidden)[0]
    exact = torch.autograd.grad(
        dgpo.linear_policy_loss(hidden.double(), lm_head.double(), *arguments, backend="reference").value, hidden
    )[0]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", ["is", "grpo", "gppo"])
def test_gradcheck(objective: str) -> None:
    """Numerical derivatives of the value: these objectives declare a potential, the ratios are off their kinks."""
    problem = make_problem(2, 3, 2, 5, spread=0.05)
    rest = {k: v for k, v in problem.items() if k not in ("hidden", "lm_head")}

    def value(hidden: Tensor, lm_head: Tensor, bias: Tensor) -> Tensor:
        return dgpo.linear_policy_loss(
            hidden, lm_head, **rest, bias=bias, objective=objective, entropy_coef=0.1, temperature=0.8, chunk_tokens=2
        ).value

    bias = torch.linspace(-0.1, 0.1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (problem["hidden"], problem["lm_head"], bias))


@pytest.mark.parametrize("objective", ["dgpo", "gspo", "bapo"])
def test_statistics_are_those_of_the_computed_tokens(objective: str) -> None:
    problem = make_problem()
    extra = {"rollout_logprob": companions(problem)["rollout_logprob"]}
    truth, _ = gradients(problem, objective=objective, backend="reference", **extra)
    full, _ = gradients(problem, objective=objective, statistics="full", chunk_tokens=4, **extra)
    assert torch.equal(full.computed, problem["mask"])
    assert list(full.statistics) == list(truth.statistics)
    for name, value in truth.statistics.items():
        torch.testing.assert_close(full.statistics[name], value, msg=name)

    some, _ = gradients(problem, objective=objective, chunk_tokens=4, **extra)
    left = problem | {"mask": some.computed}
    for name, value in gradients(left, objective=objective, backend="reference", **extra)[0].statistics.items():
        torch.testing.assert_close(some.statistics[name], value, msg=name)
    for name in (n for n in truth.statistics if n.startswith("mass/")):
        torch.testing.assert_close(some.statistics[name], truth.statistics[name], msg=name)


@pytest.mark.parametrize("objective", ["dgpo", "gspo"])
def test_dropping_tokens_changes_no_gradient(objective: str) -> None:
    problem = make_problem()
    some, found = gradients(problem, objective=objective, chunk_tokens=4)
    everything, expected = gradients(problem, objective=objective, chunk_tokens=4, statistics="full")
    zero = problem["advantage"].unsqueeze(1) == 0
    assert torch.equal(some.computed, problem["mask"] & ~zero)
    assert torch.equal(everything.computed, problem["mask"])
    torch.testing.assert_close(some.value, everything.value)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("objective", ["dgpo", "gspo"])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_micro_batches_add_up(objective: str, aggregation: str) -> None:
    problem = make_problem()
    totals = StepTotals.of(problem["mask"])
    options: dict[str, Any] = {"objective": objective, "aggregation": aggregation, "totals": totals, "chunk_tokens": 4}
    whole, expected = gradients(problem, **options)
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        per_response = ("hidden", "token_ids", "old_logprob", "advantage", "mask")
        part = problem | {k: problem[k][rows] for k in per_response}
        part["hidden"] = part["hidden"].detach().requires_grad_()
        parts.append(gradients(part, **options))
    torch.testing.assert_close(sum(out.value for out, _ in parts), whole.value)
    torch.testing.assert_close(sum(found["lm_head"] for _, found in parts), expected["lm_head"])
    torch.testing.assert_close(torch.cat([found["hidden"] for _, found in parts]), expected["hidden"])


@pytest.mark.parametrize("chunk_tokens", [1, 5, 9, 1000])
@pytest.mark.parametrize("per_token", [False, True])
def test_a_token_level_weight_that_reads_the_response(chunk_tokens: int, per_token: bool) -> None:
    """ASPO's quantile of the entropies is one of the response, whatever the chunks and the tokens that are dropped."""
    problem = make_problem(B=5, T=17, seed=4, spread=0.05)
    if per_token:
        advantage = problem["advantage"].unsqueeze(1).repeat(1, 17)
        problem["advantage"] = advantage.masked_fill(torch.arange(17) % 3 == 0, 0.0)
    objective = dgpo.objectives.make("aspo", entropy_quantile=0.5, eps_low=0.02, eps_high=0.02)
    out = assert_same(problem, objective=objective, chunk_tokens=chunk_tokens)
    assert out.weight.unique().numel() > 3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_reads_the_response_says_so(name: str) -> None:
    """A weight that claims to be of its token alone is the same for the tokens in any other arrangement."""
    variants = {"aspo": [{}, {"entropy_quantile": 0.5}]}
    for options in variants.get(name, [{}]):
        objective = dgpo.objectives.make(name, **options)
        if objective.reads & {"response", "batch"}:
            continue
        generator = torch.Generator().manual_seed(0)
        shape = (4, 9)
        old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
        new = (old + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(max=-1e-3)
        advantage = torch.randn(shape, generator=generator, dtype=torch.float64)
        entropy = torch.rand(shape, generator=generator, dtype=torch.float64)

        def weight(order: Tensor, rows: int, objective=objective, of=(new, old, advantage, entropy)) -> Tensor:  # type: ignore[no-untyped-def]
            new, old, advantage, entropy = (value.flatten()[order].view(rows, -1) for value in of)
            mask = torch.ones_like(new, dtype=torch.bool)
            found: Tensor = objective.weight(TokenBatch(new, old, advantage, mask, entropy=entropy))
            return found.flatten()

        order = torch.randperm(36, generator=generator)
        torch.testing.assert_close(weight(torch.arange(36), 4)[order], weight(order, 1), rtol=1e-12, atol=1e-12)


def test_float16_is_refused() -> None:
    problem = make_problem(dtype=torch.float16)
    with pytest.raises(ValueError, match="float16, in which gradients vanish"):
        dgpo.linear_policy_loss(**problem, backend="chunked")
    assert dgpo.linear_policy_loss(**problem, backend="reference").value.isfinite()


def test_a_16_bit_gradient_is_rounded_once() -> None:
    """A factor of 1/3 has 8 bits in bfloat16: the scale of the gradient would be wrong by 0.2 %."""
    problem = make_problem(B=8, T=32, H=32, V=501, dtype=torch.bfloat16)
    whole = dgpo.linear_policy_loss(**problem, backend="chunked")
    whole.value.backward(retain_graph=True)
    expected = problem["hidden"].grad.float() / 3
    problem["hidden"].grad = None
    (whole.value / 3).backward()
    got = problem["hidden"].grad.float()
    assert float((got * expected).sum() / (expected * expected).sum()) == pytest.approx(1.0, abs=2e-4)


def test_weights_that_are_gone_by_the_backward() -> None:
    """What gathers sharded weights for the forward lets go of them after it."""
    problem = make_problem()
    out = dgpo.linear_policy_loss(**problem, backend="chunked")
    expected = torch.autograd.grad(out.value, problem["hidden"], retain_graph=True)[0]
    problem["lm_head"].data = torch.empty(0, dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(out.value, problem["hidden"])[0], expected)


def test_float64_under_autocast_stays_float64() -> None:
    problem = make_problem()
    expected = dgpo.linear_policy_loss(**problem, backend="chunked").value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dgpo.linear_policy_loss(**problem, backend="chunked").value, expected)
