"""What every test shares: a Hypothesis profile that repeats itself, fixed seeds, and random token batches."""

from __future__ import annotations

import gc
import importlib.metadata
import random
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

from dgpo.testing import Batch, random_batch

HERE = Path(__file__).parent

settings.register_profile("dgpo", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("dgpo")

# what runs in the background or under nohup starts with these ignored, and so would what a test starts: dgpo leaves
# them ignored then, as it should, and no test of them could pass
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# the metadata of a package takes a millisecond to parse; accelerate does it dozens of times per trainer, to see what is
# installed, and every command does to compare versions
importlib.metadata.metadata = cache(importlib.metadata.metadata)
importlib.metadata.version = cache(importlib.metadata.version)


LONGEST_FIRST = (
    "training/test_two_processes.py",
    "diagnostics/doctor/test_faults.py",
    "objectives/test_every_objective.py",
    "docs/test_site.py",
    "fused/test_triton.py",
    "training/test_step_rows.py",
    "test_aggregation.py",
    "training/test_trl_pairs.py",
    "training/test_every_method_trains.py",
    "grading/test_pool.py",
    "training/test_checkpoints.py",
    "training/test_fused_loss.py",
    "cli/test_cli_train.py",
    "cli/test_cli_report.py",
    "cli/test_interrupt.py",
    "cli/test_cli_tasks.py",
    "cli/test_cli_demo.py",
)
"""Files that take longest. `make test` gives its workers whole files; with a long one at the end, the others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}
    if missing := [str(path) for path in places if not path.exists()]:
        raise pytest.UsageError(f"LONGEST_FIRST of tests/conftest.py has files that do not exist: {', '.join(missing)}")
    if address := next((item.nodeid for item in items if " at 0x" in item.nodeid), None):
        raise pytest.UsageError(
            f"{address}: the workers of `make test` would not agree on a name with an address in it"
        )
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Leave what has been imported and collected to no later garbage collection: there are a million objects by now.

    Every training run ends with a full one too, for the sake of a GPU's memory; here the automatic ones are enough.
    """
    gc.collect()
    gc.freeze()
    if (memory := sys.modules.get("accelerate.utils.memory")) is not None:
        memory.gc = SimpleNamespace(collect=lambda: 0)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    return random_batch


MY_MODULE = '''
"""A module of a user: nothing here is registered."""

import math
from dataclasses import dataclass

from dgpo.objectives import Boundaries, Objective, Paper, Properties


@dataclass(frozen=True, kw_only=True)
class MyObjective(Objective):
    """Importance sampling with a cap.

    w = min(r, cap)

    Source: this test.
    """

    papers = (Paper(arxiv_id="2606.00001", title="A paper of a user", authors=("A. User",), year=2026),)

    cap: float = 2.0
    n: int = 1

    def weight(self, tokens):
        return tokens.log_ratio.clamp(max=math.log(self.cap)).exp()

    def boundaries(self, tokens):
        return Boundaries.at(tokens.log_ratio, high=math.log(self.cap))

    def properties(self):
        return Properties(continuous=True, upper_bound=self.cap, limit_negative="finite", limit_positive="finite")
'''
MY_PATH = "my_package.my_module:MyObjective"


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`my_package/my_module.py` with MY_MODULE in the working directory, which is not on the path; forgotten after."""
    folder = tmp_path / "work" / "my_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "my_module.py").write_text(MY_MODULE)
    monkeypatch.chdir(folder.parent)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
