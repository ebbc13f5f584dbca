"""Generation, rewards and updates together: ours, ours before and stock TRL, with the seconds of each part.

    python benchmarks/whole_loop.py                          # about 25 minutes of one core
    python benchmarks/whole_loop.py --cases demo

The model samples by itself, and the first token of a response decides when it ends (`Countdown`), so that all trainers
generate responses of the same lengths, by whatever loop, and have the same work. A round is one generation and the
updates on it; for the demo's model, several of them, after one that is not counted. Every trainer is a process of its
own, they take turns, and seconds are process time on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from math import exp
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table

import dgpo
from dgpo.files import write_json_atomic

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_fast
from trainer_step import STOCK, machine, train_silently
from updates import DEMO, OURS, THEN, TOKENIZER, Case, Meter, quietly, trainer_of
from workers import ROOT, Worker, add_before, checkout_of, commit_of, serve

RESULTS = Path(__file__).parent / "results" / "whole_loop.json"
PARTS = ("generation", "rewards", "preparation", "updates")
"""Sampling; the reward functions; what else is done before the updates (advantages, log π_old); the updates."""
TRAINERS = (STOCK, THEN, OURS)
SPECIAL = 3
"""Padding, end and unknown are the first ids."""
CASES = {
    "SmolLM2-135M": Case(layers=30, mean=64, longest=256, accumulation=8, updates_per_generation=2, updates=2),
    "demo": replace(DEMO, rounds=5),
}


class Countdown:
    """Lets a model generate responses of given lengths, in whatever order and batch a loop computes its rows.

    Every token of the vocabulary, the special ones aside, stands for a number of tokens that come after it, 1 to
    `longest` - 1. The first token is drawn so that this number has the distribution of the case's lengths; after a
    token, only those of one less are possible, and after one that stands for 1 only the end. Each row follows from its
    own last token, so a loop may drop rows that have ended, or compute a shared prompt once.

    Args:
        model: whose `generate` it is.
        case: of the lengths.
    """

    def __init__(self, model: Any, case: Case) -> None:
        ids = torch.arange(model.config.vocab_size)
        self._left = torch.where(ids < SPECIAL, -1, 1 + (ids - SPECIAL) % (case.longest - 1))
        self._left[TOKENIZER.eos_token_id] = 0
        share = shares(case)
        counts = torch.bincount(self._left[self._left >= 0], minlength=case.longest)
        self._first = torch.where(self._left < 0, 0.0, (share / counts)[self._left]).log()
        self._generate, self._active = model.generate, False
        model.generate = self._generating
        model.register_forward_hook(self._bound, with_kwargs=True)

    def _generating(self, *given: Any, **options: Any) -> Any:
        self._active = True
        try:
            return self._generate(*given, **options)
        finally:
            self._active = False

    def _bound(self, _module: Any, _given: Any, named: dict[str, Any], output: Any) -> None:
        if not self._active:
            return
        ids, logits = named["input_ids"], output.logits
        if ids.shape[1] > 1:
            logits[:, -1] = self._first
            return
        left = self._left[ids]
        # padding after the end may be followed by anything
        logits[:, -1] = logits[:, -1].masked_fill((self._left != left - 1) & (left > 0), -torch.inf)


def shares(case: Case) -> torch.Tensor:
    """Of the lengths 1 to `longest`: those of rounded log-normal numbers, cut there."""
    edges = torch.arange(1, case.longest, dtype=torch.float64) + 0.5
    median = case.mean * exp(-(case.sigma**2) / 2)
    below = torch.special.ndtr((edges / median).log() / case.sigma) if case.sigma else (edges > median).double()
    return torch.cat([below, below.new_ones(1)]).diff(prepend=below.new_zeros(1))


class Clock:
    """Process time of methods of a trainer, by their names."""

    def __init__(self, trainer: Any, names: tuple[str, ...]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        for name in names:
            setattr(trainer, name, self._timed(name, getattr(trainer, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return method(*given, **options)
            finally:
                self.seconds[name] += time.process_time() - began

        return timed

    def reset(self) -> None:
        """Start anew."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)


class Laps(Meter):
    """The seconds of the parts too, of the same updates."""

    def __init__(self, skip: int, clock: Clock) -> None:
        super().__init__(skip, None)
        self._clock = clock

    def _start(self) -> None:
        super()._start()
        self._clock.reset()

    def _stop(self) -> None:
        super()._stop()
        made, rewards = (self._clock.seconds[name] for name in ("_generate", "_calculate_rewards"))
        before = self._clock.seconds["_generate_and_score_completions"]
        self.found |= {"generation": made, "rewards": rewards, "preparation": before - made - rewards}
        self.found["updates"] = self.found["seconds"] - before


def loop(case: Case, name: str, round_: int) -> dict[str, Any]:
    """One round of one trainer, in this process.

    Returns:
        `seconds` per update, and those of each of `PARTS`; `peak_mib`; `lengths` of the responses of the first
        generation; `source`, our package.
    """
    quietly()
    model = case.model()
    Countdown(model, case)
    completions = case.rows * case.accumulation * case.updates_per_generation
    lengths: list[list[int]] = []
    scripted = case.rewards()

    def reward(completion_ids: list[list[int]], **given: Any) -> list[float]:
        lengths.append([len(ids) for ids in completion_ids])
        return scripted(**given)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            name,
            model,
            case.settings(folder) | {"seed": round_},
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": [f"{i:0{case.prompt}d}" for i in range(completions)]}),
            processing_class=TOKENIZER,
        )
        clock = Clock(trainer, ("_generate", "_calculate_rewards", "_generate_and_score_completions"))
        laps = Laps(case.skip, clock)
        train_silently(trainer, laps)
    counted = case.updates - case.skip
    return {
        **{key: laps.found[key] / counted for key in ("seconds", "wall", *PARTS)},
        "peak_mib": laps.found["peak_mib"],
        "lengths": lengths[0],
        "source": dgpo.__file__,
    }


def measure(name: str, before: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Trainer -> what `loop` returned in every round.

    Raises:
        RuntimeError: the responses of two trainers differ in length, or one imported another checkout than its own.
    """
    found: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in TRAINERS}
    sources = {trainer: before if trainer == THEN else ROOT for trainer in TRAINERS}
    with ExitStack() as stack:
        running = {
            trainer: stack.enter_context(Worker(Path(__file__), ["--serve"], sources[trainer])) for trainer in TRAINERS
        }
        for round_ in range(rounds):
            turn = round_ % len(TRAINERS)
            for trainer in TRAINERS[turn:] + TRAINERS[:turn]:
                row = running[trainer].ask(case=asdict(CASES[name]), trainer=trainer, round=round_)
                if not Path(row["source"]).is_relative_to(sources[trainer]):
                    raise RuntimeError(f"{name}: {trainer} imported {row['source']}; expected {sources[trainer]}")
                found[trainer].append(row)
                print(f"{name}, round {round_ + 1}, {trainer}: {row['seconds']:.3f} s", flush=True)
            if len({tuple(rows[-1]["lengths"]) for rows in found.values()}) > 1:
                raise RuntimeError(f"{name}: responses of the first generation differ in length between trainers")
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a trainer's rounds: the seconds of every round, medians of the parts, memory of the first round."""
    return {
        "rounds": [row["seconds"] for row in rounds],
        "wall": [row["wall"] for row in rounds],
        "parts": {part: median(row[part] for row in rounds) for part in PARTS},
        "peak_mib": rounds[0]["peak_mib"],
        "tokens": [sum(row["lengths"]) for row in rounds],
    }


def table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """One row per trainer."""
    view = Table(title=title)
    view.add_column("trainer", min_width=18)
    for column in ("s/update", "x TRL", "min .. max", *PARTS, "MiB"):
        view.add_column(column, justify="right", no_wrap=True)
    for name, ratio in times_as_fast({name: row["rounds"] for name, row in rows.items()}, STOCK).items():
        view.add_row(
            name,
            f"{ratio.seconds:.3f}",
            f"{ratio.times:.2f}",
            f"{ratio.low:.2f} .. {ratio.high:.2f}",
            *(f"{rows[name]['parts'][part]:.3f}" for part in PARTS),
            f"{rows[name]['peak_mib']:,.0f}",
        )
    return view


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, help="default: those of the case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_before(parser)
    args = parser.parse_args()
    if args.serve:
        serve(lambda request: loop(Case(**request["case"]), request["trainer"], request["round"]))
        return
    document = json.loads(args.out.read_text()) if args.out.is_file() else {"cases": {}}
    with checkout_of(args.before) as (before, commit):
        for name in args.cases:
            facts = machine()
            rows = {
                trainer: summary(rounds)
                for trainer, rounds in measure(name, before, args.rounds or CASES[name].rounds).items()
            }
            Console(width=140).print(table(name, rows))
            document["cases"][name] = {
                "machine": facts,
                "commit": commit_of(ROOT),
                "before": commit,
                "case": asdict(CASES[name]),
                "trainers": rows,
            }
            write_json_atomic(args.out, document)
    print(args.out)


if __name__ == "__main__":
    main()
