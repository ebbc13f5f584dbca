"""Every part of the loss keeps to the device of its tensors, on the stand-in of pretended_gpu.py."""

from __future__ import annotations

import tempfile

import pyarrow.parquet as parquet
import pytest
import torch

import dgpo
from dgpo import TokenBatch
from dgpo.aggregation import AGGREGATIONS
from dgpo.correction import CORRECTIONS
from dgpo.fused.products import wide_products
from dgpo.kl import ESTIMATORS
from dgpo.objectives import OBJECTIVES
from dgpo.runs.write import record
from pretended_gpu import CUDA, MixedDevices, OnGPU, pretended_gpu

B, T, H, V = 4, 6, 8, 50


def tensors() -> dict[str, torch.Tensor]:
    logprob = -3 * torch.rand(B, T)
    old = logprob + 0.6 * torch.randn(B, T)
    return {
        "logprob": logprob,
        "old": old,
        "advantage": torch.randn(B),
        "mask": torch.rand(B, T) < 0.8,
        "rollout_logprob": old + 0.3 * torch.randn(B, T),
        "ref_logprob": logprob + 0.1,
        "entropy": torch.rand(B, T),
        "hidden": torch.randn(B, T, H),
        "lm_head": torch.randn(V, H),
        "bias": torch.randn(V),
        "ids": torch.randint(V, (B, T)),
    }


def of_logprob(on: dict[str, torch.Tensor], **options) -> list[torch.Tensor]:
    logprob = on["logprob"].detach().requires_grad_()
    out = dgpo.policy_loss(logprob, on["old"], on["advantage"], on["mask"], **options)
    out.value.backward()
    return [out.value.detach(), logprob.grad, out.weight, *out.statistics.values()]


def of_hidden(on: dict[str, torch.Tensor], dtype=torch.float32, **options) -> list[torch.Tensor]:
    leaves = [on[name].to(dtype).detach().requires_grad_() for name in ("hidden", "lm_head", "bias")]
    hidden, lm_head, bias = leaves
    out = dgpo.linear_policy_loss(
        hidden,
        lm_head,
        on["ids"],
        on["old"],
        on["advantage"],
        on["mask"],
        bias=bias,
        **{"backend": "chunked", "chunk_tokens": 5, **options},
    )
    out.value.backward()
    return [out.value.detach(), *(leaf.grad.float() for leaf in leaves), *out.statistics.values()]


def compared(loss, words=(), tolerance=1e-5, **options) -> None:
    """The same numbers as on the CPU, all of them on the device."""
    batch = tensors()
    expected = loss(batch, **{name: batch[name] for name in words}, **options)
    with pretended_gpu() as device:
        on = {name: values.to(device) for name, values in batch.items()}
        found = loss(on, **{name: on[name] for name in words}, **options)
        assert {values.device for values in found} == {CUDA}
        found = [values.cpu() for values in found]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, equal_nan=True)


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu() as device:
        x = torch.ones(3).to(device).requires_grad_()
        assert isinstance(torch.zeros(2, device=device), OnGPU)
        assert torch.zeros_like(x).device == device
        assert type(x.detach().cpu()) is torch.Tensor
        (2 * x).sum().backward()
        assert x.grad.device == device
        assert x.grad.tolist() == [2, 2, 2]
        for stranger in (lambda: x + torch.ones(3), lambda: torch.where(torch.ones(3) > 0, x, 0.0)):
            with pytest.raises(MixedDevices):
                stranger()
        with pytest.raises(TypeError, match="to numpy"):
            x.detach().numpy()
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name: str) -> None:
    compared(of_logprob, ("entropy",), objective=name)
    compared(of_hidden, objective=name)


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name != "given"])
def test_every_correction(name: str) -> None:
    compared(of_logprob, ("rollout_logprob",), correction=name)
    compared(of_hidden, ("rollout_logprob",), correction=name)


def test_aggregations_terms_and_heads() -> None:
    for name in AGGREGATIONS:
        if name not in ("fixed", "seq-mean-token-sum-norm"):
            compared(of_logprob, aggregation=name)
    for name in ESTIMATORS:
        compared(of_logprob, ("ref_logprob",), kl=name, kl_coef=0.1)
    compared(of_hidden, ("ref_logprob",), kl_coef=0.1, entropy_coef=0.01, softcap=5.0, temperature=0.7)
    compared(of_hidden, backend="reference")


def test_products_of_16_bit_operands_are_float32() -> None:
    """As only CUDA has them: logits, their gradients in the same memory, and the sum of lm_head's gradient."""
    with pretended_gpu() as device:
        assert wide_products(device, torch.bfloat16)
    compared(of_hidden, dtype=torch.bfloat16, tolerance=2e-3)


def test_a_recorded_update() -> None:
    batch = tensors()
    names = ("logprob", "old", "advantage", "mask")
    with pretended_gpu() as device, tempfile.TemporaryDirectory() as folder:
        tokens = TokenBatch(*(batch[name].to(device) for name in names), entropy=batch["entropy"].to(device))
        group = torch.tensor([0, 0, 1, 1], device=device)
        file = record(folder, tokens, update=1, token_ids=batch["ids"].to(device), group=group)
        found = parquet.read_table(file)["logprob"].to_numpy()
    assert found.tolist() == batch["logprob"][batch["mask"]].tolist()
