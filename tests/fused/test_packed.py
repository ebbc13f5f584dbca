"""Packed sequences: the same loss as padded ones, and errors that say what needs to know where they end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_problems import companions, gradients, make_problem

import dgpo
from dgpo.correction import Truncate
from dgpo.objectives import OBJECTIVES


def packed(problem: dict[str, Any], real: torch.Tensor) -> dict[str, Any]:
    """The tokens where `real`, one after the other; the mask may leave out more of them."""
    flat = {
        name: value[real]
        for name, value in problem.items()
        if isinstance(value, torch.Tensor) and value.shape[:2] == real.shape and name != "lm_head"
    }
    flat["hidden"] = flat["hidden"].detach().requires_grad_()
    ends = torch.cat([torch.zeros(1, dtype=torch.long), real.sum(-1).cumsum(0)])
    return problem | flat | {"cu_seqlens": ends.int()}


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_equals_padded(objective: str, backend: str) -> None:
    problem = make_problem()
    real = problem["mask"].clone()
    problem["mask"][0, 3] = False
    problem["token_ids"][0, 3] = -100
    extra = companions(problem)
    options: dict[str, Any] = {
        "objective": objective,
        "aggregation": "seq-mean-token-mean",
        "correction": Truncate(level="sequence"),
        "backend": backend,
        "kl_coef": 0.1,
        "chunk_tokens": 8,
    }
    expected, padded = gradients(problem | extra, **options)
    out, found = gradients(packed(problem | extra, real), **options)
    torch.testing.assert_close(out.value, expected.value)
    torch.testing.assert_close(found["lm_head"], padded["lm_head"])
    torch.testing.assert_close(found["hidden"], padded["hidden"][real])
    for name in ("logprob", "entropy", "weight", "computed"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name)[real], equal_nan=True)
    for name, value in expected.statistics.items():
        torch.testing.assert_close(out.statistics[name], value, msg=name)


def test_packed_without_offsets() -> None:
    problem = make_problem()
    real = problem["mask"]
    with_offsets = packed(problem, real)
    with_offsets["advantage"] = problem["advantage"].unsqueeze(1).expand_as(real)[real]
    without = {k: v for k, v in with_offsets.items() if k != "cu_seqlens"}
    expected, truth = gradients(with_offsets)
    out, found = gradients(without)
    torch.testing.assert_close(out.value, expected.value)
    torch.testing.assert_close(found["lm_head"], truth["lm_head"])
    assert out.logprob.shape == without["token_ids"].shape


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"objective": "gspo"}, "objective GSPO"),
        ({"aggregation": "seq-mean-token-mean"}, "aggregation SeqMeanTokenMean"),
        ({"entropy_aggregation": "seq-mean-token-mean"}, "entropy_aggregation SeqMeanTokenMean"),
        ({"kl_coef": 0.1, "kl": "k3_sequence_ratio"}, "kl = 'k3_sequence_ratio'"),
        ({"correction": Truncate(level="sequence")}, "correction Truncate"),
        ({"advantage": torch.ones(5)}, "an advantage of shape"),
    ],
)
def test_what_needs_sequences_is_named(options: dict[str, Any], culprit: str) -> None:
    problem = make_problem()
    flat = packed(problem, problem["mask"]) | {"cu_seqlens": None}
    flat["advantage"] = torch.ones(flat["token_ids"].shape)
    if "kl_coef" in options:
        flat["ref_logprob"] = torch.zeros(flat["token_ids"].shape)
    with pytest.raises(ValueError, match=rf"{culprit}.*pass cu_seqlens"):
        dgpo.linear_policy_loss(**(flat | options))


@pytest.mark.parametrize(
    ("offsets", "error"),
    [
        (torch.tensor([0, 3]), "from 0 to 3; expected offsets from 0 to N"),
        (torch.tensor([0, 9, 4, 20]), "decreases"),
        (torch.tensor([20]), "expected \\[B \\+ 1\\]"),
        (torch.tensor([0.0, 20.0]), "expected a tensor of integers"),
    ],
)
def test_offsets_that_do_not_fit(offsets: torch.Tensor, error: str) -> None:
    problem = make_problem()
    flat = packed(problem, torch.ones_like(problem["mask"]))
    with pytest.raises((ValueError, TypeError), match=error):
        dgpo.linear_policy_loss(**(flat | {"cu_seqlens": offsets}))


def test_offsets_are_for_packed_tokens() -> None:
    with pytest.raises(ValueError, match="packed token_ids"):
        dgpo.linear_policy_loss(**make_problem(), cu_seqlens=torch.tensor([0, 35]))
