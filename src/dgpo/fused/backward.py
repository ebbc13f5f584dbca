"""Gradients that are known before `backward` is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NO_SECOND_ORDER = (
    "linear_policy_loss cannot be differentiated twice: its gradients are computed together with its value; "
    'use backend="reference", which can, and holds all logits'
)


def attach(value: Tensor, gradients: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> Tensor:
    """`value`, whose `backward` gives each of `inputs` its gradient times grad_output, in the dtype of the input."""
    result: Tensor = _Attached.apply(value, len(inputs), *gradients, *inputs)  # type: ignore[no-untyped-call]
    return result


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor | None) -> Tensor:
        ctx.count = count
        # the inputs too: `_Scaled` makes them part of the graph, so that a second derivative raises an error
        ctx.save_for_backward(*tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        gradients, inputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        scaled = _Scaled.apply(grad_output, ctx.count, *gradients, *inputs)  # type: ignore[no-untyped-call]
        # none for value, count and the gradients themselves
        return None, None, *([None] * ctx.count), *scaled


ROWS = 4096
"""Rows of a 16-bit gradient that are converted to float32 at a time."""


def _times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient · factor in `dtype`, rounded once, at the end. Out of place: a retained graph may run backward again.

    The factor is not inspected, which would synchronise. Of the input only the dtype is used: sharded weights that were
    gathered for the forward are gone by now.
    """
    result = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if gradient.dtype not in (torch.bfloat16, torch.float16):
        return torch.mul(gradient, factor.to(gradient.dtype), out=result)
    # in parts: a float32 copy of all of lm_head's gradient would be the largest tensor of the backward
    for start in range(0, len(gradient), ROWS):
        part = gradient[start : start + ROWS]
        torch.mul(part.float(), factor.float(), out=result[start : start + ROWS])
    return result


class _Scaled(torch.autograd.Function):
    """A function of the inputs for autograd, so that differentiating a gradient again fails instead of giving 0."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        scaled: list[Tensor | None] = []
        for gradient, value in zip(tensors[:count], tensors[count:], strict=True):
            if gradient is None or value is None:
                scaled.append(None)
            else:
                scaled.append(_times(gradient, grad_output, value.dtype))
        return tuple(scaled)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        raise RuntimeError(NO_SECOND_ORDER)
