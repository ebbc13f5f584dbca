"""The fused loss on the device: how fast beside its peers and three matrix products, and how much memory it takes.

Times are medians over interleaved rounds; a ratio is to the three products (logits, dX, dW of all rows) of the same
round. Nothing of ours is left out: what could not be measured is there with the reason.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dgpo
from dgpo.fused.triton import gradient_, launch, stats, unavailable
from gpu.peers import PEERS
from gpu.piece import Findings, device, free, milliseconds, peak_mib, pick, run
from gpu.problem import VOCABULARY, Problem, fused, make

MODELS = {"1.5B": 1536, "7B": 3584, "0.5B": 896, "14B": 5120}
"""Hidden sizes of the Qwen2.5 family. The smallest pays most for what is not a product."""

OURS = ("chunked", "triton")
ZERO = (0.0, 0.5, 0.8)
ROUNDS = 7
SECONDS_FOR_A_CASE = 8.0
"""With fewer left, no further case is begun."""


def measure(found: Findings) -> None:
    """The row kernels, then a table per model and share of responses without advantage, the most telling first."""
    missing = unavailable(device())
    backends = OURS if missing is None else OURS[:1]
    if missing is None:
        with found.part("row kernels"):
            row_kernels(found, *pick((4096, VOCABULARY), (8, 1000)))
    for model, B, T, H, V, zero in cases():
        case = {"model": model, "N": B * T, "H": H, "V": V, "zero_advantage": zero}
        if found.left() < SECONDS_FOR_A_CASE:
            found.row(**case, missing="out of time")
            continue
        with found.part(f"{model}, N = {B * T}, zero advantage {zero:.0%}"):
            p = make(B, T, H, V, torch.bfloat16, device(), zero)
            steps = variants(p, pick((4096, 8192), (8, 16)), backends=backends, everyone=zero == 0)
            one_case(found, case, steps)
            del p, steps


def naive_logprob(hidden: Tensor, lm_head: Tensor, token_ids: Tensor) -> Tensor:
    """[B, T] from the full logits, in float32."""
    return (hidden @ lm_head.T).float().log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def three_products(p: Problem) -> Callable[[], object]:
    """The bound: logits, dX and dW as three products of all rows, into buffers that are there already."""
    x, w = p.hidden.detach().flatten(0, 1), p.lm_head.detach()
    logits = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
    dx, dw = torch.empty_like(x), torch.empty_like(w)

    def step() -> None:
        torch.mm(x, w.T, out=logits)
        torch.mm(logits, w, out=dx)
        torch.mm(logits.T, x, out=dw)

    return step


def training_step(p: Problem, value: Callable[[], Tensor]) -> Callable[[], object]:
    """Forward and backward of a loss."""
    return lambda: torch.autograd.grad(value(), (p.hidden, p.lm_head))


def on_logprob(p: Problem, logprob: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
    """The same objective on somebody's log-probs."""
    return training_step(
        p,
        lambda: dgpo.policy_loss(logprob(p.hidden, p.lm_head, p.token_ids), p.old_logprob, p.advantage, p.mask).value,
    )


def variants(p: Problem, chunks: tuple[int, ...], *, backends: tuple[str, ...], everyone: bool) -> dict[str, Any]:
    """Name -> a function that builds the step (it may fail: a peer need not be installed)."""
    steps: dict[str, Any] = {"three products": lambda: three_products(p)}
    for backend in backends:
        for chunk in chunks:
            options = {"backend": backend, "chunk_tokens": chunk}
            steps[f"{backend}, chunk {chunk}"] = lambda o=options: training_step(p, lambda: fused(p, **o).value)
    if everyone:
        steps["naive"] = lambda: on_logprob(p, naive_logprob)
        steps["torch.compile(naive)"] = lambda: on_logprob(p, torch.compile(naive_logprob, dynamic=False))
        for name, build in PEERS.items():
            steps[name] = lambda b=build: peer_step(p, b)
    return steps


def peer_step(p: Problem, build: Any) -> Callable[[], object]:
    """The step of another project's head, which need not be installed."""
    kind, function = build()
    return training_step(p, lambda: function(p)) if kind == "loss" else on_logprob(p, function)


def one_case(found: Findings, case: dict[str, Any], steps: dict[str, Any]) -> None:
    """A row per variant: medians over interleaved rounds, ratios to the three products of the same round."""
    running: dict[str, Callable[[], object]] = {}
    memory: dict[str, float | None] = {}
    for name, build in steps.items():
        missing = None
        try:
            if found.left() < SECONDS_FOR_A_CASE / 2:
                missing = "out of time"
            else:
                step = build()
                step()
                memory[name] = peak_mib(step)
                running[name] = step
        except ModuleNotFoundError as module:
            missing = f"not installed ({module.name})"
        except torch.OutOfMemoryError:
            missing = "out of memory"
        except Exception as failure:  # noqa: BLE001  # whatever it is, it is in the result
            missing = f"failed: {failure!r}"[:400]
        if missing is not None:
            found.row(**case, variant=name, missing=missing)
            found.check(not name.startswith(OURS) or missing == "out of time", f"{case['model']} {name}: {missing}")
        free()
    times: dict[str, list[float]] = {name: [] for name in running}
    order = list(running)
    for _ in range(pick(ROUNDS, 1)):
        for name in order:
            times[name].append(milliseconds(running[name]))
        order = order[1:] + order[:1]
    for name, seen in times.items():
        ratios = [a / b for a, b in zip(seen, times["three products"], strict=True)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        measured = {"ms": statistics.median(seen), "ratio": ratio, "low": low, "high": high, "peak_mib": memory[name]}
        found.row(**case, variant=name, **measured)
        if name.startswith(OURS) and case["model"] not in found.headline and case["zero_advantage"] == 0:
            found.headline += f"{', ' if found.headline else 'of the three products: '}{case['model']} {ratio:.2f}"


def row_kernels(found: Findings, n: int, V: int) -> None:
    """GB/s of the two kernels over warps × vectors; the product that precedes them is not part of it."""
    logits = torch.randn(n, V, device=device()).to(torch.bfloat16)
    token_ids = torch.randint(V, (n,), device=device())
    g = torch.full((n,), 1e-4, device=device())
    default = (launch.WARPS, launch.VECTORS)
    try:
        for warps, vectors in [(4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4), (16, 1), (16, 2), (32, 1)]:
            launch.WARPS, launch.VECTORS = warps, vectors
            seen: dict[str, list[float]] = {"stats": [], "gradient_": []}
            for _ in range(pick(5, 2)):
                seen["stats"].append(milliseconds(lambda: stats(logits, token_ids)))
                values = stats(logits, token_ids)
                seen["gradient_"].append(milliseconds(lambda rows=values: gradient_(logits, token_ids, *rows, g)))
                logits.normal_()
            row: dict[str, Any] = {"warps": warps, "vectors": vectors, "default": (warps, vectors) == default}
            for name, moved in (("stats", 2), ("gradient_", 4)):  # bytes per logit: read, and read and written
                ms = statistics.median(seen[name][1:])
                row |= {f"{name} ms": ms, f"{name} GB/s": moved * n * V / ms / 1e6}
            found.row(kernels=f"{n} x {V}", **row)
    finally:
        launch.WARPS, launch.VECTORS = default


def cases() -> list[tuple[str, int, int, int, int, float]]:
    """(model, B, T, H, V, share of zero advantages), the most telling first."""
    real = [(name, 8, 1024, H, VOCABULARY, zero) for zero in ZERO for name, H in MODELS.items()]
    real.append(("1.5B", 32, 1024, MODELS["1.5B"], VOCABULARY, 0.0))
    return pick(real, [("tiny", 2, 8, 16, 1000, zero) for zero in ZERO[:2]])


if __name__ == "__main__":
    sys.exit(run(measure))
