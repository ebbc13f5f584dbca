"""The elementwise middle of a chunk: what happens between the product that makes logits and those that use dlogits."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dgpo.fused.head import PLAIN, Head
from dgpo.fused.triton.checks import check_chunk, check_out, check_row_values
from dgpo.fused.triton.kernels import kernels

WARPS = 8
VECTORS = 2
"""16-byte vectors in flight per thread. With 8 warps: blocks of 4096 bf16 logits, or 2048 fp32."""


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on tensors of this device; None if they can.

    They run on a CPU if TRITON_INTERPRET=1 is set: slowly, for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"triton needs a CUDA device, the tensors are on {device}"
    return None


def stats(
    logits: Tensor,
    token_ids: Tensor,
    head: Head = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, entropy, lse) [n] float32 of a chunk's rows, in nats; one kernel, which reads the logits once.

    With z of `Head.logits`::

        lse = log Σ exp(z_j);  logprob = z_y - lse;  entropy = lse - Σ p_j z_j,  p_j = exp(z_j - lse)

    Args:
        logits: [n, V] float32, bfloat16 or float16; rows contiguous, any distance between them; n may be 0.
        token_ids: [n] integers y. One outside 0 .. V-1 gives logprob NaN.
        head: what follows the product; its bias [V] contiguous.

    A logit of -inf has p = 0 (below -1e30 counts as -inf); a NaN makes its row NaN.

    Raises:
        ValueError: a shape, layout or number that does not fit, tensors on several devices, V of 2³⁰ or more.
        TypeError: a dtype other than those above.
    """
    n, V = check_chunk(logits, token_ids, head.bias)
    logprob, entropy, lse = (torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(3))
    if n == 0:
        return logprob, entropy, lse
    with _on(logits.device):
        kernels().stats[(n,)](
            logits,
            token_ids,
            # any pointer does without HAS_BIAS, and any number without HAS_SOFTCAP: they are not read
            logits if head.bias is None else head.bias,
            logprob,
            entropy,
            lse,
            logits.stride(0),
            V,
            1.0 / head.divisor,
            head.cap or 1.0,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.cap is not None,
            # 32 threads per warp, each with VECTORS lanes of one 16-byte vector
            LANES=32 * WARPS * VECTORS,
            WIDTH=16 // logits.element_size(),
            num_warps=WARPS,
        )
    return logprob, entropy, lse


def gradient_(
    logits: Tensor,
    token_ids: Tensor,
    logprob: Tensor,
    entropy: Tensor,
    lse: Tensor,
    g: Tensor,
    h: Tensor | None = None,
    *,
    head: Head = PLAIN,
    out: Tensor | None = None,
) -> None:
    """Overwrite the logits with d loss/d logits; one kernel, which reads them once and writes them once.

    With z and p_j as in `stats`, x the logits with their bias, cap and divisor of `head`, and H the entropy::

        dz_j = g · (1[j = y] - p_j) - h · p_j · (log p_j + H)        at y: g · -expm1(logprob) instead of g · (1 - p_y)
        dx_j = dz_j · (1 - tanh²(x_j / cap)) / divisor

    Args:
        logits: [n, V], what `stats` has read.
        token_ids: [n].
        logprob, entropy, lse: [n] float32, what `stats` has returned. A log-prob from z_y - lse would not do: it has
            the absolute error of lse's last bit, which can be all of the gradient of an almost certain token.
        g: [n] float32, d loss/d logprob.
        h: [n] float32, d loss/d entropy; None is 0.
        head: that of `stats`.
        out: [n, V] where dlogits go; None is `logits`. After a product with float32 output,
            `logits.view(torch.bfloat16)[:, :V]` puts bfloat16 dlogits for the next products into the same memory.

    A row with g = 0 and h = 0 is not read: it becomes 0, whatever it held. p_j has the relative error of lse's last
    bit, 1e-6 for |lse| < 32.

    Raises:
        ValueError, TypeError: as in `stats`; and an `out` over the same memory, of a dtype not narrower than that of
            `logits`, that is not `logits`.
    """
    n, V = check_chunk(logits, token_ids, head.bias)
    rows = {"logprob": logprob, "entropy": entropy, "lse": lse, "g": g} | ({} if h is None else {"h": h})
    for name, values in rows.items():
        check_row_values(name, values, logits)
    overlap = False if out is None else check_out(out, logits)
    if n == 0:
        return
    dlogits = logits if out is None else out
    with _on(logits.device):
        kernels().gradient[(n,)](
            logits,
            dlogits,
            token_ids,
            logits if head.bias is None else head.bias,
            -g * torch.expm1(logprob),
            entropy,
            lse,
            g,
            g if h is None else h,
            logits.stride(0),
            dlogits.stride(0),
            V,
            1.0 / head.divisor,
            head.cap or 1.0,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.cap is not None,
            HAS_H=h is not None,
            OVERLAP=overlap,
            LANES=32 * WARPS * VECTORS,
            WIDTH=16 // logits.element_size(),
            num_warps=WARPS,
        )


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
