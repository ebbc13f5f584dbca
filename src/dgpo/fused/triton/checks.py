"""Checks before a launch: a kernel gets pointers, which have no shape, stride or dtype."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of logits, gradients and bias; arithmetic is float32."""


def check_chunk(logits: Tensor, token_ids: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """(n, V) of what both kernels get.

    Raises:
        ValueError, TypeError: as in `launch.stats`.
    """
    check_matrix("logits", logits)
    n, V = logits.shape
    if V == 0 or V >= 2**30:
        raise ValueError(f"logits has shape {(n, V)}; expected [n, V] with 0 < V < 2**30")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"token_ids has dtype {token_ids.dtype}; expected int64 or int32")
    if token_ids.shape != (n,) or not token_ids.is_contiguous() or token_ids.device != logits.device:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}, strides {token_ids.stride()} on {token_ids.device}; "
            f"expected [{n}], contiguous, on {logits.device}, as logits has shape {(n, V)}"
        )
    if bias is not None:
        if not bias.is_floating_point() or bias.dtype == torch.float64:
            raise TypeError(f"bias has dtype {bias.dtype}; expected one of {', '.join(map(str, DTYPES))}")
        if bias.shape != (V,) or not bias.is_contiguous() or bias.device != logits.device:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, strides {bias.stride()} on {bias.device}; expected [{V}], "
                f"contiguous, on {logits.device}, as logits has shape {(n, V)}"
            )
    return n, V


def check_matrix(name: str, matrix: Tensor) -> None:
    """Raise unless the matrix has a dtype of `DTYPES` and contiguous rows that do not overlap."""
    if matrix.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {matrix.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    if matrix.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; expected [n, V]")
    n, V = matrix.shape
    if (V > 1 and matrix.stride(1) != 1) or (n > 1 and matrix.stride(0) < V):
        raise ValueError(
            f"{name} has shape {(n, V)} and strides {matrix.stride()}; expected contiguous rows that do not overlap"
        )


def check_row_values(name: str, values: Tensor, n: int, device: torch.device) -> None:
    """Raise unless the values are [n] float32, contiguous, on the device of the logits."""
    if values.dtype != torch.float32:
        raise TypeError(f"{name} has dtype {values.dtype}; expected float32")
    if values.shape != (n,) or not values.is_contiguous() or values.device != device:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, strides {values.stride()} on {values.device}; expected [{n}], "
            f"contiguous, on {device}, as logits has {n} rows"
        )


def check_out(out: Tensor, logits: Tensor) -> bool:
    """True if out lies over the memory of the logits in a narrower dtype.

    Raises:
        ValueError: another shape or device, or the same memory so that a row would be written before another is read.
    """
    check_matrix("out", out)
    if out.shape != logits.shape or out.device != logits.device:
        raise ValueError(
            f"out has shape {tuple(out.shape)} on {out.device}; expected {tuple(logits.shape)} on {logits.device}, "
            "as logits"
        )
    if out.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr() or out.numel() == 0:
        return False
    rows_coincide = (
        out.data_ptr() == logits.data_ptr()
        and out.stride(0) * out.element_size() == logits.stride(0) * logits.element_size()
    )
    if not rows_coincide or out.element_size() > logits.element_size():
        raise ValueError(
            f"out ({out.dtype}, strides {out.stride()}, offset {out.storage_offset()}) lies over the memory of logits "
            f"({logits.dtype}, strides {logits.stride()}, offset {logits.storage_offset()}) so that a row would be "
            "written before another is read; expected rows that begin where those of logits begin, in a dtype that is "
            "not wider, or other memory"
        )
    return out.element_size() < logits.element_size()
