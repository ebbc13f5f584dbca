"""`torch.compile` on the device: the gradients are those of the model that is not compiled.

Twice: TRL's option `torch_compile`, with which the loss is not fused, and the transformer compiled in place
(`model.model.compile()`), with which it is.
"""

from __future__ import annotations

import sys

import torch
from transformers import PreTrainedModel

from gpu.piece import Findings, pick, run
from gpu.rig import LENGTH, VOCABULARY, distance, gradients, model

AGREE = 1e-3
"""Relative (L2), in float32: a compiler may order sums as it likes."""
BACKEND = pick("inductor", "aot_eager")
"""On a CPU, Inductor would spend the rehearsal in a C++ compiler."""


def measure(found: Findings) -> None:
    """A row per way to compile."""
    plain, _ = gradients(small(), equal)
    before = graphs()
    with found.part("torch_compile"):
        seen, trainer = gradients(small(), equal, torch_compile=True, torch_compile_backend=BACKEND)
        compare(found, "torch_compile=True", seen, plain, trainer, graphs() - before, fused=False)
    torch.compiler.reset()
    before = graphs()
    with found.part("the transformer in place"):
        network = small()
        network.model.compile(backend=BACKEND)
        seen, trainer = gradients(network, equal)
        compare(found, "model.model.compile()", seen, plain, trainer, graphs() - before, fused=True)
    worst = max((row["second"] for row in found.rows if "second" in row), default=float("nan"))
    found.headline = f"{BACKEND}: gradients differ by {worst:.1g} at most"


def small() -> PreTrainedModel:
    """Of one layer: what is compiled takes seconds per layer."""
    return model(VOCABULARY, layers=1)


def equal(count: int, random: torch.Generator) -> list[int]:
    """Lengths of completions: one shape, and so one graph."""
    return [LENGTH] * count


def graphs() -> int:
    """How many were compiled so far: nothing resets the count."""
    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


def compare(
    found: Findings, case: str, seen: list, plain: list, trainer: object, compiled: int, *, fused: bool
) -> None:
    """A row, and failures where the gradient is another one or the loss took another path."""
    first, second = (distance(a, b) for a, b in zip(seen, plain, strict=True))
    went = trainer._step_loss.heads.fused
    found.row(case=case, backend=BACKEND, fused=went, graphs=compiled, first=first, second=second)
    found.check(max(first, second) <= AGREE, f"{case}: the gradients differ by {first:.3g} and {second:.3g}")
    found.check(compiled > 0, f"{case}: nothing was compiled")
    found.check(went == fused, f"{case}: the loss went with fused={went}")


if __name__ == "__main__":
    sys.exit(run(measure))
