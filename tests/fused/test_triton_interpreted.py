"""The Triton kernels in numpy, against float64 autograd. `test_triton.py` runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.7")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_triton.py, in a process with TRITON_INTERPRET=1", allow_module_level=True)

import dgpo
from dgpo.fused.backends import TritonMiddle
from dgpo.fused.head import Head
from dgpo.fused.middle import TorchMiddle
from dgpo.fused.triton import gradient_, stats, unavailable

VOCABULARIES = [1, 7, 1000, 4097]
PRECISION = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 2**-7}
"""Relative error of one gradient entry; half precision: a unit in the last place, which the interpreter cuts off."""


def truth(
    logits: Tensor,
    token_ids: Tensor,
    g: Tensor,
    h: Tensor | None,
    temperature: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprob, entropy, lse and d(Σ g·logprob + h·entropy)/d logits, by autograd in float64."""
    x = logits.double().requires_grad_()
    z = x if bias is None else x + bias.double()
    z = scale * z
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    entropy = -torch.where(p == 0, 0.0, p * log_p.masked_fill(p == 0, 0.0)).sum(-1)
    logprob = log_p.gather(1, token_ids.long()[:, None])[:, 0]
    value = (g.double() * logprob).sum()
    if h is not None:
        value = value + (h.double() * entropy).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return logprob.detach(), entropy.detach(), z.logsumexp(-1).detach(), gradient


def check(
    logits: Tensor,
    token_ids: Tensor,
    g: Tensor,
    h: Tensor | None = None,
    tolerance: float = 4e-6,
    out: Tensor | None = None,
    **options: object,
) -> Tensor:
    """Both kernels against `truth`; the error of a gradient relative to the row's |g| + |h|, in its own precision."""
    want = truth(logits, token_ids, g, h, **options)
    head = Head(**options)
    got = stats(logits, token_ids, head)
    for name, ours, theirs in zip(("logprob", "entropy", "lse"), got, want, strict=False):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(
            ours.double(), theirs, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    before = logits.clone()
    assert gradient_(logits, token_ids, *got, g, h, out=out, head=head) is None
    ours = logits if out is None else out
    if out is not None and out.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr():
        assert torch.equal(logits, before)
    size = g.abs() + (0 if h is None else h.abs())
    precision = PRECISION[ours.dtype]
    allowed = precision * want[3].abs() + 4e-6 * size[:, None].double()
    assert not ours.isnan().any()
    excess = ((ours.double() - want[3]).abs() / allowed.clamp(min=1e-30)).max()
    assert excess <= 1, f"an error {excess:.1f} times of what is allowed"
    return ours


def batch(n: int, V: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(n, V, generator=random)).to(dtype)
    token_ids = torch.randint(V, (n,), generator=random)
    g, h = torch.randn(2, n, generator=random)
    return logits, token_ids, g, h


def test_a_cpu_will_do_here() -> None:
    assert unavailable(torch.device("cpu")) is None


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("dtype", list(PRECISION), ids=str)
@pytest.mark.parametrize("V", VOCABULARIES)
@pytest.mark.parametrize("n", [1, 5])
def test_against_float64(n: int, V: int, dtype: torch.dtype, with_entropy: bool) -> None:
    logits, token_ids, g, h = batch(n, V, dtype)
    check(logits, token_ids, g, h if with_entropy else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": 0.6}, {"softcap": 5.0}, {"bias": True}),
        {"temperature": 1.7, "softcap": 30.0, "bias": True, "scale": 0.3},
    ],
    ids=str,
)
def test_options(options: dict[str, object], dtype: torch.dtype) -> None:
    logits, token_ids, g, h = batch(3, 4097, dtype, seed=1)
    if "bias" in options:
        options = options | {"bias": torch.linspace(-2, 2, 4097, dtype=dtype)}
    check(logits.clone(), token_ids, g, h, **options)
    check(logits, token_ids.int(), g, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_huge_logits(temperature: float) -> None:
    """±1e4: one column takes all, ties share, and nothing overflows. lse itself has an ulp of 1e-3 or more here."""
    logits = torch.full((4, 9), -1e4)
    logits[0, 3] = 1e4
    logits[1, :] = 1e4
    logits[2, 0], logits[2, 8] = 1e4, 1e4 - 1
    logits[3] = torch.linspace(-1e4, 1e4, 9)
    token_ids = torch.tensor([3, 1, 8, 0])
    g, h = torch.tensor([1.0, -2.0, 0.5, 1.0]), torch.tensor([0.1, -0.1, 1.0, 1.0])
    want = truth(logits, token_ids, g, h, temperature)
    head = Head(temperature=temperature)
    got = stats(logits, token_ids, head)
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-6, atol=1e-5)
    gradient_(logits, token_ids, *got, g, h, head=head)
    torch.testing.assert_close(logits.double(), want[3], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.bfloat16).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forbidden_columns(dtype: torch.dtype, lowest: float, softcap: float | None) -> None:
    """-inf, or the lowest number of bfloat16, in most columns: p = 0 and gradient 0 there, no NaN."""
    logits, token_ids, g, h = batch(3, 5000, dtype, seed=2)
    token_ids[:] = torch.tensor([4321, 4322, 4999])
    logits[:, :4300] = lowest
    logits[0, 4322:] = lowest
    left = check(logits, token_ids, g, h, softcap=softcap)
    if softcap is None:
        assert (left[:, :4300] == 0).all()
    assert (left[1, 4300:] != 0).any()


def test_a_logit_near_the_largest_float() -> None:
    """It comes when its lane has summed up a vector already: 3e38 times that sum is inf."""
    logits = torch.zeros(1, 9000)
    logits[0, 5000] = 3e38
    logprob, entropy, lse = stats(logits, torch.tensor([5000]))
    assert (logprob.item(), entropy.item(), lse.item()) == (0.0, 0.0, logits[0, 5000].item())


def test_a_certain_token_keeps_its_small_gradient() -> None:
    """1 - p = 2e-4 is good to the rounding of a sum near 1; exp(z - lse) has that of lse, 16 times more."""
    logits, token_ids, g = torch.tensor([[30.0, 21.0, 20.0]]), torch.tensor([0]), torch.ones(1)
    want = truth(logits, token_ids, g, None)
    logprob, entropy, lse = stats(logits, token_ids)
    gradient_(logits, token_ids, logprob, entropy, lse, g)
    assert logprob.item() == pytest.approx(want[0].item(), abs=1.2e-7)
    assert logits[0, 0].item() == pytest.approx(want[3][0, 0].item(), abs=1.2e-7)
    assert (30 - lse).item() != pytest.approx(want[0].item(), abs=5e-7)


def test_rows_of_weight_zero_are_not_read() -> None:
    logits, token_ids, g, h = batch(4, 1000, torch.float32, seed=3)
    logprob, entropy, lse = stats(logits, token_ids)
    logits[1] = torch.nan
    g[1] = 0.0
    for entropy_weight in (None, h * (g != 0)):
        ours = logits.clone()
        gradient_(ours, token_ids, logprob, entropy, lse, g, entropy_weight)
        assert (ours[1] == 0).all()
        assert (ours[[0, 2, 3]] != 0).all()
    only_entropy = logits[2:3].clone()
    i = slice(2, 3)
    gradient_(only_entropy, token_ids[i], logprob[i], entropy[i], lse[i], torch.zeros(1), h[i])
    want = truth(logits[i], token_ids[i], torch.zeros(1), h[i])[3]
    torch.testing.assert_close(only_entropy.double(), want, rtol=1e-5, atol=1e-6)


def test_what_is_wrong_shows_as_nan() -> None:
    """A NaN logit makes its own row NaN, an id outside the vocabulary its own log-prob."""
    logits, _, _, _ = batch(4, 1000, torch.float32)
    logits[1, 700] = torch.nan
    logprob, entropy, lse = stats(logits, torch.tensor([5, 5, -100, 1000]))
    assert logprob.isnan().tolist() == [False, True, True, True]
    assert entropy.isnan().tolist() == lse.isnan().tolist() == [False, True, False, False]


def test_no_rows() -> None:
    none = torch.empty(0)
    for rows in stats(torch.empty(0, 7), torch.empty(0, dtype=torch.int64)):
        assert rows.shape == (0,)
    gradient_(torch.empty(0, 7), torch.empty(0, dtype=torch.int64), none, none, none, none)


@pytest.mark.parametrize("h", [None, True])
def test_bfloat16_gradients_over_float32_logits(h: bool | None) -> None:
    """What follows a product with float32 output: the narrow rows begin where the wide ones begin."""
    logits, token_ids, g, weights = batch(3, 9001, torch.float32, seed=4)
    narrow = logits.view(3, 9001).view(torch.bfloat16)[:, :9001]
    check(logits, token_ids, g, weights if h else None, out=narrow)


def test_rows_at_a_distance_and_other_memory() -> None:
    wide = torch.full((4, 1024), torch.nan)
    values, token_ids, g, h = batch(4, 1000, torch.float32, seed=5)
    logits = wide[:, :1000]
    logits.copy_(values)
    check(logits, token_ids, g, h, out=torch.full((4, 1000), torch.nan, dtype=torch.bfloat16))
    check(logits, token_ids, g, h)
    assert wide[:, 1000:].isnan().all()


@pytest.mark.parametrize(
    "head", [Head(), Head(temperature=0.7, softcap=10.0, bias=torch.linspace(-1, 1, 1000))], ids=["plain", "all"]
)
def test_the_middle_is_that_of_torch(head: Head) -> None:
    """Both backends of a chunk, at the places where one stands for the other."""
    logits, token_ids, g, h = batch(5, 1000, torch.float32, seed=6)
    found = []
    for middle in (TorchMiddle(head, torch.float32, logits.device), TritonMiddle(head)):
        product = logits.clone()
        rows = middle.stats(product, token_ids)
        middle.gradient_(product, token_ids, *rows, g, h, out=product)
        found.append((*rows, product))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert TritonMiddle(head).block_rows(1000) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "gspo", "temperature": 0.8},
        {"objective": "bapo", "softcap": 8.0},
        {"objective": "cispo", "entropy_coef": 0.02, "kl_coef": 0.1},
    ],
    ids=str,
)
def test_the_operator_with_this_backend(options: dict[str, object]) -> None:
    """Token level, sequence level, adaptive; the other terms of the loss."""
    random = torch.Generator().manual_seed(7)
    hidden = torch.randn(3, 4, 8, generator=random, requires_grad=True)
    lm_head = torch.randn(50, 8, generator=random, requires_grad=True)
    token_ids = torch.randint(50, (3, 4), generator=random)
    old_logprob = -3 + torch.randn(3, 4, generator=random)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    if "kl_coef" in options:
        options = options | {"ref_logprob": old_logprob + 0.3}
    found = []
    for backend in ("reference", "triton"):
        rest = token_ids, old_logprob, torch.tensor([1.0, -0.7, 0.3]), mask
        out = dgpo.linear_policy_loss(hidden, lm_head, *rest, backend=backend, **options)
        found.append((out.value.detach(), *torch.autograd.grad(out.value, (hidden, lm_head))))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_operator_takes_any_strides_with_this_backend() -> None:
    random = torch.Generator().manual_seed(8)

    def wide(values: Tensor) -> Tensor:
        """The same values, every second one of a longer tensor in every dimension, the dimensions in reverse order."""
        longer = values.new_zeros([2 * size for size in reversed(values.shape)])
        view = longer[tuple(slice(None, None, 2) for _ in values.shape)].permute(*reversed(range(values.dim())))
        return view.copy_(values).detach()

    plain = {
        "hidden": torch.randn(6, 8, generator=random),
        "lm_head": torch.randn(50, 8, generator=random),
        "bias": torch.randn(50, generator=random),
        "token_ids": torch.randint(50, (6,), generator=random),
        "old_logprob": -3 + torch.randn(6, generator=random),
        "advantage": torch.tensor([1.0, -0.7, 0.3, 0.5, 0.5, -1.0]),
        "mask": torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.bool),
    }
    found = []
    for form in (torch.Tensor.contiguous, wide):
        given = {name: form(values) for name, values in plain.items()}
        leaves = [given[name].requires_grad_() for name in ("hidden", "lm_head", "bias")]
        out = dgpo.linear_policy_loss(**given, backend="triton", chunk_tokens=2)
        found.append((out.value.detach(), *torch.autograd.grad(out.value, leaves)))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


GOOD = {"logits": torch.zeros(2, 8), "token_ids": torch.zeros(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.zeros(2, 8, dtype=torch.float64)}, TypeError, "logits has dtype torch.float64"),
        ({"logits": torch.zeros(8)}, ValueError, r"logits has shape \(8,\)"),
        ({"logits": torch.zeros(8, 2).t()}, ValueError, "expected contiguous rows"),
        ({"logits": torch.zeros(1, 8).expand(2, 8)}, ValueError, "that do not overlap"),
        ({"logits": torch.zeros(2, 0)}, ValueError, "0 < V"),
        ({"token_ids": torch.zeros(2)}, TypeError, "token_ids has dtype torch.float32"),
        ({"token_ids": torch.zeros(3, dtype=torch.int64)}, ValueError, r"expected \[2\]"),
        ({"token_ids": torch.zeros(4, dtype=torch.int64)[::2]}, ValueError, "contiguous"),
        ({"head": Head(bias=torch.zeros(9))}, ValueError, r"expected \[8\]"),
        ({"head": Head(bias=torch.zeros(8, dtype=torch.int64))}, TypeError, "bias has dtype torch.int64"),
    ],
)
def test_errors_of_both(change: dict[str, object], error: type[Exception], words: str) -> None:
    arguments = GOOD | change
    with pytest.raises(error, match=words):
        stats(**arguments)
    row = torch.zeros(2)
    with pytest.raises(error, match=words):
        gradient_(**arguments, logprob=row, entropy=row, lse=row, g=row)


def test_errors_of_the_gradient() -> None:
    row = torch.zeros(2)
    rows = {"logprob": row, "entropy": row, "lse": row, "g": row, "h": row}
    for name in rows:
        with pytest.raises(TypeError, match=f"{name} has dtype torch.float64"):
            gradient_(**GOOD, **(rows | {name: row.double()}))
        with pytest.raises(ValueError, match=rf"{name} has shape \(3,\).*expected \[2\]"):
            gradient_(**GOOD, **(rows | {name: torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"out has shape \(2, 7\)"):
        gradient_(**GOOD, **rows, out=torch.zeros(2, 7))
    buffer = torch.zeros(3, 8)
    for out in (buffer[1:], buffer.view(torch.bfloat16)[:2, 8:], buffer.view(-1).view(torch.bfloat16)[:16].view(2, 8)):
        with pytest.raises(ValueError, match="before another is read"):
            gradient_(buffer[:2], GOOD["token_ids"], **rows, out=out)
