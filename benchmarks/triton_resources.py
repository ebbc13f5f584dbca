"""Registers, spills and shared memory of the kernels, from an ahead-of-time compilation that needs no GPU.

Run `python benchmarks/triton_resources.py FILE` (`-` prints). A spilled register is a round trip to memory, so a
test requires zero.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from dgpo.fused.triton.kernels import Kernels, kernels
from dgpo.fused.triton.launch import VECTORS, WARPS

ARCHITECTURES = (80, 90)
DTYPES = {"bf16": 2, "fp32": 4}
"""Dtypes of the logits, with their size in bytes."""

OPTIONS = {
    "plain": {},
    "entropy": {"HAS_H": True},
    "bias, softcap, entropy": {"HAS_BIAS": True, "HAS_SOFTCAP": True, "HAS_H": True},
}
POINTERS = {"token_ids": "*i64", "bias": "*bf16"}
POINTERS |= dict.fromkeys(("logprob", "entropy", "lse", "at_target", "g", "h"), "*fp32")
SCALARS = {"row_stride": "i32", "out_stride": "i32", "V": "i32", "inv_temperature": "fp32", "softcap": "fp32"}
FLAGS = ("HAS_BIAS", "HAS_SOFTCAP", "HAS_H", "OVERLAP")


def compiled(name: str, dtype: str, out: str, flags: dict[str, bool], architecture: int) -> Any:
    """Kernel `name` for one GPU architecture, as `launch` does it where V is a multiple of 16.

    Args:
        name: a field of `Kernels`.
        dtype: "bf16" or "fp32", of the logits.
        out: the same, of dlogits; another than `dtype` means over the memory of the logits.
        flags: options of the kernel that are on.
        architecture: 80 for A100, 90 for H100 and H200.

    Returns:
        Triton's CompiledKernel: `asm["ptx"]`, `asm["cubin"]`, `metadata`.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = getattr(kernels(), name)
    types = POINTERS | SCALARS | {"logits": f"*{dtype}", "out": f"*{out}"}
    constants: dict[str, Any] = {flag: flags.get(flag, False) for flag in FLAGS} | {"OVERLAP": out != dtype}
    constants |= {"LANES": 32 * WARPS * VECTORS, "WIDTH": 16 // DTYPES[dtype]}
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (i,): divisible
        for i, (a, t) in enumerate(signature.items())
        if t[0] == "*" or a in ("row_stride", "out_stride", "V")
    }
    source = ASTSource(kernel, signature, {a: v for a, v in constants.items() if a in signature}, attributes)
    return compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": WARPS})


def usage(kernel: Any) -> dict[str, int]:
    """Registers per thread, spilled bytes per thread and shared memory per block of a compiled kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text!r}")
    registers, stack, local = map(int, found.groups())
    # cuobjdump's SHARED counts a kilobyte that sm_90 reserves for itself
    return {"registers": registers, "spill_bytes": stack + local, "shared_bytes": kernel.metadata.shared}


def report() -> dict[str, Any]:
    """Usage of both kernels for every architecture, dtype and set of options that a user can reach."""
    import triton

    rows = []
    for architecture, name, (label, flags) in product(ARCHITECTURES, Kernels._fields, OPTIONS.items()):
        pairs = [("bf16", "bf16"), ("fp32", "fp32")] + ([("fp32", "bf16")] if name == "gradient" else [])
        if name == "stats" and label == "entropy":
            continue
        for dtype, out in pairs:
            row = {"kernel": name, "sm": architecture, "logits": dtype, "out": out, "options": label}
            rows.append(row | usage(compiled(name, dtype, out, flags, architecture)))
    launch = {
        "warps": WARPS,
        "vectors": VECTORS,
        "block": {d: 32 * WARPS * VECTORS * 16 // b for d, b in DTYPES.items()},
    }
    return {"triton": triton.__version__, "launch": launch, "kernels": rows}


def main(arguments: list[str] | None = None) -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="where to write the JSON; - prints it")
    target = parser.parse_args(arguments).file
    text = json.dumps(report(), indent=1) + "\n"
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
