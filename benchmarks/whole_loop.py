"""Generation, rewards and updates together: ours, ours before and stock TRL, with the seconds of each part.

    python benchmarks/whole_loop.py                          # about 25 minutes of one core
    python benchmarks/whole_loop.py --cases demo

The model samples by itself, and every response ends where a list of lengths says: before, the end token has no
probability, and there, all of it. The weights are random, so all trainers sample the same tokens in the first
generation, and have the same work. A round is one generation and the updates on it; for the demo's model, several of
them, after one that is not counted. Every trainer is a process of its own, they take turns, and seconds are process
time on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import LogitsProcessor, LogitsProcessorList

import dgpo
from dgpo.files import write_json_atomic
from dgpo.tasks import Addition

sys.path.insert(0, str(Path(__file__).parent))
from ratios import times_as_fast
from scripted import random_numbers
from trainer_step import STOCK, machine, train_silently
from updates import OURS, THEN, TOKENIZER, Case, Meter, quietly, trainer_of
from workers import ROOT, Worker, add_before, checkout_of, commit_of, serve

RESULTS = Path(__file__).parent / "results" / "whole_loop.json"
PARTS = ("generation", "rewards", "preparation", "updates")
"""Sampling; the reward functions; what else is done before the updates (advantages, log π_old); the updates."""
TRAINERS = (STOCK, THEN, OURS)
CASES = {
    "SmolLM2-135M": Case(layers=30, mean=64, longest=256, accumulation=8, updates_per_generation=2, updates=2),
    "demo": Case(
        layers=0,
        mean=Addition.max_new_tokens,
        sigma=0.0,
        longest=Addition.max_new_tokens,
        prompt=8,
        rows=64,
        accumulation=1,
        updates_per_generation=4,
        updates=12,
        skip=4,
        rounds=5,
    ),
}


class EndsAt(LogitsProcessor):  # type: ignore[misc]
    """Ends every row of one call of `generate` at its length, the end token included."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = torch.tensor(lengths)
        self._prompt: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        last = self._lengths <= input_ids.shape[1] - self._prompt + 1
        end = torch.arange(scores.shape[1]) == TOKENIZER.eos_token_id
        return scores.masked_fill(last[:, None] != end, -torch.inf)


def end_at(model: Any, case: Case, round_: int) -> None:
    """Let `model.generate` end its rows at the lengths of a case, other ones in every call."""
    generate, calls = model.generate, 0

    def bounded(*given: Any, **options: Any) -> Any:
        nonlocal calls
        count = options["input_ids"].shape[0]
        lengths = case.lengths(count, random_numbers(count, 1000 * round_ + calls))
        calls += 1
        return generate(*given, **options, logits_processor=LogitsProcessorList([EndsAt(lengths)]))

    model.generate = bounded


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
        `seconds` per update, and those of each of `PARTS`; `peak_mib`; `batches`, a hash of the first generation;
        `tokens`, of its responses; `source`, our package.
    """
    quietly()
    model = case.model()
    end_at(model, case, round_)
    completions = case.rows * case.accumulation * case.updates_per_generation
    first: list[list[list[int]]] = []
    scripted = case.rewards()

    def reward(completion_ids: list[list[int]], **given: Any) -> list[float]:
        first.append(completion_ids)
        return scripted(**given)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            name,
            model,
            case.settings(folder),
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
        "batches": hashlib.sha256(json.dumps(first[0]).encode()).hexdigest()[:16],
        "tokens": sum(map(len, first[0])),
        "source": dgpo.__file__,
    }


def measure(name: str, before: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Trainer -> what `loop` returned in every round.

    Raises:
        RuntimeError: two trainers have sampled different tokens, or one has imported another checkout than its own.
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
            if len({rows[-1]["batches"] for rows in found.values()}) > 1:
                raise RuntimeError(f"{name}: the trainers have sampled different tokens in their first generation")
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a trainer's rounds: the seconds of every round, medians of the parts, memory of the first round."""
    return {
        "rounds": [row["seconds"] for row in rounds],
        "wall": [row["wall"] for row in rounds],
        "parts": {part: median(row[part] for row in rounds) for part in PARTS},
        "peak_mib": rounds[0]["peak_mib"],
        "tokens": [row["tokens"] for row in rounds],
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
