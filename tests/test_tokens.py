"""TokenBatch: what is refused, masked and converted at the door; check(): which position is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo
from dgpo import MAX_LOG_RATIO, TokenBatch

MASK = torch.tensor([[True, True, False], [True, False, False]])


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "logprob": torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], dtype=dtype),
        "old_logprob": torch.tensor([[-1.5, -1.0, -3.0], [-4.0, -5.0, -6.0]], dtype=dtype),
        "advantage": torch.tensor([2.0, -1.0], dtype=dtype),
        "mask": MASK,
        "rollout_logprob": torch.full((2, 3), -1.25, dtype=dtype),
        "entropy": torch.full((2, 3), 0.5, dtype=dtype),
    }


def batch(**changes: Any) -> TokenBatch:
    given = arguments() | changes
    positional = [given.pop(name) for name in ("logprob", "old_logprob", "advantage", "mask")]
    return TokenBatch(*positional, **given)


def test_every_tensor_is_the_given_one_where_valid_and_zero_elsewhere() -> None:
    tokens = batch()
    assert tokens.logprob.tolist() == [[-1.0, -2.0, 0.0], [-4.0, 0.0, 0.0]]
    assert tokens.old_logprob.tolist() == [[-1.5, -1.0, 0.0], [-4.0, 0.0, 0.0]]
    assert tokens.advantage.tolist() == [[2.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]
    assert tokens.rollout_logprob is not None
    assert tokens.rollout_logprob.tolist() == [[-1.25, -1.25, 0.0], [-1.25, 0.0, 0.0]]
    assert tokens.entropy is not None
    assert tokens.entropy.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]]
    assert tokens.log_ratio.tolist() == [[0.5, -1.0, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(tokens.ratio, torch.tensor([[math.exp(0.5), math.exp(-1.0), 1.0], [1.0, 1.0, 1.0]]))


def test_optional_tensors_stay_absent() -> None:
    tokens = batch(rollout_logprob=None, entropy=None)
    assert (tokens.rollout_logprob, tokens.entropy) == (None, None)


@pytest.mark.parametrize(
    ("given_dtype", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_arithmetic_follows_logprob_and_never_falls_below_float32(
    given_dtype: torch.dtype, computed: torch.dtype
) -> None:
    tokens = batch(logprob=arguments(given_dtype)["logprob"], old_logprob=arguments(torch.float64)["old_logprob"])
    assert tokens.dtype == computed
    for values in (tokens.logprob, tokens.old_logprob, tokens.advantage, tokens.ratio, tokens.entropy):
        assert values is not None
        assert values.dtype == computed


def test_low_precision_is_converted_before_the_subtraction() -> None:
    logprob = torch.tensor([[-300.0]], dtype=torch.bfloat16)
    tokens = TokenBatch(logprob, torch.tensor([[-300.5]]), torch.tensor([1.0]), torch.ones(1, 1, dtype=torch.bool))
    assert tokens.log_ratio.item() == 0.5


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf], ids=str)
def test_junk_at_masked_positions_reaches_neither_values_nor_gradient(junk: float) -> None:
    given = {
        name: torch.where(MASK, values, junk)
        for name, values in arguments().items()
        if name not in ("mask", "advantage")
    }
    given["advantage"] = torch.where(MASK, torch.tensor([[2.0], [-1.0]]), junk)
    given["logprob"].requires_grad_()
    tokens = batch(**given)
    for name in ("logprob", "old_logprob", "advantage", "rollout_logprob", "entropy"):
        torch.testing.assert_close(getattr(tokens, name), getattr(batch(), name), rtol=0, atol=0)
    dgpo.check(tokens)
    (gradient,) = torch.autograd.grad(tokens.ratio.sum(), given["logprob"])
    torch.testing.assert_close(gradient, torch.where(MASK, batch().ratio, 0.0))


def test_only_logprob_carries_a_gradient() -> None:
    given = arguments()
    for name, values in given.items():
        if name != "mask":
            values.requires_grad_()
    tokens = batch(**given)
    carriers = {
        name
        for name in ("logprob", "old_logprob", "advantage", "rollout_logprob", "entropy")
        if getattr(tokens, name).requires_grad
    }
    assert carriers == {"logprob"}


def test_without_old_logprob_every_ratio_is_one() -> None:
    given = arguments()
    given["logprob"].requires_grad_()
    tokens = batch(logprob=given["logprob"], old_logprob=None)
    assert tokens.ratio.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert not tokens.old_logprob.requires_grad
    (gradient,) = torch.autograd.grad(tokens.ratio.sum(), given["logprob"])
    assert gradient.tolist() == MASK.float().tolist()


def test_the_log_ratio_is_clamped_on_both_sides() -> None:
    x = torch.tensor([[-300.0, -20.5, -19.5, 19.5, 20.5, 300.0]], dtype=torch.float64)
    tokens = TokenBatch(x, torch.zeros_like(x), torch.tensor([1.0]), torch.ones_like(x, dtype=torch.bool))
    assert MAX_LOG_RATIO == 20.0
    assert tokens.log_ratio.tolist() == [[-20.0, -20.0, -19.5, 19.5, 20.0, 20.0]]
    assert tokens.ratio.tolist()[0] == pytest.approx([math.exp(v) for v in (-20, -20, -19.5, 19.5, 20, 20)], rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8], ids=str)
def test_the_mask_may_be_bool_or_zero_and_one(dtype: torch.dtype) -> None:
    tokens = batch(mask=MASK.to(dtype))
    assert tokens.mask.dtype == torch.bool
    assert tokens.mask.tolist() == MASK.tolist()
    assert tokens.logprob.tolist() == batch().logprob.tolist()


def test_an_advantage_per_token_is_taken_as_it_is() -> None:
    advantage = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, 6.0]])
    assert batch(advantage=advantage).advantage.tolist() == [[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_square_batch_reads_a_vector_as_one_advantage_per_response() -> None:
    square = torch.zeros(2, 2)
    tokens = TokenBatch(square, square, torch.tensor([1.0, 2.0]), torch.ones(2, 2, dtype=torch.bool))
    assert tokens.advantage.tolist() == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logprob": [[-1.0]]}, TypeError, "logprob is a list; expected a torch.Tensor"),
        ({"old_logprob": 0.5}, TypeError, "old_logprob is a float; expected a torch.Tensor"),
        ({"advantage": 1.0}, TypeError, "advantage is a float; expected a torch.Tensor"),
        ({"mask": None}, TypeError, "mask is a NoneType; expected a torch.Tensor"),
        ({"logprob": torch.zeros(3)}, ValueError, r"logprob has shape \(3,\); expected \[B, T\]"),
        ({"logprob": torch.zeros(2, 3, 4)}, ValueError, r"logprob has shape \(2, 3, 4\); expected \[B, T\]"),
        ({"logprob": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logprob has dtype torch.int64"),
        ({"old_logprob": torch.zeros(2, 4)}, ValueError, r"old_logprob has shape \(2, 4\); expected \(2, 3\)"),
        ({"rollout_logprob": torch.zeros(2, 1)}, ValueError, r"rollout_logprob has shape \(2, 1\); expected \(2, 3\)"),
        ({"entropy": torch.zeros(2)}, ValueError, r"entropy has shape \(2,\); expected \(2, 3\)"),
        ({"advantage": torch.zeros(3)}, ValueError, r"advantage has shape \(3,\); expected \[B\] = \[2\]"),
        ({"advantage": torch.zeros(2, 1)}, ValueError, r"advantage has shape \(2, 1\); .* \[B, T\] = \[2, 3\]"),
        ({"advantage": torch.tensor(1.0)}, ValueError, r"advantage has shape \(\); expected \[B\] = \[2\]"),
        ({"mask": torch.ones(3, 2)}, ValueError, r"mask has shape \(3, 2\); expected \(2, 3\)"),
        ({"mask": torch.full((2, 3), 0.5)}, ValueError, "mask contains 0.5; expected bool, or only 0 and 1"),
        ({"mask": torch.full((2, 3), 2)}, ValueError, "mask contains 2; expected bool, or only 0 and 1"),
        ({"mask": torch.full((2, 3), math.nan)}, ValueError, "mask contains nan; expected bool, or only 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        batch(**change)


# --- check ------------------------------------------------------------------------------------------------------------


def with_value(name: str, position: tuple[int, int], value: float) -> dict[str, Tensor]:
    values = arguments()[name].clone()
    if values.dim() == 1:
        values = values.unsqueeze(1).repeat(1, 3)
    values[position] = value
    return {name: values}


@pytest.mark.parametrize("name", ["logprob", "old_logprob", "advantage", "rollout_logprob", "entropy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_check_names_the_tensor_the_position_and_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError) as error:
        dgpo.check(batch(**with_value(name, (1, 0), value)))
    text = str(error.value)
    assert text.startswith(f"{name}[1, 0] = {value} at a valid position (row 1, column 0); 1 of 3 valid tokens")


def test_check_names_the_first_position_and_counts_the_others() -> None:
    values = arguments()["old_logprob"]
    values[0, 1], values[1, 0] = math.inf, math.nan
    with pytest.raises(ValueError, match=r"old_logprob\[0, 1\] = inf .*; 2 of 3 valid tokens are not finite"):
        dgpo.check(batch(old_logprob=values))


@pytest.mark.parametrize("name", ["logprob", "old_logprob", "advantage", "rollout_logprob", "entropy"])
def test_check_passes_finite_batches_and_ignores_masked_positions(name: str) -> None:
    dgpo.check(batch())
    dgpo.check(batch(rollout_logprob=None, entropy=None))
    dgpo.check(batch(**with_value(name, (0, 2), math.nan)))
    with pytest.raises(ValueError, match=rf"{name}\[0, 0\] = nan"):
        dgpo.check(batch(**with_value(name, (0, 0), math.nan)))
