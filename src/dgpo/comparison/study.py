"""What is compared: the arms, their seeds, the settings that each is tuned over, and the runs that this comes to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from dgpo.comparison.outcome import MEASURES, Measure
from dgpo.registry import did_you_mean

Phase = Literal["tuning", "final"]
Setting = Mapping[str, str]
"""Training option -> its value, as text."""

SET_BY_COMPARE = (
    *("objective", "objective_kwargs", "seed", "data_seed", "output_dir", "overwrite_output_dir", "resume"),
    *("resume_from_checkpoint", "record", "record_overwrite", "record_every", "save_strategy", "save_steps"),
    *("save_total_limit", "save_only_model", "disable_tqdm", "eval_benchmarks", "eval_benchmark_steps"),
    *("eval_benchmark_kwargs", "eval_benchmark_on_start", "dry_run", "preset", "load_best_model_at_end"),
)
"""Training options that no axis may name: they say what a run is, where it is written or how it is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method in a setting: what is compared.

    Attributes:
        label: unique within the study.
        options: the training options that make it this arm.
    """

    label: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Attributes:
        phase: "tuning" or "final".
        arm: label of its arm.
        setting: the tuned options; empty if nothing is tuned.
        seed: of the run.
        options: of `dgpo train`, without the folders it writes to.
    """

    phase: Phase
    arm: str
    setting: Setting
    seed: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its folder within that of the study. A final run is found by arm and seed, whatever setting was chosen."""
        parts = [self.phase, slug(self.arm), f"seed-{self.seed}"]
        if self.phase == "tuning":
            parts.insert(2, slug(words(self.setting)))
        return str(PurePosixPath(*parts))

    def __str__(self) -> str:
        chosen = f", {words(self.setting)}" if self.setting else ""
        return f"{self.arm}{chosen}, seed {self.seed}" + (" (tuning)" if self.phase == "tuning" else "")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison, complete.

    Attributes:
        name: of the study.
        options: training options of every run.
        arms: what is compared.
        seeds: of the final runs.
        baseline: label of the arm that the others are compared with.
        updates: of every run.
        every: updates between evaluations.
        tune: option -> the values that it is tuned over; every combination is a setting.
        tuning_seeds: of the tuning runs; none of them is in `seeds`.
        criterion: score by which a setting is chosen, averaged over tuning seeds and tasks.
        keep_models: whether the model of a finished run is kept.

    Raises:
        ValueError: fewer than two arms, or two with one label; no seeds, or one twice; an unknown baseline or
            criterion; a tuning seed that is also one of `seeds`; `tune` without tuning seeds, or the reverse.
    """

    name: str
    options: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str
    updates: int
    every: int
    tune: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuning_seeds: tuple[int, ...] = ()
    criterion: Measure = "final"
    keep_models: bool = True

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms]
        if len(labels) < 2:
            raise ValueError(f"objectives: {', '.join(labels) or 'none'}; expected at least two arms to compare")
        _once("objectives", labels)
        # two labels may differ in characters that a folder name cannot have
        _once("objectives: the folder", map(slug, labels))
        if self.baseline not in labels:
            hint = did_you_mean(self.baseline, labels)
            raise ValueError(f"baseline = {self.baseline!r} is not compared{hint}; expected one of {', '.join(labels)}")
        if not self.seeds:
            raise ValueError("seeds: none; expected at least one, such as seeds: 0-4")
        _once("seeds", self.seeds)
        _once("tuning_seeds", self.tuning_seeds)
        for seed in (*self.seeds, *self.tuning_seeds):
            # numpy's seeds, which transformers sets too
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed {seed} is not allowed; expected 0 <= seed < 2^32")
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(
                f"seeds and tuning_seeds share {', '.join(map(str, both))}; expected different ones: a setting that "
                "was chosen on a seed scores too well there"
            )
        if bool(self.tune) != bool(self.tuning_seeds):
            given, lacks = ("tune", "tuning_seeds") if self.tune else ("tuning_seeds", "tune")
            raise ValueError(f"{given} is given without {lacks}; give both, or neither")
        if self.criterion not in MEASURES:
            hint = did_you_mean(self.criterion, MEASURES)
            raise ValueError(
                f"criterion = {self.criterion!r} is not known{hint}; expected one of {', '.join(MEASURES)}"
            )

    @property
    def settings(self) -> list[dict[str, str]]:
        """Every combination of the values in `tune`; a single empty one if nothing is tuned."""
        return product(self.tune)

    def tuning_cells(self) -> list[Cell]:
        """The runs of the tuning phase, the same number for every arm: seed by seed."""
        if not self.tune:
            return []
        return [
            self._cell("tuning", arm, setting, seed)
            for seed in self.tuning_seeds
            for arm in self.arms
            for setting in self.settings
        ]

    def final_cells(self, chosen: Mapping[str, Setting]) -> list[Cell]:
        """The final runs of the arms with a chosen setting, seed by seed, so that an early look sees every arm.

        Args:
            chosen: label of an arm -> its setting, of those in `settings`.
        """
        return [
            self._cell("final", arm, chosen[arm.label], seed)
            for seed in self.seeds
            for arm in self.arms
            if arm.label in chosen
        ]

    def _cell(self, phase: Phase, arm: Arm, setting: Setting, seed: int) -> Cell:
        options = {**self.options, **arm.options, **setting, "seed": str(seed)}
        return Cell(phase=phase, arm=arm.label, setting=setting, seed=seed, options=options)

    @property
    def evaluated(self) -> list[int]:
        """The updates after which every run is evaluated: 0, every `every`-th, and the last."""
        return sorted({*range(0, self.updates, self.every), self.updates})


def product(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values of some options, the last option varying fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def words(setting: Setting) -> str:
    """`learning_rate=1e-4, beta=0`."""
    return ", ".join(f"{name}={value}" for name, value in setting.items())


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^\w.,=+-]+", "-", text.replace(", ", ",")).strip("-")


def _once(what: str, given: Iterable[object]) -> None:
    seen = set()
    for one in given:
        if one in seen:
            raise ValueError(f"{what} {one!r} is given twice; expected each once")
        seen.add(one)
