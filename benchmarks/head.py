"""Time and memory of the output head with its loss: ours, the peers, and the bound of three matrix products.

    python benchmarks/head.py [--rounds 5] [--shapes cpu|all|N,H,V,dtype ...] [--out FILE.json]
    OMP_PROC_BIND=true python benchmarks/head.py --threads 2      # with two cores, and the clock of the wall

The head of a policy update takes hidden states [N, H] and the weight [V, H] to a loss and to both gradients. At least
three matrix products of N·H·V are needed (logits, gradient of the hidden states, gradient of the weight); the bound is
their time, measured in the same rounds. All variants compute the clipped policy objective on the same tensors; a round
runs each of them once, in an order that rotates, and a number is the quotient of the medians over rounds. On a CPU: one
thread and process time, so that other work on the machine matters little; with more threads, the time of the wall, on a
machine that does nothing else. Peak memory is what a variant holds above its inputs and the two gradients, each in a
process of its own, with one thread.

A peer that is not installed is listed as such: `benchmarks/peers.txt` has them all, in an environment of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dgpo

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_long
from workers import reset_peak, status

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "cpu": [(2048, 256, 32_768, "float32"), (2048, 1536, 151_936, "bfloat16"), (8192, 256, 32_768, "bfloat16")],
    "all": [(16_384, H, 151_936, "bfloat16") for H in (896, 1536, 3584, 5120)],
}
EPS = 0.2
BOUND, OURS = "three products", "dgpo chunked"
ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY")
"""What decides where the threads run."""


@dataclass
class Batch:
    """One flattened micro-batch; every second sequence of `rows` tokens has an advantage of 0 where asked for."""

    hidden: Tensor
    weight: Tensor
    ids: Tensor
    old_logprob: Tensor
    advantage: Tensor
    mask: Tensor

    @staticmethod
    def make(
        N: int, H: int, V: int, dtype: torch.dtype, device: str, *, zero: float = 0.0, masked: float = 0.0
    ) -> Batch:
        """Random tensors; shares `zero` of the sequences without advantage and `masked` of the tokens."""
        generator = torch.Generator(device).manual_seed(0)
        rows = 64
        hidden = torch.randn(N, H, generator=generator, device=device).to(dtype)
        weight = (torch.randn(V, H, generator=generator, device=device) / H**0.5).to(dtype)
        advantage = torch.randn(N // rows, generator=generator, device=device)
        advantage[: int(zero * len(advantage))] = 0.0
        return Batch(
            hidden.requires_grad_(),
            weight.requires_grad_(),
            torch.randint(V, (N,), generator=generator, device=device),
            -12 + torch.rand(N, generator=generator, device=device),
            advantage.repeat_interleave(rows),
            torch.rand(N, generator=generator, device=device) >= masked,
        )

    def clear(self) -> None:
        """Forget the gradients."""
        self.hidden.grad = self.weight.grad = None


def clipped(logprob: Tensor, batch: Batch) -> Tensor:
    """The clipped objective, as everybody writes it."""
    ratio = (logprob - batch.old_logprob).exp()
    lower = torch.minimum(ratio * batch.advantage, ratio.clamp(1 - EPS, 1 + EPS) * batch.advantage)
    return -(lower * batch.mask).sum() / batch.mask.sum()


Step = Callable[[Batch], None]


def bound(batch: Batch) -> None:
    """The three products, and nothing else."""
    with torch.no_grad():
        logits = batch.hidden @ batch.weight.T
        batch.hidden.grad = logits @ batch.weight
        batch.weight.grad = logits.T @ batch.hidden


def ours(backend: str) -> Step:
    """`dgpo.linear_policy_loss`."""

    def step(batch: Batch) -> None:
        cu_seqlens = torch.arange(0, len(batch.ids) + 1, 64, device=batch.ids.device)
        out = dgpo.linear_policy_loss(
            batch.hidden,
            batch.weight,
            batch.ids,
            batch.old_logprob,
            batch.advantage,
            batch.mask,
            objective="grpo",
            cu_seqlens=cu_seqlens,
            backend=backend,
        )
        out.value.backward()

    return step


def _naive_loss(batch: Batch) -> Tensor:
    logits = (batch.hidden @ batch.weight.T).float()
    return clipped(logits.log_softmax(-1).gather(-1, batch.ids[:, None])[:, 0], batch)


def naive(batch: Batch) -> None:
    """Full logits in float32."""
    _naive_loss(batch).backward()


def compiled_naive() -> Step:
    """The same, compiled."""
    loss = torch.compile(
        lambda hidden, weight, ids, old, advantage, mask: _naive_loss(Batch(hidden, weight, ids, old, advantage, mask))
    )

    def step(batch: Batch) -> None:
        loss(batch.hidden, batch.weight, batch.ids, batch.old_logprob, batch.advantage, batch.mask).backward()

    return step


def trl_fused() -> Step:
    """TRL's chunked log-probs, with the settings of its GRPO trainer."""
    from trl.kernels import ChunkedLogProbFunction

    def step(batch: Batch) -> None:
        logprob, *_ = ChunkedLogProbFunction.apply(
            batch.hidden, batch.weight, None, batch.ids, 1.0, 32_768, None, 1.0, ("entropy",)
        )
        clipped(logprob, batch).backward()

    return step


def liger() -> Step:
    """Liger's fused linear GRPO loss, token mean."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, epsilon_low=EPS, epsilon_high=EPS, loss_type="bnpo", use_ref_model=False, compiled=False
    )

    def step(batch: Batch) -> None:
        rows = len(batch.ids) // 64
        value, _ = loss(
            batch.hidden.view(rows, 64, -1),
            batch.weight,
            batch.ids.view(rows, 64),
            batch.mask.view(rows, 64).long(),
            batch.advantage.view(rows, 64)[:, 0],
            old_per_token_logps=batch.old_logprob.view(rows, 64),
        )
        value.backward()

    return step


def verl() -> Step:
    """verl's fused linear head in torch."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    head = FusedLinearForPPO()

    def step(batch: Batch) -> None:
        logprob, _ = head(batch.hidden[None], batch.weight, batch.ids[None])
        clipped(logprob[0], batch).backward()

    return step


def cce() -> Step:
    """Apple's cut cross-entropy with per-token losses."""
    from cut_cross_entropy import linear_cross_entropy

    def step(batch: Batch) -> None:
        clipped(-linear_cross_entropy(batch.hidden, batch.weight, batch.ids, reduction="none"), batch).backward()

    return step


def variants(device: str) -> dict[str, Callable[[], Step]]:
    """name -> how to get it; what cannot be imported raises ImportError."""
    found: dict[str, Callable[[], Step]] = {BOUND: lambda: bound, OURS: lambda: ours("chunked")}
    if device == "cuda":
        found |= {"dgpo triton": lambda: ours("triton"), "cut-cross-entropy": cce}
    return found | {
        "naive": lambda: naive,
        "torch.compile(naive)": compiled_naive,
        "TRL": trl_fused,
        "Liger": liger,
        "verl": verl,
    }


def seconds(step: Step, batch: Batch, device: str) -> float:
    """Of one step, its gradients included: process time on one thread, time of the wall on several."""
    batch.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        step(batch)
        torch.cuda.synchronize()
        return time.perf_counter() - started
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    step(batch)
    return clock() - started


def _peak(queue: Any, name: str, shape: tuple[int, int, int, str], zero: float, masked: float) -> None:
    torch.set_num_threads(1)
    N, H, V, dtype = shape
    batch = Batch.make(N, H, V, getattr(torch, dtype), "cpu", zero=zero, masked=masked)
    step = variants("cpu")[name]()
    small = Batch.make(128, H, 512, getattr(torch, dtype), "cpu")
    step(small)  # imports and the like
    gc.collect()
    reset_peak()  # making the inputs is not measured
    before = status("VmRSS")
    step(batch)
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    queue.put((status("VmHWM") - before) / 1024 - (N * H + V * H) * size / 2**20)


def peak(name: str, shape: tuple[int, int, int, str], device: str, batch: Batch, step: Step) -> float:
    """MiB above the inputs and the two gradients."""
    gradients = (batch.hidden.numel() + batch.weight.numel()) * batch.hidden.element_size() / 2**20
    if device == "cuda":
        batch.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20 - gradients
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(queue, name, shape, 0.0, 0.0))
    process.start()
    process.join()
    return float(queue.get()) if process.exitcode == 0 else float("nan")


def measured(
    shape: tuple[int, int, int, str], device: str, rounds: int, memory: bool, chosen: list[str] | None
) -> Iterator[dict[str, Any]]:
    """One row per variant; the bound and ours always, others where they are chosen."""
    N, H, V, dtype = shape
    batch = Batch.make(N, H, V, getattr(torch, dtype), device)
    ready: dict[str, tuple[Step, Batch]] = {}
    for name, get in variants(device).items():
        if chosen is not None and name not in (BOUND, OURS, *chosen):
            continue
        try:
            ready[name] = get(), batch
        except ImportError as error:
            yield {"variant": name, "missing": str(error)}
    step = ready[OURS][0]
    half = Batch.make(N, H, V, getattr(torch, dtype), device, zero=0.5)
    ready["dgpo chunked, 50 % of advantages 0"] = step, half
    ready["dgpo chunked, 80 % of advantages 0"] = step, Batch.make(N, H, V, getattr(torch, dtype), device, zero=0.8)
    both = Batch.make(N, H, V, getattr(torch, dtype), device, zero=0.5, masked=0.3)
    ready["dgpo chunked, 50 % of advantages 0, 30 % masked"] = step, both
    times: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(-1, rounds):
        order = list(ready)
        order = order[number % len(order) :] + order[: number % len(order)]
        for name in order:
            passed = seconds(*ready[name], device)
            ready[name][1].clear()
            if number >= 0:  # the first round compiles and warms up
                times[name].append(passed)
    ratios = times_as_long(times, BOUND)
    for name, (of, data) in ready.items():
        ratio = ratios[name]
        row = {
            "variant": name,
            "seconds": ratio.seconds,
            "ratio": ratio.times,
            "low": ratio.low,
            "high": ratio.high,
            "rounds": times[name],
        }
        if memory and data is batch and name != BOUND:
            row["peak_mib"] = peak(name, shape, device, batch, of)
        yield row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=["cpu" if not torch.cuda.is_available() else "all"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="*", metavar="NAME", help="peers to measure beside ours; default: all")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(arguments.threads)
    known = [name for name in variants(device) if name not in (BOUND, OURS)]
    if unknown := [name for name in arguments.variants or [] if name not in known]:
        parser.error(f"--variants {unknown}; expected some of {known}")
    shapes: list[tuple[int, int, int, str]] = []
    for word in arguments.shapes:
        if word in SHAPES:
            shapes += SHAPES[word]
        else:
            N, H, V, dtype = word.split(",")
            shapes.append((int(N), int(H), int(V), dtype))
    tables, load = [], round(os.getloadavg()[0], 2)
    for shape in shapes:
        N, H, V, dtype = shape
        print(f"\n{dtype} N={N} H={H} V={V}")
        rows = []
        for row in measured(shape, device, arguments.rounds, not arguments.no_memory, arguments.variants):
            rows.append(row)
            if "missing" in row:
                print(f"  {row['variant']:<50} not installed: {row['missing']}")
            else:
                held = f"{row['peak_mib']:>9.0f} MiB" if "peak_mib" in row else ""
                span = f"({row['low']:.2f} .. {row['high']:.2f})"
                print(f"  {row['variant']:<50}{row['seconds']:>9.3f} s {row['ratio']:>6.2f} {span}{held}")
        tables.append({"N": N, "H": H, "V": V, "dtype": dtype, "rows": rows})
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    document = {
        "device": name,
        "threads": arguments.threads,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "load_before": load,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{
                package: _version(package)
                for package in ("torch", "triton", "trl", "liger-kernel", "verl", "cut-cross-entropy")
            },
        },
        "tables": tables,
    }
    several = f"-{arguments.threads}-threads" if arguments.threads > 1 else ""
    out = arguments.out or RESULTS / f"head-{device}{several}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{out}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
