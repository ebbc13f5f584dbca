"""What every piece shares: the device, clocks, and the JSON file that it leaves.

A piece is a module `benchmarks/gpu/NAME.py` that is a line of the table in `pieces.py`, and ends with

    def measure(found: Findings) -> None: ...

    if __name__ == "__main__":
        sys.exit(run(measure))

`python -m gpu.NAME --out FILE [--seconds S]` (with benchmarks/ and src/ on the path; `GPU_REHEARSAL=1` in the
environment: on the CPU, in small) writes

    {"piece", "rehearsal", "hardware", "versions", "code", "seconds", "complete", "skipped", "headline", "rows",
     "failures"}

again after every row, so that a piece that is killed leaves what it has measured. It exits with 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from dgpo.files import write_json_atomic

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = os.environ.get("GPU_REHEARSAL") == "1"
PACKAGES = (
    *("torch", "triton", "transformers", "trl", "datasets", "accelerate", "peft", "flash-attn", "verl"),
    *("liger_kernel", "cut_cross_entropy", "quack-kernels"),
)


def device() -> torch.device:
    """Where everything runs: the first CUDA device, or the CPU in a rehearsal.

    Raises:
        RuntimeError: there is no CUDA device, and this is no rehearsal.
    """
    if REHEARSAL:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device; GPU_REHEARSAL=1 runs the same on a CPU, in small")
    return torch.device("cuda", 0)


def pick(real: T, rehearsal: T) -> T:
    """A size: that of the measurement, or that of the rehearsal."""
    return rehearsal if REHEARSAL else real


class NotPossible(Exception):
    """A piece cannot be run here, and that is nobody's fault: a model or a package is not at hand."""


class Findings:
    """What a piece has found so far, and the file that it is in."""

    def __init__(
        self, piece: str, file: Path, seconds: float, also: tuple[str, ...], started: float | None = None
    ) -> None:
        self.seconds, self._file, self._also = seconds, file, also
        self._started = time.monotonic() if started is None else started
        self.folder = file.absolute().parent
        """For what a piece leaves beside its JSON file."""
        self.headline = ""
        """The result in a few words, for the table at the end."""
        self.rows: list[dict[str, Any]] = []
        self.failures: list[str] = []
        # as it was imported: a file may be edited while a piece runs
        self._code = code()
        self._about = {"piece": piece, "rehearsal": REHEARSAL, **about()}

    def left(self) -> float:
        """Seconds until this piece should have ended; after that it is killed."""
        return self.seconds - self._elapsed()

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def row(self, **values: Any) -> None:
        """Keep and print one measurement: numbers and short texts by name; what is not finite becomes text."""
        self.rows.append(_plain(values))
        shown = (f"{name} {_short(value)}" for name, value in self.rows[-1].items() if _short(value))
        print("  ".join(shown), flush=True)
        self.save()

    def fail(self, text: str) -> None:
        """Something of ours is wrong."""
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)
        self.save()

    def check(self, right: bool, text: str) -> None:
        """`fail(text)` unless right."""
        if not right:
            self.fail(text)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One part of a piece: an exception in it is a failure of this part, and the parts after it still run."""
        try:
            yield
        except NotPossible as reason:
            self.row(part=name, not_possible=str(reason))
        except Exception as failure:  # noqa: BLE001  # whatever it is, it is in the result
            traceback.print_exc(file=sys.stdout)
            self.fail(f"{name}: {failure!r}"[:500])
        finally:
            free()

    def save(self, *, complete: bool = False, skipped: str | None = None) -> None:
        """Write the file as it is."""
        document = {
            **self._about,
            # only what has come to its end can stand
            "code": {**code(self._also), **self._code} if complete else {},
            "seconds": round(self._elapsed(), 2),
            "complete": complete,
            "skipped": skipped,
            "headline": self.headline,
            "rows": self.rows,
            "failures": self.failures,
        }
        write_json_atomic(self._file, document)


def run(measure: Callable[[Findings], None], *, also: tuple[str, ...] = ()) -> int:
    """Run a piece from the command line; its exit status.

    Args:
        measure: fills the findings. What it raises is a failure; `NotPossible` is a reason why it could not be run.
        also: files and folders of the repository whose code runs in other processes, and so is not seen here.
    """
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file")
    parser.add_argument("--seconds", type=float, default=110, help="it should end within these (110)")
    flags = parser.parse_args()
    piece = Path(inspect.getfile(measure)).stem
    # its seconds count from its start, before the imports
    already = time.time() - psutil.Process().create_time()
    found = Findings(piece, flags.out, flags.seconds, also, time.monotonic() - already)
    # a piece that hangs, at its exit too, says where before it is killed
    faulthandler.dump_traceback_later(max(found.left(), 1), exit=False, file=sys.stdout)
    skipped = None
    try:
        device()
        measure(found)
    except NotPossible as reason:
        skipped = str(reason)
        print(f"not possible here: {reason}", flush=True)
    except Exception as failure:  # noqa: BLE001  # whatever it is, it is in the result
        traceback.print_exc(file=sys.stdout)
        found.fail(repr(failure)[:500])
    found.save(complete=True, skipped=skipped)
    return 1 if found.failures else 0


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if isinstance(value, (dict, list)) else str(value)


# --- what it was measured on ------------------------------------------------------------------------------------------


def about() -> dict[str, Any]:
    """Hardware and versions."""
    return {"hardware": hardware(), "versions": versions()}


def hardware() -> dict[str, Any]:
    """The device by name, and what a time depends on besides."""
    if REHEARSAL or not torch.cuda.is_available():
        return {"device": f"CPU ({platform.machine()})"}
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "device": properties.name,
        "sm": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader", "--id=0"]
    try:
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as failure:
        found["driver"] = f"unknown: {failure!r}"
    return found


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that matter; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def code(also: tuple[str, ...] = ()) -> dict[str, str]:
    """Path -> hash of the files of this repository that this process has imported, and of those named."""
    files = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    for name in also:
        path = ROOT / name
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    inside = sorted(file for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts)
    return {str(file.relative_to(ROOT)): digest(file) for file in inside}


def digest(file: Path) -> str:
    """Short hash of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


# --- clocks and memory ------------------------------------------------------------------------------------------------


def synchronise() -> None:
    """Wait for everything that was given to the GPU; nothing on a CPU."""
    if not REHEARSAL:
        torch.cuda.synchronize()


def milliseconds(step: Callable[[], object]) -> float:
    """Of one step: between two CUDA events, or by the clock on a CPU."""
    if REHEARSAL:
        start = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def peak_mib(step: Callable[[], object]) -> float | None:
    """MiB that a step allocates at most, above what was allocated before; None on a CPU."""
    if REHEARSAL:
        step()
        return None
    free()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def free() -> None:
    """Give cached blocks back, so that one variant's fragments are not another's out of memory."""
    gc.collect()
    if not REHEARSAL and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":  # for the driver, which must not hold a context on the device
    print(json.dumps(about()))
