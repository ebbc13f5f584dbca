"""The fused loss on the device: how fast beside its peers and three matrix products, and how much memory it takes.

Times are medians over interleaved rounds; a ratio is to the three products (logits, dX, dW of all rows) of the same
round. Nothing of ours is left out: what could not be measured is there with the reason.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ratios import times_as_long
from torch import Tensor

import dgpo
from dgpo.fused.triton import gradient_, launch, stats, unavailable
from gpu.peers import PEERS
from gpu.piece import REHEARSAL, Findings, device, free, milliseconds, peak_mib, pick, run
from gpu.problem import VOCABULARY, Problem, fused, make


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The output layer of a model, and the ratio to the three products that we want to reach there."""

    hidden: int
    vocabulary: int
    goal: float | None = None


MODELS = {
    "1.5B": Shape(hidden=1536, vocabulary=151_936, goal=1.20),
    "7B": Shape(hidden=3584, vocabulary=152_064, goal=1.12),
    "14B": Shape(hidden=5120, vocabulary=152_064, goal=1.10),
    "0.5B": Shape(hidden=896, vocabulary=151_936),
}
"""The Qwen2.5 family. The smallest pays most for what is not a product."""
MEMORY_GOAL = 0.1
"""Of what the naive version holds."""

DEFAULTS = "dgpo"
"""Our operator with its own choice of backend and chunk."""
OURS = (DEFAULTS, "chunked", "triton")
ROUNDS = 7
SECONDS_FOR_A_CASE = 8.0
"""With fewer left, no further case is begun."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Who is measured on N = B·T tokens of which model, the first share of the responses without advantage."""

    model: str
    shape: Shape
    B: int
    T: int
    zero: float = 0.0
    who: tuple[str, ...] = (DEFAULTS,)

    @property
    def about(self) -> dict[str, Any]:
        """The columns that say so."""
        shape = self.shape
        return {
            "model": self.model,
            "N": self.B * self.T,
            "H": shape.hidden,
            "V": shape.vocabulary,
            "zero_advantage": self.zero,
        }


def cases() -> list[Case]:
    """What is measured, the most telling first. Compiling takes longest."""
    if REHEARSAL:
        tiny = {"model": "tiny", "shape": Shape(hidden=16, vocabulary=1000, goal=1.2), "B": 2, "T": 8}
        return [Case(**tiny, who=EVERYONE), Case(**tiny, zero=0.5), Case(**tiny, who=(DEFAULTS, COMPILED))]
    batch = {"B": 8, "T": 1024}
    of = MODELS.items()
    return [
        *(Case(model=name, shape=shape, **batch, who=EVERYONE) for name, shape in of),
        *(Case(model=name, shape=shape, **batch, zero=0.5) for name, shape in of),
        *(Case(model="1.5B", shape=MODELS["1.5B"], B=B, T=1024, who=(DEFAULTS, NAIVE)) for B in (16, 32)),
        *(Case(model=name, shape=shape, **batch, who=(DEFAULTS, COMPILED)) for name, shape in of),
        *(Case(model=name, shape=shape, **batch, zero=0.8) for name, shape in of),
    ]


NAIVE, COMPILED = "naive", "torch.compile(naive)"
EVERYONE = (DEFAULTS, "chunked", "triton, chunk 8192", NAIVE, *PEERS)
"""Except the compiled version, which takes a while to compile."""


def measure(found: Findings) -> None:
    """A table per case, then the row kernels."""
    missing = unavailable(device())
    for case in cases():
        if found.left() < SECONDS_FOR_A_CASE:
            found.row(**case.about, missing="out of time")
            continue
        with found.part(f"{case.model}, N = {case.B * case.T}, zero advantage {case.zero:.0%}"):
            shape = case.shape
            p = make(case.B, case.T, shape.hidden, shape.vocabulary, torch.bfloat16, device(), case.zero)
            every = variants(p)
            who = [name for name in case.who if missing is None or not name.startswith("triton")]
            one_case(found, case, {name: every[name] for name in (BOUND, *who)})
            del p, every
    if missing is None and found.left() > SECONDS_FOR_A_CASE:
        with found.part("row kernels"):
            row_kernels(found, *pick((4096, VOCABULARY), (8, 1000)))


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


BOUND = "three products"


def variants(p: Problem) -> dict[str, Callable[[], Callable[[], object]]]:
    """Name -> a function that builds the step (it may fail: a peer need not be installed)."""

    def ours(**options: Any) -> Callable[[], Callable[[], object]]:
        return lambda: training_step(p, lambda: fused(p, **options).value)

    return {
        BOUND: lambda: three_products(p),
        DEFAULTS: ours(),
        "chunked": ours(backend="chunked", **pick({}, {"chunk_tokens": 8})),
        "triton, chunk 8192": ours(backend="triton", chunk_tokens=8192),
        NAIVE: lambda: on_logprob(p, naive_logprob),
        COMPILED: lambda: on_logprob(p, torch.compile(naive_logprob, dynamic=False)),
        **{name: lambda b=build: peer_step(p, b) for name, build in PEERS.items()},
    }


def peer_step(p: Problem, build: Any) -> Callable[[], object]:
    """The step of another project's head, which need not be installed."""
    kind, function = build()
    return training_step(p, lambda: function(p)) if kind == "loss" else on_logprob(p, function)


def one_case(found: Findings, case: Case, steps: dict[str, Callable[[], Callable[[], object]]]) -> None:
    """A row per variant: medians over interleaved rounds, and how many times as long as the three products."""
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
            found.row(**case.about, variant=name, missing=missing)
            found.check(not name.startswith(OURS) or missing == "out of time", f"{case.model} {name}: {missing}")
        free()
    if BOUND not in running:
        return
    times: dict[str, list[float]] = {name: [] for name in running}
    order = list(running)
    for _ in range(pick(ROUNDS, 1)):
        for name in order:
            times[name].append(milliseconds(running[name]))
        order = order[1:] + order[:1]
    for name, of in times_as_long(times, BOUND).items():
        row = {"ms": of.seconds, "ratio": of.times, "low": of.low, "high": of.high, "peak_mib": memory[name]}
        if name == DEFAULTS:
            row |= against_goals(found, case, row["ratio"], memory)
        found.row(**case.about, variant=name, **row)


def against_goals(found: Findings, case: Case, ratio: float, memory: dict[str, float | None]) -> dict[str, Any]:
    """The columns that compare ours with the goals; no failure where one is missed, for slow is not wrong."""
    columns: dict[str, Any] = {}
    if case.zero == 0 and case.shape.goal is not None:
        columns |= {"goal": case.shape.goal, "goal_met": ratio <= case.shape.goal}
    ours, naive = memory[DEFAULTS], memory.get(NAIVE)
    if ours is not None and naive is not None:
        columns |= {"of_naive_memory": ours / naive, "memory_goal_met": ours / naive <= MEMORY_GOAL}
    if case.zero == 0 and case.model not in found.headline:
        found.headline += f"{', ' if found.headline else 'of the three products: '}{case.model} {ratio:.2f}"
    return columns


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


if __name__ == "__main__":
    sys.exit(run(measure))
