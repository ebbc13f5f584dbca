"""A stand-in for a GPU: tensors that say they are on `cuda:0`, hold their numbers on the CPU, and mix with no others.

What works on a CPU and not on a GPU shows here without one: an operation on tensors of two devices, `numpy()` of a
tensor on the device, a tensor made on the CPU beside one on the device, and the products that only CUDA has.
Kernels, autocast and streams are not imitated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

COPIES = {aten._to_copy.default, aten.copy_.default}
"""Between devices."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""A tensor on the device takes indices that are on the CPU."""


FACTORIES = (
    *("empty", "zeros", "ones", "full", "arange", "tensor", "as_tensor", "rand", "randn", "randint", "randperm"),
    *("linspace", "eye", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
)


class MixedDevices(RuntimeError):
    """Tensors of two devices in one operation."""


class OnGPU(Tensor):
    """A tensor of the stand-in; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        found: OnGPU = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            requires_grad=held.requires_grad,
        )
        found.held = held.detach()
        return found

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.held!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGPU) and tensor.dim() > 0]
        if strangers and func not in COPIES and not (func in INDEXED and isinstance(args[0], OnGPU)):
            raise MixedDevices(f"{func}: expected all tensors on one device, found {CUDA} and the cpu")
        out = _of_cuda(func)(*tree_map(_held, args), **tree_map(_held, kwargs))
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrapped, out))


def _held(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, OnGPU) else value


def _wrapped(value: Any) -> Any:
    return OnGPU(value) if isinstance(value, Tensor) and not isinstance(value, OnGPU) else value


def _of_cuda(func: Any) -> Callable[..., Any]:
    """The operation; those that no CPU has are computed in float32."""

    def mm(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
        assert out.dtype == dtype == torch.float32
        assert a.dtype == b.dtype
        return torch.mm(a.float(), b.float(), out=out)

    def addmm(c: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor, **more: Any) -> Tensor:
        assert not more
        assert c.dtype == out.dtype == dtype == torch.float32
        return out.copy_(c + a.float() @ b.float())

    return {aten.mm.dtype_out: mm, aten.addmm.dtype_out: addmm}.get(func, func)


def _made(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes tensors, on the stand-in too."""

    @wraps(factory)
    def make(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        on_gpu = any(isinstance(arg, OnGPU) for arg in args) if device is None else _kind(device) == "cuda"
        made = factory(*tree_map(_held, args), device=None if device is None else "cpu" if on_gpu else device, **kwargs)
        return OnGPU(made.detach()).requires_grad_(made.requires_grad) if on_gpu else made

    return make


def _mover(method: Any, where: str | None) -> Callable[..., Tensor]:
    """`Tensor.to`, and the like."""

    @wraps(method)
    def move(source: Tensor, *words: Any, **kwargs: Any) -> Tensor:
        return _moved(source, where, [*words, *kwargs.values()])

    return move


def _kind(device: Any) -> str:
    return torch.device(device).type


def _moved(source: Tensor, target: str | None, words: list[Any]) -> Tensor:
    dtype = None
    for word in words:
        if isinstance(word, Tensor):
            target, dtype = word.device.type, word.dtype
        elif isinstance(word, torch.dtype):
            dtype = word
        elif isinstance(word, torch.device | str):
            target = _kind(word)
    if dtype is not None and source.dtype != dtype:
        source = source.type(dtype)
    if target in (None, source.device.type):
        return source
    return _ToGPU.apply(source) if target == "cuda" else _ToCPU.apply(source)


class _ToGPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return OnGPU(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.held


class _ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return OnGPU(gradient)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """The device, which tensors can be made on and moved to inside."""
    with ExitStack() as stack:
        for name in FACTORIES:
            stack.enter_context(patch.object(torch, name, _made(getattr(torch, name))))
        for name, where in (("to", None), ("cpu", "cpu"), ("cuda", "cuda")):
            stack.enter_context(patch.object(Tensor, name, _mover(getattr(Tensor, name), where)))
        # one generator for both
        stack.enter_context(patch.object(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state()))
        stack.enter_context(patch.object(torch.cuda, "set_rng_state", lambda state, device=None: None))
        stack.enter_context(patch.object(torch.cuda, "device", lambda device: nullcontext()))
        yield CUDA
