"""The committed results of the atlas: which runs there are, and that tables and figures are theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arms import FINAL_SEEDS, RATES, TUNING_SEEDS, arms
from recorded import EVALUATED_EVERY, RESULTS

from dgpo.files import read_json

ROOT = Path(__file__).parents[2]


def test_every_arm_has_its_runs_and_no_gradient_was_left_out() -> None:
    opened = {task: np.load(RESULTS / f"{task}.npz") for task in RATES}
    recorded = {(task, *name.split("/")[:2]) for task, file in opened.items() for name in file.files}
    assert recorded == {(arm.task, arm.name, phase) for arm in arms() for phase in ("tuning", "final")}
    for arm in arms():
        file = opened[arm.task]
        assert file[f"{arm.name}/final/seeds"].tolist() == [*FINAL_SEEDS]
        assert sorted(set(file[f"{arm.name}/tuning/seeds"].tolist())) == [*TUNING_SEEDS]
        # the chosen rate is the one that tuning says
        tuned, rates = file[f"{arm.name}/tuning/scores"].mean(0), file[f"{arm.name}/tuning/rates"]
        means = {rate: tuned[rates == rate].mean() for rate in sorted(set(rates.tolist()))}
        assert sorted(means) == pytest.approx(sorted(RATES[arm.task]))
        assert file[f"{arm.name}/final/rates"][0] == max(means, key=lambda rate: (means[rate], -rate))
        # after every so many updates, and once before the first
        updates = len(file[f"{arm.name}/final/reward"])
        assert updates == EVALUATED_EVERY * (len(file[f"{arm.name}/final/scores"]) - 1)
        assert not file[f"{arm.name}/final/skipped"].any()
        assert not file[f"{arm.name}/tuning/skipped"].any()


def test_the_starts_are_what_the_readme_says() -> None:
    expected = {"reverse": (0.1, 0.2), "addition": (0.3, 0.4), "rare": (0.0007, 0.0015)}
    for task, start in read_json(RESULTS / "starts.json").items():
        low, high = expected[task]
        assert len(start["scores"]) == len(FINAL_SEEDS) + len(TUNING_SEEDS)
        assert low <= min(start["scores"]), task
        assert max(start["scores"]) <= high, task


@pytest.mark.soak
def test_tables_figures_and_page_are_those_of_the_results() -> None:
    script = ROOT / "studies" / "atlas" / "figures.py"
    subprocess.run([sys.executable, script, "--check"], check=True, timeout=300)
