"""Arguments that do not fit are named, with what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_problems import gradients, make_problem

import dgpo
from dgpo.fused.layout import Layout
from dgpo.fused.rows import Rows, spans_of_sequences, spans_of_tokens

F = torch.float64


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden": [1.0]}, "hidden is a list; expected a torch.Tensor"),
        ({"hidden": torch.zeros(5, dtype=F)}, r"hidden has shape \(5,\); expected \[B, T, H\]"),
        ({"hidden": torch.zeros(5, 7, 6)}, "hidden has dtype torch.float32 and lm_head torch.float64; expected one"),
        ({"lm_head": torch.zeros(37, 5, dtype=F)}, r"lm_head has shape \(37, 5\); expected \[V, H\].*H = 6"),
        ({"lm_head": torch.zeros(37, 6, dtype=torch.long)}, "lm_head has dtype torch.int64; expected a floating"),
        ({"bias": torch.zeros(36, dtype=F)}, r"bias has shape \(36,\); expected \[V\] = \[37\]"),
        ({"token_ids": torch.zeros(5, 6, dtype=torch.long)}, r"token_ids has shape \(5, 6\); expected \(5, 7\)"),
        ({"token_ids": torch.zeros(5, 7)}, "token_ids has dtype torch.float32; expected int64 or int32"),
        ({"token_ids": torch.full((5, 7), 37)}, r"token_ids\[0, 0\] = 37 at a valid position; expected 0 .. 36"),
        ({"old_logprob": torch.zeros(5, 6)}, r"old_logprob has shape \(5, 6\); expected \(5, 7\)"),
        ({"old_logprob": 0.5}, "old_logprob is a float; expected a torch.Tensor"),
        ({"advantage": torch.zeros(4)}, r"advantage has shape \(4,\); expected \[B\] = \[5\]"),
        ({"advantage": torch.zeros(4, 7)}, r"advantage has shape \(4, 7\).*or \[5\] \(one per response\)"),
        ({"mask": torch.ones(5, 6)}, r"mask has shape \(5, 6\); expected \(5, 7\)"),
        ({"mask": torch.full((5, 7), 2.0)}, "mask contains 2.0"),
        ({"rollout_logprob": torch.zeros(5)}, r"rollout_logprob has shape \(5,\)"),
        ({"objective": "dggo"}, "unknown objective 'dggo', did you mean 'dgpo'"),
        ({"objective": 3}, "objective is 3; expected a name or an instance of Objective"),
        ({"aggregation": "mean"}, "unknown aggregation 'mean'"),
        ({"correction": "cut"}, "unknown correction 'cut'"),
        ({"totals": 3}, "totals is 3; expected a StepTotals or None"),
        ({"temperature": 0.0}, "temperature = 0.0 is not allowed"),
        ({"softcap": -1.0}, "softcap = -1.0 is not allowed"),
        ({"kl_coef": 0.1}, "kl_coef != 0 needs ref_logprob"),
        ({"kl_coef": 0.1, "ref_logprob": torch.zeros(5, 7), "kl": "k1"}, "unknown kl 'k1'"),
        ({"correction": "truncate"}, "pass rollout_logprob"),
        ({"statistics": "all"}, "unknown statistics 'all'.*known: computed, full"),
        ({"backend": "chunk"}, "unknown backend 'chunk', did you mean 'chunked'"),
        ({"kept": -1}, "kept = -1 is not allowed; expected an int >= 0"),
        ({"chunk_tokens": 0}, "chunk_tokens = 0 is not allowed; expected an int >= 1"),
    ],
)
def test_errors(change: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        dgpo.linear_policy_loss(**(make_problem() | change))


def test_triton_on_float64_is_an_error() -> None:
    with pytest.raises(ValueError, match="backend 'triton' cannot run here.*'chunked' runs anywhere"):
        dgpo.linear_policy_loss(**make_problem(), backend="triton")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_and_masks_of_other_dtypes(dtype: torch.dtype) -> None:
    problem = make_problem()
    expected, truth = gradients(problem)
    other = problem | {"token_ids": problem["token_ids"].to(dtype), "mask": problem["mask"].float()}
    out, found = gradients(other)
    assert torch.equal(out.value, expected.value)
    assert torch.equal(found["lm_head"], truth["lm_head"])


def test_kept_is_the_number_of_computed_tokens() -> None:
    problem = make_problem()
    expected, truth = gradients(problem)
    kept = int(expected.computed.sum())
    out, found = gradients(problem, kept=kept, chunk_tokens=4)
    torch.testing.assert_close(out.value, expected.value)
    torch.testing.assert_close(found["hidden"], truth["hidden"])
    with pytest.raises(ValueError, match=f"kept = {kept - 1}; expected {kept} tokens, those that are computed"):
        gradients(problem, kept=kept - 1)


def test_spans_of_tokens_are_even() -> None:
    assert spans_of_tokens(0, 5) == []
    for count in (1, 4, 5, 6, 11, 100):
        spans = [span.rows for span in spans_of_tokens(count, 5)]
        sizes = [span.stop - span.start for span in spans]
        assert sum(sizes) == count
        assert max(sizes) <= 5
        assert max(sizes) - min(sizes) <= 1
        assert len(spans) == -(-count // 5)


def test_spans_of_sequences_end_with_a_response() -> None:
    computed = torch.arange(6) < torch.tensor([[3], [0], [2], [6], [1], [0]])
    spans = spans_of_sequences(computed, 6)
    assert spans is not None
    assert [(s.rows.start, s.rows.stop, s.responses) for s in spans] == [
        (0, 5, slice(0, 3)),
        (5, 11, slice(3, 4)),
        (11, 12, slice(4, 6)),
    ]
    assert spans_of_sequences(computed, 5) is None
    assert spans_of_sequences(torch.zeros(2, 3, dtype=torch.bool), 5) == []


def test_rows_keep_their_order() -> None:
    keep = torch.tensor([[True, False, True], [False, True, True]])
    layout = Layout.of(keep.shape, None, keep.device)
    for count in (None, 4):
        rows = Rows.of(keep, layout, count)
        assert rows.places.tolist() == [0, 2, 4, 5]
        assert len(rows) == 4
