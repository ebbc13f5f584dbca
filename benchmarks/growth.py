"""How the cost of an update grows with its tokens, and with the spread of their lengths: ours, ours before, stock TRL.

    python benchmarks/growth.py          # about 8 minutes of one core; docs/figures/growth.py draws it

A small Llama (hidden 128, two layers, 8,192 tokens), 64 completions in 16 micro-batches of 4, as in `ragged_step.py`,
by whose rules everything is measured. Prompts are a quarter of the mean of prompt and response together.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

from dgpo.files import write_json_atomic

sys.path.insert(0, str(Path(__file__).parent))
from trainer_step import STOCK, machine
from updates import OURS, THEN, Case, Processes
from workers import ROOT, add_before, checkout_of, commit_of

RESULTS = Path(__file__).parent / "results" / "growth.json"
TRAINERS = (STOCK, THEN, OURS)
COMPLETIONS = 64
TOKENS = (2048, 4096, 8192, 16_384, 32_768, 65_536)
"""Of an update, prompts included, before lengths are drawn and cut."""
SPREADS = (0.0, 0.4, 0.8, 1.2)
"""σ of log-normal lengths."""
AT_SPREAD, AT_TOKENS = 0.8, 8192
"""What is held while the other one varies."""


def case(tokens: int, sigma: float) -> Case:
    """Responses with so many tokens on average, prompts included, cut at four times their mean."""
    row = tokens // COMPLETIONS
    prompt = row // 4
    return Case(layers=2, shape="small", mean=row - prompt, sigma=sigma, longest=4 * (row - prompt), prompt=prompt)


def point(title: str, made: Case, processes: Processes, rounds: int) -> dict[str, Any]:
    """Tokens of an update, mean over rounds, and seconds of every round by trainer."""
    found = processes.measure(title, made, rounds)
    return {
        "tokens": fmean(row["tokens"] for row in found[STOCK]),
        "seconds": {name: [row["seconds"] for row in rows] for name, rows in found.items()},
        "positions": {name: fmean(row["positions"] for row in rows) for name, rows in found.items()},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--spreads", type=float, nargs="+", default=list(SPREADS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    add_before(parser)
    args = parser.parse_args()
    if smallest := [tokens for tokens in args.tokens if tokens < 4 * COMPLETIONS]:
        parser.error(f"--tokens {smallest[0]}; expected at least {4 * COMPLETIONS}, four per completion")
    facts = machine()
    with checkout_of(args.before) as (before, commit), Processes(TRAINERS, before) as processes:
        # what a process does once is not measured
        processes.measure("warm-up", case(args.tokens[0], AT_SPREAD), 1)
        by_tokens = [
            point(f"{tokens:,} tokens", case(tokens, AT_SPREAD), processes, args.rounds) for tokens in args.tokens
        ]
        measured = dict(zip(args.tokens, by_tokens, strict=True))
        by_spread = [
            {"sigma": sigma}
            | (
                measured[AT_TOKENS]
                if sigma == AT_SPREAD and AT_TOKENS in measured
                else point(f"spread {sigma:g}", case(AT_TOKENS, sigma), processes, args.rounds)
            )
            for sigma in args.spreads
        ]
    for row in (*by_tokens, *by_spread):
        seconds = "  ".join(f"{name} {median(times):.2f} s" for name, times in row["seconds"].items())
        print(f"{row['tokens']:>10,.0f} tokens  {seconds}")
    document = {
        "machine": facts,
        "commit": commit_of(ROOT),
        "before": commit,
        "at": {"sigma": AT_SPREAD, "tokens": AT_TOKENS},
        "by_tokens": by_tokens,
        "by_spread": by_spread,
    }
    print(write_json_atomic(args.out, document))


if __name__ == "__main__":
    main()
