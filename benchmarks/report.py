"""Write benchmarks/RESULTS.md from the JSON files in benchmarks/results.

python benchmarks/report.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"


def read(name: str) -> dict[str, Any] | None:
    """A result file, or None if nobody has measured it."""
    file = HERE / "results" / name
    return json.loads(file.read_text()) if file.is_file() else None


def head(document: dict[str, Any]) -> list[str]:
    """The output head against its peers, one table per shape."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    lines = [f"Measured {document['measured']} on {document['device']}, {document['threads']} thread; {versions}.", ""]
    for table in document["tables"]:
        lines += [
            f"**{table['dtype']}, N = {table['N']:,}, H = {table['H']:,}, V = {table['V']:,}**",
            "",
            "| | seconds | x the three products | range over rounds | peak memory, MiB |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in table["rows"]:
            if "missing" in row:
                lines.append(f"| {row['variant']} | not installed | | | |")
                continue
            memory = f"{row['peak_mib']:,.0f}" if "peak_mib" in row else ""
            span = f"{row['low']:.2f} .. {row['high']:.2f}"
            lines.append(f"| {row['variant']} | {row['seconds']:.3f} | {row['ratio']:.2f} | {span} | {memory} |")
        lines.append("")
    return lines


def steps(document: dict[str, Any]) -> list[str]:
    """Whole optimiser steps against stock TRL."""
    lines = [
        "| model and batch | trainer | ms per update | times as fast as TRL | range over rounds |",
        "|---|---|---:|---:|---:|",
    ]
    for title, case in document["cases"].items():
        for name, row in case["trainers"].items():
            speedup, span = row["speedup"], f"{row['speedup']['min']:.2f} .. {row['speedup']['max']:.2f}"
            lines.append(f"| {title} | {name} | {1000 * row['seconds']:.1f} | {speedup['median']:.2f} | {span} |")
    return [*lines, ""]


def grader(document: dict[str, Any]) -> list[str]:
    """Answers per second."""
    rows, versions = document["rows"], ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = ["| answers | dgpo, per second and core | math-verify | ratio |", "|---|---:|---:|---:|"]
    for name in ("numbers", "formulas"):
        row = rows[name]
        lines.append(f"| {name} | {row['dgpo']:,.0f} | {row['math_verify']:,.0f} | {row['ratio']:.1f} |")
    kill = rows["kills"]
    beside = 1000 * kill["seconds_per_kill_beside_deadline"]
    return [
        *lines,
        "",
        f"{kill['kills']} of 1,000 answers that never end: {beside:.0f} ms each beside the deadline. {versions}.",
        "",
    ]


def atlas(document: dict[str, Any]) -> list[str]:
    """Many seeds at once against one trainer per seed."""
    setting, rows, ratio = document["setting"], document["rows"], document["ratio"]
    loads = f"{min(setting['loads']):.1f} to {max(setting['loads']):.1f}"
    lines = ["| | CPU-seconds per seed, smallest | of every round |", "|---|---:|---:|"]
    for name, row in rows.items():
        rounds = ", ".join(f"{seconds:.1f}" for seconds in row["rounds"])
        lines.append(f"| {name} | {row['cpu_seconds_per_seed']:.1f} | {rounds} |")
    return [
        *lines,
        "",
        f"{setting['updates']} updates of {setting['completions_per_update']} completions of a model of "
        f"{setting['parameters']:,} parameters, scaled from {setting['measured_updates']};",
        f"the engine trains {setting['members']} seeds at once. Trainer over engine in the same round: "
        f"{ratio['low']:.1f} .. {ratio['high']:.1f}.",
        f"{document['machine']['cpus']} cores shared with other work (load {loads}), which lengthens CPU time too.",
        "",
    ]


NO_GPU = (
    "Nothing was measured on a GPU: none was at hand. `benchmarks/gpu.sh OUT` checks and measures everything there."
)


def gpu(document: dict[str, Any]) -> list[str]:
    """What benchmarks/gpu.sh found, a row per piece; then the measurements of each piece whose rows are times."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    lines = [f"Measured on {document['hardware']['device']}; {versions}.", ""]
    lines += ["| piece | outcome | seconds | what it found |", "|---|---|---:|---|"]
    for name, piece in document["pieces"].items():
        said = "; ".join(piece.get("failures", [])) or piece.get("skipped") or piece.get("headline") or ""
        lines.append(f"| {name} | {piece['status']} | {piece.get('wall_s', '')} | {said.replace('|', '/')} |")
    return [*lines, ""]


def page() -> str:
    """All of RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/report.py` from the files in `results/`; `make bench` measures again. Read the",
        "ratios: they come from one run on one machine. Seconds do not compare between machines.",
        "",
        "## The output head: hidden states to loss and gradients",
        "",
    ]
    found = read("head-cpu.json")
    lines += head(found) if found else ["Not measured.", ""]
    for title, name, part in (
        ("Whole optimiser steps", "fused_step.json", steps),
        ("The mathematical grader", "grader.json", grader),
        ("Many seeds at once", "atlas_engine.json", atlas),
    ):
        found = read(name)
        lines += [f"## {title}", "", *(part(found) if found else ["Not measured.", ""])]
    found = read("gpu.json")
    lines += ["## On a GPU", "", *(gpu(found) if found else [NO_GPU, ""])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        return 0
    if PAGE.read_text() != page():
        print(f"{PAGE} is out of date: python benchmarks/report.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
