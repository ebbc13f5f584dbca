"""Two ranks (gloo, DDP) against one process: the same parameters after 4 updates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

SCRIPT = Path(__file__).with_name("two_process_script.py")


def launch(ranks, folder, out, options):
    # use_cpu is set in the script: without it torchrun starts runs that do not know of each other
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), str(folder), str(out), json.dumps(options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(f"{out}.pt"), [row for row in json.loads(Path(f"{out}.json").read_text()) if "loss" in row]


@pytest.mark.xdist_group("two-processes")
@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "token-mean"},
        {"aggregation": "seq-mean-token-mean", "advantage": "leave_one_out", "entropy_coef": 0.01},
        {"aggregation": "seq-mean-token-sum-norm", "objective": "maspo", "beta": 0.05},
    ],
    ids=lambda options: options["aggregation"],
)
def test_two_ranks_train_what_one_process_trains(tiny_folder, tmp_path, options):
    one, one_log = launch(1, tiny_folder, tmp_path / "one", options)
    two, two_log = launch(2, tiny_folder, tmp_path / "two", options)
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_folder).named_parameters())
    moved = max((one[name] - start[name]).abs().max().item() for name in one)
    apart = max((one[name] - two[name]).abs().max().item() for name in one)
    assert moved > 1e-2
    assert apart < 1e-5
    for alone, together in zip(one_log, two_log, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert together["objective/fraction/inside"] == pytest.approx(alone["objective/fraction/inside"], abs=1e-5)
        assert together["objective/weight/mean"] == pytest.approx(alone["objective/weight/mean"], rel=1e-5)
        assert together["objective/weight/max"] == pytest.approx(alone["objective/weight/max"], rel=1e-5)
    # off-policy and ragged, or nothing was shown
    assert min(row["objective/fraction/inside"] for row in one_log) < 0.99
    assert one_log[0]["completions/min_length"] < one_log[0]["completions/max_length"]


@pytest.mark.xdist_group("two-processes")
def test_dynamic_sampling_keeps_two_ranks_in_step(tiny_folder, tmp_path):
    """Ranks find different numbers of informative groups, and still generate and train together to the end."""
    options = {"dynamic_sampling": True, "max_num_gen_batches": 20, "unrewarded": "135678"}
    _, log = launch(2, tiny_folder, tmp_path / "two", options)
    rows = [row for row in log if "dynamic_sampling/generation_batches" in row]
    assert len(log) == 4
    assert max(row["dynamic_sampling/generation_batches"] for row in rows) > 1
    assert {row["dynamic_sampling/groups_without_spread"] for row in rows} == {0.0}
    assert {row["objective/advantage/zero_fraction"] for row in log} == {0.0}
