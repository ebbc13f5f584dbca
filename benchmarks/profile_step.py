"""Where the time of an update goes: the share of every part, of SmolLM2-135M's shapes and of the demo.

    python benchmarks/profile_step.py                 # about 5 minutes of one core
    python benchmarks/profile_step.py --cases demo

The cases are those of `whole_loop.py`: the model samples by itself, and responses have given lengths. Seconds are
process time on one thread and exclusive: a part does not include those that it calls. The parts add up to the whole.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from dgpo.files import write_json_atomic
from dgpo.training import step_loss

sys.path.insert(0, str(Path(__file__).parent))
from trainer_step import machine, train_silently
from updates import OURS, TOKENIZER, Case, quietly, trainer_of
from whole_loop import CASES, Countdown

RESULTS = Path(__file__).parent / "results" / "profile_step.json"
REST = "loop of transformers and TRL"
OPAQUE = {"generation", "old log-probs", "rewards"}
"""Parts that keep what they call, the model above all."""


class Shares(TrainerCallback):  # type: ignore[misc]
    """Exclusive seconds by part, from the end of update `skip` to the end of the last."""

    def __init__(self, skip: int) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.total = 0.0
        self._skip, self._open = skip, [REST]
        self._since = self._began = time.process_time()

    def enter(self, part: str) -> None:
        """What follows belongs to the part."""
        self._book()
        self._open.append(part)

    def leave(self) -> None:
        """And no more."""
        self._book()
        self._open.pop()

    def _book(self) -> None:
        now = time.process_time()
        self.seconds[next((part for part in self._open if part in OPAQUE), self._open[-1])] += now - self._since
        self._since = now

    def of(self, owner: Any, name: str, part: str) -> None:
        """Count the calls of a method."""
        setattr(owner, name, self.counted(getattr(owner, name), part))

    def counted(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, whose time belongs to the part."""

        def timed(*given: Any, **options: Any) -> Any:
            self.enter(part)
            try:
                return function(*given, **options)
            finally:
                self.leave()

        return timed

    def on_pre_optimizer_step(self, *given: Any, **options: Any) -> None:
        self.enter("optimiser")

    def on_optimizer_step(self, *given: Any, **options: Any) -> None:
        self.leave()

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == self._skip:
            self.seconds.clear()
            self._since = self._began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._book()
        self.total = self._since - self._began


def profile(case: Case) -> Shares:
    """One generation and its updates by `DGPOTrainer`, or several where the case says so."""
    quietly()
    model = case.model()
    Countdown(model, case)
    shares = Shares(case.skip)
    completions = case.rows * case.accumulation * case.updates_per_generation
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            OURS,
            model,
            case.settings(folder) | {"seed": 0},
            reward_funcs=case.rewards(),
            train_dataset=Dataset.from_dict({"prompt": [f"{i:0{case.prompt}d}" for i in range(completions)]}),
            processing_class=TOKENIZER,
        )
        shares.of(trainer, "_generate_single_turn", "generation")
        shares.of(trainer, "_generate", "texts and lengths of completions")
        shares.of(trainer, "_calculate_rewards", "rewards")
        shares.of(trainer, "_generate_and_score_completions", "advantages and tensors of a generation")
        shares.of(trainer, "_prepare_inputs", "sorting, splitting")
        shares.of(trainer._old, "fill", "old log-probs")
        shares.of(trainer, "_compute_loss", "loss beside the head, checks, metrics")
        shares.of(trainer, "log", "logging")
        shares.of(trainer.accelerator, "backward", "backward")
        shares.of(trainer.accelerator, "clip_grad_norm_", "clipping")
        shares.of(model.base_model, "forward", "transformer, forward")
        head = shares.counted(step_loss.linear_loss_of, "head: logits, loss and their gradients")
        with patch.object(step_loss, "linear_loss_of", head):
            train_silently(trainer, shares)
    return shares


def table(title: str, shares: Shares, updates: int) -> Table:
    """A row per part, the largest first."""
    view = Table(title=f"{title}: {shares.total / updates:.3f} s per update")
    view.add_column("part")
    view.add_column("share", justify="right")
    for part, seconds in sorted(shares.seconds.items(), key=lambda row: -row[1]):
        view.add_row(part, f"{seconds / shares.total:.1%}")
    return view


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    document: dict[str, Any] = {"machine": machine(), "cases": {}}
    for name in args.cases:
        case = CASES[name]
        found, updates = profile(case), case.updates - case.skip
        Console().print(table(name, found, updates))
        document["cases"][name] = {"seconds": found.total / updates, "parts": dict(found.seconds), "updates": updates}
    print(write_json_atomic(args.out, document))


if __name__ == "__main__":
    main()
