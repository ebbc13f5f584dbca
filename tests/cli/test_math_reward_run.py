"""`dgpo train` on GSM8K with the mathematical reward: reasons are logged, and no process is left behind."""

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

GSM8K = Path(__file__).parents[2].parent / "shared" / "benchmarks" / "gsm8k_train.jsonl"


def processes(mark):
    """Processes that were started with this word in their environment: the run, and whatever it started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.add((folder.name, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return found


@pytest.mark.skipif(not GSM8K.is_file(), reason="the GSM8K file is not beside the project")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found by Linux's /proc")
@pytest.mark.parametrize("signal", [None, "KILL"], ids=["to its end", "killed"])
def test_a_run_logs_reasons_and_leaks_no_process(executable, tiny, tmp_path, signal):
    config = tmp_path / "run.yaml"
    config.write_text(f"""
model_name_or_path: {tiny}
dataset: {GSM8K}
output_dir: {tmp_path / "out"}
rewards:
  # a random model boxes nothing, but it writes digits and letters that a worker has to look at
  - name: math_reward
    answer_marker: "1"
    deadline: 5.0
  - name: soft_overlong_reward
    buffer: 4
    weight: 0.5
max_steps: {6 if signal is None else 1000}
per_device_train_batch_size: 8
num_generations: 4
max_completion_length: 12
logging_steps: 1
save_strategy: "no"
report_to: none
use_cpu: true
bf16: false
gradient_checkpointing: false
""")
    mark = f"DGPO_TEST_RUN={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    run = subprocess.Popen(
        [executable, "train", "--config", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1", name: value},
    )
    seen, log = 0, tmp_path / "out" / "log.jsonl"
    assert run.stdout is not None
    for line in run.stdout:
        if "reward" in line and log.is_file() and "math_reward/match" in log.read_text():
            seen += 1
            if signal is not None:
                assert any("fork_server.py" in command for _, command in processes(mark))
                run.kill()
    assert (run.wait() == 0) is (signal is None)
    assert seen
    rows = [line for line in log.read_text().splitlines() if "math_reward/match" in line]
    assert all(reason in rows[0] for reason in ("math_reward/no_answer", "math_reward/timeout", "math_reward/unparsed"))
    assert "rewards/soft_overlong_reward/mean" in rows[0]
    deadline = time.monotonic() + 10
    while processes(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(mark) == set()
    if signal is None:
        assert json.loads((tmp_path / "out" / "config.json").read_text())
