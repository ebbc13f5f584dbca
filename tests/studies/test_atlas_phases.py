"""An arm of the atlas from its start to the recorded results, in a small size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import engine
import numpy as np
import phases
import pytest
import recorded
import torch
from arms import Arm
from engine import Setting, shape_of
from problems import PROBLEMS

from dgpo.files import FolderLock, write_json_atomic

ARM = Arm("rare", 4, "dgpo(1,2)")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two tuning and two final seeds, two rates, 8 updates, starts that were not trained."""
    monkeypatch.setattr(phases, "Setting", partial(Setting, updates=8, evaluate_every=4, prompts=2, group=4))
    monkeypatch.setattr(phases, "RATES", {"rare": (1e-3, 1e-2)})
    monkeypatch.setattr(phases, "TUNING_SEEDS", (100, 101))
    monkeypatch.setattr(phases, "FINAL_SEEDS", (0, 1))
    monkeypatch.setattr(phases, "ALL_SEEDS", (0, 1, 100, 101))
    monkeypatch.setattr(engine, "EVALUATED", 4)
    monkeypatch.setattr(phases, "RESULTS", tmp_path / "results")
    folder = tmp_path / "work" / "rare"
    folder.mkdir(parents=True)
    torch.save(shape_of(PROBLEMS["rare"]).initial([0, 1, 2, 3]), folder / "start.pt")
    write_json_atomic(folder / "start.json", {"scores": [0.0] * 4})
    return tmp_path / "work"


def test_an_arm_is_tuned_run_and_read_back(small: Path, tmp_path: Path) -> None:
    phases.run_arm(ARM, small, torch.device("cpu"))
    phases.collect(small)
    tuning, final = recorded.stacks(tmp_path / "results")
    assert (tuning.arm, tuning.phase, final.phase) == (ARM, "tuning", "final")
    np.testing.assert_array_equal(tuning.seeds, [100, 101, 100, 101])
    np.testing.assert_allclose(tuning.rates, [1e-3, 1e-3, 1e-2, 1e-2])
    np.testing.assert_array_equal(final.seeds, [0, 1])
    best = max((1e-3, 1e-2), key=lambda rate: tuning.area[tuning.rates == rate].mean())
    np.testing.assert_allclose(final.rates, best)
    assert final.scores.shape == (3, 2)
    assert final.metrics["entropy"].shape == (8, 2)
    assert final.metrics["mass/left"].shape == (2, 2)
    assert set(final.metrics) == set(engine.METRICS)
    # every region of every token: the shares are a whole
    shares = sum(final.metrics[name] for name in final.metrics if name.startswith("fraction/"))
    np.testing.assert_allclose(shares, 1, rtol=2e-3)


def test_finished_phases_are_kept_and_a_held_arm_is_left_alone(small: Path) -> None:
    phases.run_arm(ARM, small, torch.device("cpu"))
    folder = small / "rare" / ARM.name
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert set(written) == {"tuning.npz", "final.npz"}
    assert not list(folder.glob("*.pt"))
    (folder / "final.npz").unlink()
    with FolderLock(folder, "testing in"), pytest.raises(phases.FolderInUse):
        phases.run_arm(ARM, small, torch.device("cpu"))
    phases.run_arm(ARM, small, torch.device("cpu"))
    assert (folder / "tuning.npz").stat().st_mtime_ns == written["tuning.npz"]


def test_equal_rates_choose_the_lower_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "tuning.npz", scores=np.full((3, 4), 0.5), rates=np.array([1e-2, 1e-3, 1e-2, 1e-3]))
    assert phases.chosen_rate(tmp_path / "tuning.npz") == 1e-3


def test_rounded_values_keep_three_digits_at_any_size() -> None:
    values = np.array([1e-20, 0.123456, 1.0, 4.85e8, np.inf, 0.0], dtype=np.float32)
    np.testing.assert_allclose(phases.rounded(values), values, rtol=1e-3)
