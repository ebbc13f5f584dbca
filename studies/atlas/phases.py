"""An arm of the atlas: its starts, its tuning runs, its final runs, and what is recorded of them."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import FINAL_SEEDS, OBJECTIVES, RATES, TASKS, TUNING_SEEDS, Arm, arms
from engine import METRICS, Setting, State, shape_of, train
from numpy.typing import NDArray
from problems import PROBLEMS
from recorded import RESULTS
from start import warm_up

from dgpo import objectives
from dgpo.files import FolderInUse, FolderLock, read_json, write_bytes_atomic, write_json_atomic

WORK = Path("outputs/atlas")
ALL_SEEDS = (*FINAL_SEEDS, *TUNING_SEEDS)
PER_UPDATE = ("reward", "entropy", "grad_norm", "kl_old", "ess", "ratio_ess", "largest_weight", "informative")
"""Metrics whose every update is committed; of the others, means over the updates between two evaluations."""


def starts(task: str, work: Path, device: torch.device) -> dict[int, torch.Tensor]:
    """Seed -> parameters [size] of its start; trained once and kept in `work`. Waits for a process that trains them."""
    path = work / task / "start.pt"
    while not path.exists():
        try:
            with FolderLock(path.parent, "training the starts in"):
                # the process that was waited for may have written them
                if not path.exists():
                    _train_starts(task, path)
        except FolderInUse:
            time.sleep(5)
    parameters = torch.load(path, map_location=device, weights_only=True)
    return dict(zip(ALL_SEEDS, parameters, strict=True))


def _train_starts(task: str, path: Path) -> None:
    before = time.process_time()
    parameters, scores = warm_up(PROBLEMS[task], [*ALL_SEEDS])
    content = io.BytesIO()
    torch.save(parameters, content)
    write_json_atomic(
        path.with_suffix(".json"),
        {"seeds": [*ALL_SEEDS], "scores": scores.tolist(), "cpu_seconds": time.process_time() - before},
    )
    write_bytes_atomic(path, content.getbuffer())


def run_phase(arm: Arm, phase: str, rates: list[float], seeds: list[int], folder: Path, device: torch.device) -> None:
    """Train one stack, member i with rates[i] and seeds[i], and write `phase`.npz; resumes, and skips what is done."""
    done = folder / f"{phase}.npz"
    if done.exists():
        return
    checkpoint = folder / f"{phase}.pt"
    before = time.process_time()
    setting = Setting(PROBLEMS[arm.task], objectives.make(OBJECTIVES[arm.method]), updates_per_generation=arm.k)
    parameters = starts(arm.task, folder.parent.parent, device)
    state = train(
        setting,
        shape_of(setting.problems),
        torch.stack([parameters[seed] for seed in seeds]),
        seeds,
        torch.tensor(rates),
        checkpoint,
    )
    content = io.BytesIO()
    np.savez_compressed(
        content,
        **record(setting, state),
        seeds=np.array(seeds),
        rates=np.array(rates),
        cpu_seconds=np.array(time.process_time() - before),
    )
    write_bytes_atomic(done, content.getbuffer())
    checkpoint.unlink(missing_ok=True)


def record(setting: Setting, state: State) -> dict[str, NDArray[Any]]:
    """What is kept of a stack."""
    metrics = dict(zip(METRICS, state.metrics.permute(2, 0, 1).numpy(), strict=True))
    kept = {name: rounded(metrics[name]) for name in PER_UPDATE}
    for name in METRICS:
        if name not in PER_UPDATE:
            blocks = metrics[name].reshape(-1, setting.evaluate_every, metrics[name].shape[1])
            kept[name.replace("/", ".")] = rounded(blocks.mean(1))
    return kept | {"scores": state.scores.numpy(), "skipped": state.skipped.numpy()}


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """With 10 bits of mantissa, a relative error of 0.1 % at most: the rest is zeros, which compress."""
    return (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def chosen_rate(tuning: Path) -> float:
    """The learning rate with the largest mean score over evaluations and tuning seeds; the lower one of equals."""
    with np.load(tuning) as saved:
        scores = saved["scores"].mean(0)
        means = {rate: float(scores[saved["rates"] == rate].mean()) for rate in sorted(set(saved["rates"].tolist()))}
    return max(means, key=lambda rate: (means[rate], -rate))


def run_arm(arm: Arm, work: Path, device: torch.device) -> None:
    """Tuning seeds at every rate, then the final seeds at the chosen one."""
    folder = work / arm.task / arm.name
    if (folder / "final.npz").exists():
        return
    with FolderLock(folder, "running an arm of the atlas in"):
        rates = [rate for rate in RATES[arm.task] for _ in TUNING_SEEDS]
        run_phase(arm, "tuning", rates, [*TUNING_SEEDS] * len(RATES[arm.task]), folder, device)
        rate = chosen_rate(folder / "tuning.npz")
        run_phase(arm, "final", [rate] * len(FINAL_SEEDS), [*FINAL_SEEDS], folder, device)


def collect(work: Path) -> None:
    """results/TASK.npz with everything that is done, by `ARM/PHASE/NAME`; results/starts.json."""
    RESULTS.mkdir(exist_ok=True)
    begun = {}
    for task in TASKS:
        gathered: dict[str, NDArray[Any]] = {}
        for arm in arms():
            folder = work / task / arm.name
            if arm.task != task or not (folder / "final.npz").exists():
                continue
            for phase in ("tuning", "final"):
                with np.load(folder / f"{phase}.npz") as saved:
                    gathered |= {f"{arm.name}/{phase}/{name}": saved[name] for name in saved.files}
        if gathered:
            content = io.BytesIO()
            np.savez_compressed(content, **gathered)
            write_bytes_atomic(RESULTS / f"{task}.npz", content.getbuffer())
            begun[task] = read_json(work / task / "start.json")
    write_json_atomic(RESULTS / "starts.json", begun)
