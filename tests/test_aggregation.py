"""Coefficients in closed form, and the property they exist for: splitting a step changes neither value nor gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from dgpo import aggregation, objectives, policy_loss
from dgpo.aggregation import AGGREGATIONS, Aggregation, SeqMeanTokenMean, SeqMeanTokenSumNorm, StepTotals, TokenMean
from dgpo.correction import Truncate

MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
EVERY_AGGREGATION = [TokenMean(), SeqMeanTokenMean(), SeqMeanTokenSumNorm(length=9)]
every_aggregation = pytest.mark.parametrize("how", EVERY_AGGREGATION, ids=list(AGGREGATIONS))
every_objective = pytest.mark.parametrize("name", objectives.OBJECTIVES)


def test_every_registered_aggregation_is_tested() -> None:
    assert [type(how) for how in EVERY_AGGREGATION] == list(AGGREGATIONS.values())


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (TokenMean(), [[1 / 8, 1 / 8, 0, 1 / 8], [1 / 8, 0, 0, 0], [0, 0, 0, 0]]),
        (SeqMeanTokenMean(), [[1 / 15, 1 / 15, 0, 1 / 15], [1 / 5, 0, 0, 0], [0, 0, 0, 0]]),
        (SeqMeanTokenSumNorm(length=10), [[1 / 50, 1 / 50, 0, 1 / 50], [1 / 50, 0, 0, 0], [0, 0, 0, 0]]),
    ],
    ids=list(AGGREGATIONS),
)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float totals", "tensor totals"])
def test_coefficients_in_closed_form(how: Aggregation, expected: list[list[float]], as_tensor: bool) -> None:
    """A mask of 4 tokens in 2 responses, of a step that holds 8 tokens in 5 responses."""
    totals = StepTotals(torch.tensor(8), torch.tensor(5)) if as_tensor else StepTotals(8, 5)
    for dtype in (torch.float32, torch.float64):
        c = how.coefficient(MASK, totals, dtype)
        assert c.dtype == dtype
        torch.testing.assert_close(c, torch.tensor(expected, dtype=dtype))


def test_totals_of_a_batch_count_valid_tokens_and_responses_that_have_some() -> None:
    totals = StepTotals.of(MASK)
    assert (int(totals.tokens), int(totals.sequences)) == (4, 2)


@every_aggregation
def test_coefficients_of_a_whole_step_are_weights_of_a_mean(how: Aggregation) -> None:
    c = how.coefficient(MASK, StepTotals.of(MASK), torch.float64)
    expected = {TokenMean: 1.0, SeqMeanTokenMean: 1.0, SeqMeanTokenSumNorm: 4 / 2 / 9}[type(how)]
    assert c.sum().item() == pytest.approx(expected, rel=1e-14)


@every_aggregation
def test_a_batch_without_a_valid_token_has_coefficients_of_zero(how: Aggregation) -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert how.coefficient(nothing, StepTotals.of(nothing)).tolist() == [[0.0] * 3] * 2


# --- one step, split every way ----------------------------------------------------------------------------------------

EXTRAS = {
    "policy": {},
    "policy + KL + entropy": {"kl_coef": 0.3, "entropy_coef": 0.2},
    "policy + ratio KL": {"kl_coef": 0.3, "kl": "k3_ratio"},
}
every_extra = pytest.mark.parametrize("extra", EXTRAS.values(), ids=list(EXTRAS))


def sum_of_parts(
    batch: Any, parts: Iterable[Any], totals: StepTotals | None, **settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ of the losses of the parts, and its gradient for logprob and entropy. A part picks its share of a tensor."""
    logprob, entropy = batch.logprob.clone().requires_grad_(), batch.entropy.clone().requires_grad_()
    value = torch.zeros((), dtype=logprob.dtype)
    for part in parts:
        value = (
            value
            + policy_loss(
                part(logprob),
                part(batch.old_logprob),
                part(batch.advantage),
                part(batch.mask),
                totals=totals,
                rollout_logprob=part(batch.rollout_logprob),
                correction=Truncate(),
                entropy=part(entropy),
                ref_logprob=part(batch.ref_logprob),
                **settings,
            ).value
        )
    unused = torch.zeros_like(entropy)
    by_logprob, by_entropy = torch.autograd.grad(value, (logprob, entropy), allow_unused=True)
    return value.detach(), by_logprob, unused if by_entropy is None else by_entropy


def rows(chosen: Any) -> Callable[[Tensor], Tensor]:
    return lambda values: values[chosen]


def padded(chosen: Any, right: int, below: int) -> Callable[[Tensor], Tensor]:
    """Rows with junk columns on their right and junk rows below, all masked."""

    def part(values: Tensor) -> Tensor:
        values = values[chosen]
        fill: Any = False if values.dtype == torch.bool else math.nan
        return pad(values, (0, below) if values.dim() == 1 else (0, right, 0, below), value=fill)

    return part


def contiguous_splits(B: int) -> list[list[slice]]:
    """All 2^(B-1) ways to cut B rows into micro-batches."""
    ways = []
    for cuts in itertools.product([False, True], repeat=B - 1):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), B]
        ways.append([slice(a, b) for a, b in itertools.pairwise(ends)])
    return ways


def assert_same(found: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> None:
    for ours, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@every_aggregation
@every_objective
@every_extra
def test_any_split_of_a_step_gives_its_value_and_gradient(
    name: str, how: Aggregation, extra: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    batch = make_batch(B=5, T=6)
    objective = objectives.make(name).calibrate(batch.tokens())
    totals = StepTotals.of(batch.mask)
    settings = {"objective": objective, "aggregation": how} | extra
    everything = slice(None)
    whole = sum_of_parts(batch, [rows(everything)], None, **settings)
    assert whole[1].abs().max() > 1e-4

    ways, orders = contiguous_splits(5), 4
    if name not in ("dgpo", "gspo"):  # one of either level meets all 16; the others the finest and an uneven one
        ways, orders = [ways[-1], ways[4]], 2
        assert [len(split) for split in ways] == [5, 2]
    for split in ways:
        assert_same(sum_of_parts(batch, [rows(part) for part in split], totals, **settings), whole)
    assert_same(sum_of_parts(batch, [padded(everything, 3, 2)], None, **settings), whole)
    uneven = [padded(slice(0, 2), 0, 1), padded(slice(2, 3), 5, 0), padded(slice(3, 5), 1, 4)]
    assert_same(sum_of_parts(batch, uneven, totals, **settings), whole)
    for seed in range(orders):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        sizes = [2, 1, 2] if seed % 2 else [1, 3, 1]
        assert_same(sum_of_parts(batch, [rows(part) for part in order.split(sizes)], totals, **settings), whole)


@every_aggregation
def test_contrast_the_mean_over_micro_batches_is_another_gradient(
    how: Aggregation, make_batch: Callable[..., Any]
) -> None:
    """What frameworks do that normalise per micro-batch: a token then counts by what it was batched with."""
    batch = make_batch(B=5, T=6)
    parts = [rows(slice(0, 2)), rows(slice(2, 5))]
    whole = sum_of_parts(batch, [rows(slice(None))], None, objective="dgpo", aggregation=how)
    naive = sum_of_parts(batch, parts, None, objective="dgpo", aggregation=how)
    difference = (naive[1] / 2 - whole[1]).abs().max()
    assert difference > 0.05 * whole[1].abs().max()


@every_aggregation
def test_averaged_gradients_need_totals_divided_by_the_world_size(
    how: Aggregation, make_batch: Callable[..., Any]
) -> None:
    """DDP and FSDP average over W ranks: with totals / W that average is the gradient of the step."""
    batch, W = make_batch(B=6, T=6), 3
    totals = StepTotals(int(batch.mask.sum()) / W, int(batch.mask.any(1).sum()) / W)
    ranks = [rows(slice(rank, None, W)) for rank in range(W)]
    whole = sum_of_parts(batch, [rows(slice(None))], None, objective="dgpo", aggregation=how)
    summed = sum_of_parts(batch, ranks, totals, objective="dgpo", aggregation=how)
    assert_same(tuple(value / W for value in summed), whole)


# --- making one -------------------------------------------------------------------------------------------------------


def test_make_builds_by_the_names_of_verl() -> None:
    assert aggregation.make("token-mean") == TokenMean()
    assert aggregation.make("seq-mean-token-mean") == SeqMeanTokenMean()
    assert aggregation.make("seq-mean-token-sum-norm", length=512) == SeqMeanTokenSumNorm(length=512)
    with pytest.raises(dataclasses.FrozenInstanceError):
        aggregation.make("seq-mean-token-sum-norm", length=512).length = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("token_mean", {}, "unknown aggregation 'token_mean', did you mean 'token-mean'?"),
        ("seq-mean-token-sum", {}, "unknown aggregation .* did you mean 'seq-mean-token-sum-norm'?"),
        ("token-mean", {"length": 5}, "aggregation 'token-mean' has no field 'length'; its fields: none"),
        ("seq-mean-token-sum-norm", {}, "aggregation 'seq-mean-token-sum-norm' needs 'length'"),
        ("seq-mean-token-sum-norm", {"lenght": 5}, "has no field 'lenght', did you mean 'length'?"),
    ],
)
def test_make_refuses_by_name(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        aggregation.make(name, **fields)


@pytest.mark.parametrize("length", [0, -5, math.nan, True, "512", None])
def test_an_impossible_length_is_refused(length: Any) -> None:
    with pytest.raises(ValueError, match="SeqMeanTokenSumNorm: length = .* is not allowed; expected a number in"):
        SeqMeanTokenSumNorm(length=length)


@pytest.mark.parametrize("value", [0, -1, math.nan])
@pytest.mark.parametrize("field", ["tokens", "sequences"])
def test_impossible_totals_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"StepTotals: {field} = {value!r} is not allowed; expected a number in"):
        StepTotals(**({"tokens": 1, "sequences": 1} | {field: value}))


def test_totals_of_more_than_one_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"StepTotals: tokens has shape \(2,\); expected a scalar"):
        StepTotals(tokens=torch.ones(2), sequences=1)


def test_fixed_coefficients_are_compared_by_identity() -> None:
    one, other = (aggregation.Fixed(values=torch.ones(2, 3)) for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2
    assert aggregation.make("token-mean") == aggregation.make("token-mean")
