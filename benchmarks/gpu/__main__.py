"""Run the pieces, each in a process of its own, and say what they found. See gpu.sh.

OUT/gpu.json holds all of it, and is written after every piece; OUT/pieces/ has the JSON and the output of each.
A second call goes on where the first ended: a piece that has passed is not run again on the same hardware with the same
versions, unless a file of this repository that it has imported has changed. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dgpo.files import FolderLock, read_json, write_json_atomic
from gpu.piece import REHEARSAL, ROOT, digest
from gpu.pieces import PIECES, REHEARSAL_FACTOR, TOTAL, Piece, allowance

SHORTEST = 10.0
"""With fewer seconds left, no further piece is begun."""
GRACE = 5.0
"""A piece is told to end this many seconds before it is killed."""

PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "FAILED", "not possible", "not run"


def main() -> int:
    """Run what has to run; 1 if anything failed, 2 if nothing can run."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for gpu.json and pieces/")
    parser.add_argument("--only", nargs="+", choices=[piece.name for piece in PIECES], metavar="NAME", default=None)
    parser.add_argument("--budget", type=float, default=None, help=f"seconds for all pieces together ({TOTAL:g})")
    parser.add_argument("--list", action=Listing, nargs=0, help="print the pieces and end")
    flags = parser.parse_args()
    factor = REHEARSAL_FACTOR if REHEARSAL else 1.0
    budget = TOTAL * factor if flags.budget is None else flags.budget
    chosen = [piece for piece in PIECES if flags.only is None or piece.name in flags.only]
    # as an interruption: the piece that runs must end with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with FolderLock(flags.out, "measuring into"):
        return everything(flags.out, chosen, time.monotonic() + budget, factor)


class Listing(argparse.Action):
    """--list: what there is."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        view = Table(title="pieces of benchmarks/gpu.sh, in their order")
        for column in ("piece", "part", "question", "seconds"):
            view.add_column(column, justify="right" if column == "seconds" else "left")
        for piece in PIECES:
            view.add_row(piece.name, piece.part, piece.question, f"{piece.seconds:g}{'+' if piece.grows else ''}")
        Console().print(view)
        parser.exit()


def everything(out: Path, chosen: list[Piece], deadline: float, factor: float) -> int:
    """Run the chosen pieces that have not passed yet, and print the table."""
    here = about()
    if here is None:
        return 2
    whole = out / "gpu.json"
    document: dict[str, Any] = read_json(whole) if whole.is_file() else {"pieces": {}}
    done: dict[str, Any] = document["pieces"]
    for place, piece in enumerate(chosen):
        if piece.name in done and stale(done[piece.name], here) is None:
            print(f"{piece.name}: passed before, on the same code", flush=True)
            continue
        left = deadline - time.monotonic()
        later = factor * sum(p.seconds for p in chosen[place + 1 :] if stale(done.get(p.name), here) is not None)
        seconds = allowance(piece, left / factor, later / factor) * factor
        if seconds < SHORTEST:
            done.setdefault(piece.name, {"status": NOT_RUN, "reason": f"{max(left, 0):.0f} s were left"})
            continue
        print(f"{piece.name}: {piece.question}? At most {seconds:.0f} s ...", flush=True)
        done[piece.name] = one(piece, out / "pieces", seconds)
        result = done[piece.name]
        print(f"{piece.name}: {result['status']} after {result['wall_s']:.0f} s. {reason(result)}", flush=True)
        write(whole, done, here)
    write(whole, done, here)
    table({piece.name: done[piece.name] for piece in chosen if piece.name in done}, here)
    print(f"\n{whole}")
    failed = [piece.name for piece in chosen if done.get(piece.name, {}).get("status") in (FAILED, NOT_RUN)]
    return 1 if failed else 0


def about() -> dict[str, Any] | None:
    """Hardware and versions, from a process of its own: this one must not hold a context on the device."""
    # what it complains of is for the terminal: torch cannot be imported, say
    command = [sys.executable, "-m", "gpu.piece"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment())
    if done.returncode != 0:
        print(f"{sys.executable} cannot run the pieces, see above; PYTHON names another one", file=sys.stderr)
        return None
    here: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not REHEARSAL and "sm" not in here["hardware"]:
        print("no CUDA device; GPU_REHEARSAL=1 benchmarks/gpu.sh OUT runs the same on a CPU, in small", file=sys.stderr)
        return None
    return here


def environment() -> dict[str, str]:
    """Of a piece: no network, no progress bars, and one GPU, or none in a rehearsal."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    found = {**os.environ, **quiet, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    path = [str(ROOT / "benchmarks"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    # the first one: a trainer without a launcher refuses several
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {**found, "CUDA_VISIBLE_DEVICES": "" if REHEARSAL else first}


def stale(result: dict[str, Any] | None, here: dict[str, Any]) -> str | None:
    """Why a piece has to run again; None if what is there holds."""
    if result is None or result["status"] != PASSED:
        return "it has not passed"
    if result["rehearsal"] != REHEARSAL or any(result[name] != here[name] for name in ("hardware", "versions")):
        return "it was run elsewhere"
    for name, hashed in result["code"].items():
        file = ROOT / name
        if not file.is_file() or digest(file) != hashed:
            return f"{name} has changed"
    return None


def one(piece: Piece, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a piece; its document, with what became of the process."""
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder / f"{piece.name}.json", folder / f"{piece.name}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"gpu.{piece.name}", "--out", str(file.absolute())]
    command += ["--seconds", f"{seconds - GRACE:.1f}"]
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # what a piece has started ends with it, also when this process is interrupted
            end_group(process)
    result: dict[str, Any] = read_json(file) if file.is_file() else {"failures": [], "rows": []}
    result["wall_s"] = round(time.monotonic() - started, 1)
    result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    if code is None:
        result["failures"].append(f"not finished after {seconds:.0f} s: killed")
    elif code != 0 and not (result["failures"] and result.get("complete")):
        result["failures"].append(f"the process ended with status {code}: {last_line(log)}")
    elif code == 0 and not result.get("complete"):
        result["failures"].append("the process ended with status 0 and without a result")
    result["status"] = FAILED if result["failures"] else SKIPPED if result["skipped"] else PASSED
    return result


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """The last line of an output that says anything."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def write(whole: Path, done: dict[str, Any], here: dict[str, Any]) -> None:
    """Keep what is there, in the order of the table."""
    ordered = {piece.name: done[piece.name] for piece in PIECES if piece.name in done}
    write_json_atomic(whole, {"rehearsal": REHEARSAL, **here, "pieces": ordered})


def reason(result: dict[str, Any]) -> str:
    """What to say of a piece in one line."""
    more = f" (and {len(result['failures']) - 1} more)" if len(result.get("failures", [])) > 1 else ""
    if result.get("failures"):
        return str(result["failures"][0]) + more
    return str(result.get("skipped") or result.get("reason") or result.get("headline") or "")


def table(done: dict[str, Any], here: dict[str, Any]) -> None:
    """One row per piece."""
    view = Table(title=f"{'rehearsal on ' if REHEARSAL else ''}{here['hardware']['device']}")
    for column in ("piece", "outcome", "seconds", "what it found"):
        view.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for name, result in done.items():
        seconds = f"{result['wall_s']:.0f}" if "wall_s" in result else ""
        view.add_row(name, result["status"], seconds, reason(result))
    width = None if sys.stdout.isatty() else 120
    Console(width=width, markup=False).print(view)


if __name__ == "__main__":
    sys.exit(main())
