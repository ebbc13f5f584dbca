"""The tuning phase: every arm tries the same settings on the same seeds, and the best mean score is chosen.

The choice is recorded before the first final run, and stays: no setting is chosen again once final seeds were seen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpo.comparison.divergence import FAILED
from dgpo.comparison.outcome import Outcome
from dgpo.comparison.study import Setting, Study, words
from dgpo.evaluation.folder import differences
from dgpo.files import read_json, write_json_atomic

FILE = "tuning.json"
SCHEMA = "dgpo.tuning/1"


class NothingToChoose(ValueError):
    """Every tuning run of an arm failed."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of one arm.

    Attributes:
        setting: the options.
        scores: seed, as text -> score by the criterion, mean over tasks; 0 where the run failed.
        diverged: seed, as text -> why the run counts as diverged.
    """

    setting: Setting
    scores: Mapping[str, float]
    diverged: Mapping[str, str]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.scores.values())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The setting of an arm, and all that were tried, in the order of the study."""

    setting: Setting
    trials: tuple[Trial, ...]


def score(of_tasks: Iterable[Outcome], study: Study) -> float:
    """The score of one run by the criterion, mean over tasks; 0 for the evaluations that a failed run lacks."""
    whole = [outcome.until(tuple(study.evaluated)) for outcome in of_tasks]
    return statistics.fmean(getattr(outcome, study.criterion) for outcome in whole)


def choose(study: Study, arm: str, found: Mapping[tuple[str, int], list[Outcome]]) -> Choice:
    """The setting of an arm with the best mean score over the tuning seeds; of equal ones, the first in the study.

    Args:
        study: that is tuned.
        arm: its label.
        found: (`words` of a setting, tuning seed) -> the outcomes of that run, one per task; none for a run that failed
            when no run had been evaluated at all. Every run of the arm has ended.

    Raises:
        NothingToChoose: every run of the arm failed.
    """
    trials = []
    for setting in study.settings:
        runs = {str(seed): found[words(setting), seed] for seed in study.tuning_seeds}
        reasons = {
            seed: next((o.diverged for o in run if o.diverged), None) if run else FAILED for seed, run in runs.items()
        }
        trials.append(
            Trial(
                setting=setting,
                scores={seed: score(run, study) if run else 0.0 for seed, run in runs.items()},
                diverged={seed: reason for seed, reason in reasons.items() if reason is not None},
            )
        )
    if all(reason == FAILED for trial in trials for reason in map(trial.diverged.get, trial.scores)):
        raise NothingToChoose(f"{arm}: every tuning run failed, so that no setting can be chosen")
    return Choice(setting=max(trials, key=lambda trial: trial.mean).setting, trials=tuple(trials))


class Choices:
    """The choices of a study, recorded in its folder.

    Args:
        root: folder of the study.
        study: the study as it is now.

    Raises:
        ValueError: settings were chosen there under another `tune`, `tuning_seeds` or `criterion`, or it is damaged.
    """

    def __init__(self, root: Path, study: Study) -> None:
        self._file, self._study = root / FILE, study
        self.of_arm: dict[str, Choice] = {}
        if not self._file.exists():
            return
        before = read_json(self._file)
        if not isinstance(before, dict) or before.get("schema") != SCHEMA:
            raise ValueError(f"{str(self._file)!r} is not a file of `dgpo compare`; give another --out")
        if changed := differences(before["budget"], self.budget()):
            raise ValueError(
                f"{str(self._file)!r} holds settings that were chosen otherwise (there -> now): {'; '.join(changed)}. "
                "Nothing is tuned again once final seeds may have been seen: restore these keys, or give another --out"
            )
        self.of_arm = {arm: _read(choice) for arm, choice in before["arms"].items()}

    def budget(self) -> dict[str, Any]:
        """What every arm may try, as JSON."""
        study = self._study
        return {
            "tune": {name: list(values) for name, values in study.tune.items()},
            "tuning_seeds": list(study.tuning_seeds),
            "criterion": study.criterion,
            "settings": len(study.settings),
            "runs_per_arm": len(study.settings) * len(study.tuning_seeds),
        }

    def fix(self, arm: str, choice: Choice) -> None:
        """Record the choice of an arm.

        Raises:
            ValueError: it has been made already.
        """
        if arm in self.of_arm:
            raise ValueError(f"{arm}: a setting was chosen already")
        self.of_arm[arm] = choice
        write_json_atomic(self._file, self.document())

    def document(self) -> dict[str, Any]:
        """Budget and choices, as JSON."""
        arms = {arm: asdict(choice) for arm, choice in self.of_arm.items()}
        return {"schema": SCHEMA, "budget": self.budget(), "arms": arms}

    def std(self) -> float | None:
        """Standard deviation of the score between tuning seeds, within an arm at the setting chosen for it: what to
        expect of the final runs. None if nothing was chosen yet, or there is one tuning seed."""
        variances = [
            statistics.variance(trial.scores.values())
            for choice in self.of_arm.values()
            for trial in choice.trials
            if trial.setting == choice.setting and len(trial.scores) > 1
        ]
        return math.sqrt(statistics.fmean(variances)) if variances else None

    def settings(self) -> dict[str, Setting]:
        """Label -> setting, of every arm that has one; all of them if nothing is tuned."""
        if not self._study.tune:
            return {arm.label: {} for arm in self._study.arms}
        labels = {arm.label for arm in self._study.arms}
        return {arm: choice.setting for arm, choice in self.of_arm.items() if arm in labels}


def _read(choice: dict[str, Any]) -> Choice:
    return Choice(setting=choice["setting"], trials=tuple(Trial(**trial) for trial in choice["trials"]))
