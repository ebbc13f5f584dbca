"""Write benchmarks/RESULTS.md from the JSON files in benchmarks/results.

python benchmarks/report.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from ratios import Ratio, times_as_fast

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
BOUND, STOCK, BEFORE = "three products", "GRPOTrainer (TRL)", "DGPOTrainer, before"


def read(name: str) -> dict[str, Any] | None:
    """A result file, or None if nobody has measured it."""
    file = HERE / "results" / name
    return json.loads(file.read_text()) if file.is_file() else None


def head(document: dict[str, Any]) -> list[str]:
    """The output head against its peers, one table per shape."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    threads = f"{document['threads']} thread{'s' if document['threads'] > 1 else ''}"
    if environment := document.get("environment"):
        threads += f" ({', '.join(f'{name}={value}' for name, value in environment.items())})"
    lines = [f"Measured {document['measured']} on {document['device']}, {threads}; {versions}.", ""]
    for table in document["tables"]:
        bound = next(row["seconds"] for row in table["rows"] if row["variant"] == BOUND)
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
            ratio = row["seconds"] / bound
            lines.append(f"| {row['variant']} | {row['seconds']:.3f} | {ratio:.2f} | {span} | {memory} |")
        lines.append("")
    return lines


def steps(document: dict[str, Any]) -> list[str]:
    """Whole optimiser steps against stock TRL."""
    lines = [
        "| model and batch | trainer | ms per update | times as fast as TRL | range over rounds |",
        "|---|---|---:|---:|---:|",
    ]
    for title, case in document["cases"].items():
        for name, ratio in ratios(case["trainers"], STOCK).items():
            lines.append(f"| {title} | {name} | {1000 * ratio.seconds:.1f} | {fast(ratio)} |")
    return [*lines, ""]


def loop(document: dict[str, Any]) -> list[str]:
    """Updates with generation, rewards and logging of the demo's model."""
    lines = [
        "| completion tokens | trainer | ms per update | times as fast as TRL | range over rounds |",
        "|---|---|---:|---:|---:|",
    ]
    for length, rows in document["by_completion_length"].items():
        for name, ratio in ratios(rows, STOCK).items():
            lines.append(f"| {length} | {name} | {1000 * ratio.seconds:.1f} | {fast(ratio)} |")
    return [*lines, ""]


def ragged(document: dict[str, Any]) -> list[str]:
    """Updates on lengths that differ: a table per case."""
    lines: list[str] = []
    for title, case in document["cases"].items():
        about, rows = case["case"], case["trainers"]
        lengths = (
            f"log-normal lengths with mean {about['mean']:g} and σ {about['sigma']:g}, at most {about['longest']:,}"
            if about["sigma"]
            else f"{about['longest']} tokens each"
        )
        batches = f"{about['rows']} x {about['accumulation']}" if about["accumulation"] > 1 else str(about["rows"])
        baselines = [name for name in (STOCK, BEFORE) if name in rows] or [next(iter(rows))]
        names = "".join(f" times as fast as {name} | range over rounds |" for name in baselines)
        lines += [
            f"**{title}**: {batches} completions, {lengths}; prompts of {about['prompt']}, groups of {about['group']}. "
            f"{measured(case)}",
            "",
            f"| trainer | s per update |{names} tokens computed | padding | peak memory, MiB | of it activations |",
            f"|---|---:|{'---:|---:|' * len(baselines)}---:|---:|---:|---:|",
        ]
        compared = [ratios(rows, baseline) for baseline in baselines]
        for name, row in rows.items():
            seconds = compared[0][name].seconds
            peak, rest = row["peak_mib"], row["peak_mib"] - row["state_mib"]
            padding = "-" if row["padding"] is None else f"{row['padding']:.1%}"
            lines.append(
                f"| {name} | {seconds:.3f} | {' | '.join(fast(found[name]) for found in compared)} | "
                f"{row['positions']:,} | {padding} | {peak:,.0f} | {rest:,.0f} |"
            )
        lines.append("")
        for name, row in rows.items():
            if row["share"] < 1:
                lines += [f"{name}: measured on {row['share']:.1%} of the update and scaled to all of it.", ""]
            if row.get("source"):
                lines += [f"{name}: {row['source']}.", ""]
    return lines


def whole_loop(document: dict[str, Any]) -> list[str]:
    """Generation, rewards and updates: a table per case."""
    lines: list[str] = []
    for title, case in document["cases"].items():
        about, rows = case["case"], case["trainers"]
        parts = list(next(iter(rows.values()))["parts"])
        count = about["rows"] * about["accumulation"]
        spread = f", σ {about['sigma']:g}, at most {about['longest']:,}" if about["sigma"] else ""
        lines += [
            f"**{title}**: {about['updates_per_generation']} updates of {count} completions per generation, "
            f"lengths of mean {about['mean']:g}{spread}. {measured(case)}",
            "",
            f"| trainer | s per update | times as fast as TRL | range over rounds | {' | '.join(parts)} | "
            "peak memory, MiB |",
            f"|---|---:|---:|---:|{'---:|' * len(parts)}---:|",
        ]
        for name, ratio in ratios(rows, STOCK).items():
            seconds = " | ".join(f"{rows[name]['parts'][part]:.3f}" for part in parts)
            lines.append(
                f"| {name} | {ratio.seconds:.3f} | {fast(ratio)} | {seconds} | {rows[name]['peak_mib']:,.0f} |"
            )
        lines.append("")
    return lines


def growth(document: dict[str, Any]) -> list[str]:
    """Seconds over tokens and over the spread of lengths."""
    lines = [
        f"A small model; [the figure](../docs/figures/growth.svg) has the slopes. {measured(document)}",
        "",
        "| tokens | σ | trainer | s per update | times as fast as TRL | range over rounds |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    rows = [(row, document["at"]["sigma"]) for row in document["by_tokens"]]
    rows += [(row, row["sigma"]) for row in document["by_spread"]]
    for row, sigma in rows:
        for name, ratio in times_as_fast(row["seconds"], STOCK).items():
            lines.append(f"| {row['tokens']:,.0f} | {sigma:g} | {name} | {ratio.seconds:.3f} | {fast(ratio)} |")
    return [*lines, ""]


def measured(document: dict[str, Any]) -> str:
    """When, and which commits."""
    return f"Measured {document['machine']['date']}, commit {document['commit'][:7]}, before: {document['before'][:7]}."


def ratios(rows: dict[str, dict[str, Any]], baseline: str) -> dict[str, Ratio]:
    """Of the rows of a file that have their rounds."""
    return times_as_fast({name: row["rounds"] for name, row in rows.items()}, baseline)


def fast(ratio: Ratio) -> str:
    """Two columns: the quotient of the medians and its range."""
    return f"{ratio.times:.2f} | {ratio.low:.2f} .. {ratio.high:.2f}"


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
        f"{kill['kills']} of 1,000 answers never end, and each costs {beside:.0f} ms in addition to the deadline. "
        f"{versions}.",
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


NO_GPU = "The figures above were not measured on a GPU. `benchmarks/gpu.sh OUT` checks and measures everything on one."


def gpu(document: dict[str, Any]) -> list[str]:
    """What benchmarks/gpu.sh found: a row per piece; then the tables of what was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    lines = [f"Measured on {document['hardware']['device']}; {versions}.", ""]
    lines += ["| piece | outcome | seconds | what it found |", "|---|---|---:|---|"]
    for name, piece in document["pieces"].items():
        said = "; ".join(piece.get("failures", [])) or piece.get("skipped") or piece.get("headline") or ""
        lines.append(f"| {name} | {piece['status']} | {piece.get('wall_s', '')} | {said.replace('|', '/')} |")
    lines.append("")
    for title, names, part in (
        ("The output head", ("head",), gpu_head),
        ("Whole optimiser steps", ("steps",), gpu_steps),
        ("A real model learns", ("learns_dgpo", "learns_grpo"), gpu_learns),
        ("Many seeds at once", ("seeds",), gpu_seeds),
    ):
        rows = [row for name in names for row in document["pieces"].get(name, {}).get("rows", [])]
        if rows:
            lines += [f"### {title}", "", *part(rows), ""]
    return lines


def gpu_head(rows: list[dict[str, Any]]) -> list[str]:
    """Every variant that was measured, and what was not, by name."""
    lines = [
        "Ratios to the three products of the same round, medians; `dgpo` with its own backend and chunk.",
        "",
        "| model, N, H | zero advantage | | ms | x the three products | range | goal | peak memory, MiB |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "model" not in row:
            continue
        name = (
            f"| {row['model']}, {row['N']:,}, {row['H']:,} | {row['zero_advantage']:.0%} | {row.get('variant', '')} |"
        )
        if "ms" not in row:
            lines.append(f"{name} {row['missing']} | | | | |")
            continue
        goal = f"{row['goal']:.2f}" if "goal" in row else ""
        span = f"{row['low']:.2f} .. {row['high']:.2f}"
        lines.append(f"{name} {row['ms']:.2f} | {row['ratio']:.2f} | {span} | {goal} | {_whole(row['peak_mib'])} |")
    return lines


def gpu_steps(rows: list[dict[str, Any]]) -> list[str]:
    """Seconds, tokens per second and memory of every trainer."""
    lines = [
        "| model | without spread | trainer | s per update | range | tokens per second | x TRL | peak memory, MiB |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "trainer" not in row:
            lines.append(f"| {row['part']} | | {row['not_possible']} | | | | | |")
            continue
        times = "" if row["times_as_fast"] is None else f"{row['times_as_fast']:.2f}"
        lines.append(
            f"| {row['model']} | {row['without_spread']:.0%} | {row['trainer']} | {row['seconds_per_update']:.3f} | "
            f"{row['low']:.3f} .. {row['high']:.3f} | {row['tokens_per_second']:,.0f} | {times} | "
            f"{_whole(row['peak_mib'])} |"
        )
    return lines


def gpu_learns(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracies on held-out problems before and after, of each method."""
    lines = [
        "SmolLM2-135M-Instruct on the word problems of studies/real_model; held-out problems, in percent.",
        "",
        "| method | updates | s per update | metric | before | after | difference (95 % interval) |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        for metric, of in row["accuracies"].items():
            if metric == "problems":
                continue
            change = "{:+.1f} ({:+.1f} .. {:+.1f})".format(*of["difference"]) if "difference" in of else ""
            lines.append(
                f"| {row['method']} | {row['updates']} | {row['seconds_per_update']:.2f} | {metric} | "
                f"{of['before']:.1f} | {of['after']:.1f} | {change} |"
            )
    return lines


def gpu_seeds(rows: list[dict[str, Any]]) -> list[str]:
    """Seconds per seed on the device beside CPU-seconds, and where the cell ended on both."""
    lines = [
        "| | seeds at once | updates | s per seed | CPU-seconds per seed | mean score at the end | of the CPU's run |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "seconds_per_seed" not in row:
            continue
        name = row["arm"] if row["part"] == "cell" else "speed"
        scores = [f"{row[key]:.3f}" if key in row else "" for key in ("score", "committed_score")]
        lines.append(
            f"| {name} | {row['seeds']} | {row['updates']} | {row['seconds_per_seed']:.3f} | "
            f"{row['cpu_seconds_per_seed']:.2f} | {scores[0]} | {scores[1]} |"
        )
    return lines


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def page() -> str:
    """All of RESULTS.md."""
    lines = [
        "# Results",
        "",
        "`python benchmarks/report.py` writes this page from the files in `results/`, and `make bench` measures again.",
        "Compare the ratios, which come from one run on one machine; seconds cannot be compared between machines. A",
        "ratio is the quotient of two medians over rounds, and its range is that of the quotients within one round.",
        "",
        "## The output head: hidden states to loss and gradients",
        "",
    ]
    found = read("head-cpu.json")
    lines += head(found) if found else ["Not measured.", ""]
    for file in sorted((HERE / "results").glob("head-cpu-*-threads.json")):
        lines += head(json.loads(file.read_text()))
    for title, name, part in (
        ("Updates on responses of different lengths", "ragged_step.json", ragged),
        ("Updates on responses of one length", "fused_step.json", steps),
        ("Generation, rewards and updates on responses of different lengths", "whole_loop.json", whole_loop),
        ("The loop of the demo", "trainer_step.json", loop),
        ("How the cost of an update grows", "growth.json", growth),
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
