"""What a run is planned for: GPUs by name, and the ranks with the way they share a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sharding = Literal["one process", "DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An accelerator.

    Attributes:
        name: of the product.
        short: the same without its memory.
        gib: memory that a process can have.
        tflops: dense bfloat16 with float32 accumulation, 10¹² FLOP/s, from the vendor's data sheet.
    """

    name: str
    short: str
    gib: float
    tflops: float


GPUS: dict[str, Gpu] = {
    "a100": Gpu(name="A100 80 GB", short="A100", gib=79.0, tflops=312),
    "h100": Gpu(name="H100 80 GB", short="H100", gib=79.0, tflops=989),
    "h200": Gpu(name="H200 141 GB", short="H200", gib=139.0, tflops=989),
    "rtx3090": Gpu(name="RTX 3090 24 GB", short="RTX 3090", gib=23.5, tflops=71),
    "rtx4090": Gpu(name="RTX 4090 24 GB", short="RTX 4090", gib=23.5, tflops=165),
}


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run.

    Attributes:
        processes: W, one GPU each.
        sharding: how they share the model.
        source: where that was read.
        assumed: the sharding was not given, so that it is a guess.
    """

    processes: int
    sharding: Sharding
    source: str
    assumed: bool = False
