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
    # the kernels count columns in int32
    if V == 0 or V >= 2**30:
        raise ValueError(f"logits has shape {(n, V)}; expected [n, V] with 0 < V < 2**30")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"token_ids has dtype {token_ids.dtype}; expected int64 or int32")
    check_vector("token_ids", token_ids, n, logits)
    if bias is not None:
        check_dtype("bias", bias)
        check_vector("bias", bias, V, logits)
    return n, V


def check_dtype(name: str, values: Tensor) -> None:
    """Raise TypeError unless the dtype is one of `DTYPES`."""
    if values.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {values.dtype}; expected one of {', '.join(map(str, DTYPES))}")


def check_vector(name: str, values: Tensor, length: int, logits: Tensor) -> None:
    """Raise ValueError unless the values are [length], contiguous, on the device of the logits."""
    if values.shape != (length,) or not values.is_contiguous() or values.device != logits.device:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, strides {values.stride()} on {values.device}; expected "
            f"[{length}], contiguous, on {logits.device}, as logits has shape {tuple(logits.shape)}"
        )


def check_matrix(name: str, matrix: Tensor) -> None:
    """Raise unless the matrix has a dtype of `DTYPES` and contiguous rows that do not overlap."""
    check_dtype(name, matrix)
    if matrix.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; expected [n, V]")
    n, V = matrix.shape
    if (V > 1 and matrix.stride(1) != 1) or (n > 1 and matrix.stride(0) < V):
        raise ValueError(
            f"{name} has shape {(n, V)} and strides {matrix.stride()}; expected contiguous rows that do not overlap"
        )


def check_row_values(name: str, values: Tensor, logits: Tensor) -> None:
    """Raise unless the values are [n] float32, contiguous, on the device of the logits [n, V]."""
    if values.dtype != torch.float32:
        raise TypeError(f"{name} has dtype {values.dtype}; expected float32")
    check_vector(name, values, len(logits), logits)


def check_out(out: Tensor, logits: Tensor) -> bool:
    """Whether `out` shares the memory of the logits in a narrower dtype.

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
            f"out ({out.dtype}, strides {out.stride()}, offset {out.storage_offset()}) shares the memory of logits "
            f"({logits.dtype}, strides {logits.stride()}, offset {logits.storage_offset()}) so that a row would be "
            "written before another is read; expected rows that begin where those of logits begin, in a dtype that is "
            "not wider, or other memory"
        )
    return out.element_size() < logits.element_size()
