"""A training that is killed again and again: every checkpoint is whole, and every resume works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing_script.py")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of one process")
def test_sixty_kills(tiny_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tiny_folder, tmp_path / "out", "60", "0"],
        capture_output=True,
        text=True,
        timeout=1700,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 60
    assert found["while_saving"] >= 20
