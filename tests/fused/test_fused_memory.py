"""No tensor of N x V, memory that does not grow with N, and no read of memory that was not written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_problems import companions, gradients, make_problem
from torch.utils._python_dispatch import TorchDispatchMode

import dgpo
from dgpo.fused.backends import CHUNK_BYTES, CHUNK_TOKENS, tokens_per_chunk


class Largest(TorchDispatchMode):
    """The most bytes of one tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


OPTIONS: list[dict[str, Any]] = [
    {},
    {"objective": "gspo"},
    {"objective": "bapo"},
    {"entropy_coef": 0.1, "softcap": 5.0, "temperature": 0.9},
    {"aggregation": "seq-mean-token-mean", "statistics": "full"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_largest_tensor_is_a_chunk(options: dict[str, Any], dtype: torch.dtype) -> None:
    """H = 4 and V = 1024: any [N, V] stands out against [N, H], [V, H] and a chunk of 8 tokens."""
    B, T, H, V, chunk = 16, 8, 4, 1024, 8
    sizes = {}
    for responses in (B, 4 * B):
        problem = make_problem(responses, T, H, V, dtype=dtype)
        with Largest() as seen:
            dgpo.linear_policy_loss(**problem, **options, chunk_tokens=chunk).value.backward()
        sizes[responses] = seen.largest
    # float32 scratch, or the float32 logits themselves; chunks are of nearly equal size, so one may be of 7 tokens
    for largest in sizes.values():
        assert (chunk - 1) * V * 4 <= largest <= chunk * V * 4
    assert sizes[B] <= B * T * V * dtype.itemsize / 8

    problem = make_problem(B, T, H, V, dtype=dtype)
    with Largest() as seen:
        dgpo.linear_policy_loss(**problem, **options, backend="reference").value.backward()
    assert seen.largest >= B * T * V * dtype.itemsize  # the counter sees what it should


class Buffers(TorchDispatchMode):
    """Counts the matrices of V columns that are allocated in the dtype of the products, apart from float32 scratch."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.count = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format:
            self.count += result.dtype == torch.bfloat16 and result.shape[1:] == (self.vocabulary,)
        return result


@pytest.mark.parametrize("chunk_tokens", [8, 9, 13])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_buffer_holds_the_logits_of_every_chunk(options: dict[str, Any], chunk_tokens: int) -> None:
    """The first chunk need not be the largest: a second buffer would be allocated while the first is in use."""
    problem = make_problem(dtype=torch.bfloat16)
    with Buffers(len(problem["lm_head"])) as seen:
        dgpo.linear_policy_loss(**problem, **options, chunk_tokens=chunk_tokens)
    # the chunks of a second sweep may be larger: the first buffer is freed before
    assert 1 <= seen.count <= (2 if options.get("objective") == "bapo" else 1)


@pytest.mark.parametrize("options", [*OPTIONS, {"kl_coef": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_is_read_before_it_is_written(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(dtype=dtype)
    extra = {k: v for k, v in companions(problem).items() if k != "ref_logprob" or "kl_coef" in options}
    expected, truth = gradients(problem, **extra, **options, chunk_tokens=8)

    poisoned = 0
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poison(*args: Any, original: Any = original, **kwargs: Any) -> torch.Tensor:
            nonlocal poisoned
            poisoned += 1
            values = original(*args, **kwargs)
            return values.fill_(torch.nan) if values.is_floating_point() else values

        monkeypatch.setattr(torch, name, poison)
    out, found = gradients(problem, **extra, **options, chunk_tokens=8)
    monkeypatch.undo()
    assert poisoned >= 5
    torch.testing.assert_close(out.value, expected.value, rtol=0, atol=0)
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_chunks_fit_the_budget() -> None:
    for vocabulary, dtype in ((32_768, torch.bfloat16), (151_936, torch.float32), (10**8, torch.float64)):
        lm_head = torch.empty(1, dtype=dtype).expand(vocabulary, 4)
        tokens = tokens_per_chunk(lm_head)
        assert 1 <= tokens <= CHUNK_TOKENS["cpu"]
        assert tokens * vocabulary * dtype.itemsize <= CHUNK_BYTES["cpu"] or tokens == 1
    assert CHUNK_BYTES["cuda"] // (4 * 151_936) >= 4096
