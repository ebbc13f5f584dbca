"""Checks of tensor arguments, with one error text for every function that takes a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
KINDS = {
    "floating": (FLOATING, "a floating dtype"),
    "real": (FLOATING + INTEGER, "a floating dtype, or integers"),
    "mask": ((torch.bool, *FLOATING, *INTEGER), "bool, or 0 and 1 of a real dtype"),
    "index": ((torch.int64, torch.int32), "int64 or int32"),
    "integer": (INTEGER, "a tensor of integers"),
}
"""Kind -> its dtypes, and their description in an error."""


def check_tensor(name: str, value: object, kind: str, anchor: tuple[str, torch.device] | None = None) -> None:
    """Raise unless `value` is a tensor of that kind, on the device of the anchor.

    Args:
        name: of the argument, for the error.
        value: what was passed.
        kind: a key of `KINDS`.
        anchor: name and device of the tensor that all others have to be beside; None for that tensor itself.

    Raises:
        TypeError: not a tensor, a sparse one, or a dtype of another kind.
        ValueError: another device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}; expected a dense tensor, such as {name}.to_dense()")
    dtypes, expected = KINDS[kind]
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {value.dtype}; expected {expected}")
    if anchor is not None and value.device != anchor[1]:
        raise ValueError(f"{name} is on {value.device}; expected {anchor[1]}, the device of {anchor[0]}")
