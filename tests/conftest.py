"""What every test shares: a Hypothesis profile that repeats itself, fixed seeds, and random token batches."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from dgpo import TokenBatch

settings.register_profile("dgpo", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("dgpo")

# what runs in the background or under nohup starts with these ignored, and so would what a test starts: dgpo leaves
# them ignored then, as it should, and no test of them could pass
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@dataclass(frozen=True)
class Batch:
    """The arguments of one loss: ragged, with holes in the mask, both signs of A, rare tokens and one row of A = 0."""

    logprob: Tensor
    old_logprob: Tensor
    advantage: Tensor
    mask: Tensor
    rollout_logprob: Tensor
    ref_logprob: Tensor
    entropy: Tensor

    def tokens(self) -> TokenBatch:
        return TokenBatch(
            self.logprob,
            self.old_logprob,
            self.advantage,
            self.mask,
            rollout_logprob=self.rollout_logprob,
            entropy=self.entropy,
        )


def random_batch(
    B: int = 5, T: int = 7, *, spread: float = 0.7, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, T, generator=generator, dtype=torch.float64)

    def normal() -> Tensor:
        return torch.randn(B, T, generator=generator, dtype=torch.float64)

    old = uniform(-4.0, -0.05)
    old[:, 1] -= 8.0
    advantage = torch.randn(B, generator=generator, dtype=torch.float64)
    advantage[B // 2] = 0.0
    advantage[0], advantage[-1] = -1.1, 0.9
    lengths = torch.randint(2, T + 1, (B,), generator=generator)
    lengths[0], lengths[-1] = T, 2
    mask = torch.arange(T) < lengths.unsqueeze(1)
    mask[0, T // 2] = False
    return Batch(
        logprob=(old + spread * normal()).clamp(max=-1e-3).to(dtype),
        old_logprob=old.to(dtype),
        advantage=advantage.to(dtype),
        mask=mask,
        rollout_logprob=(old + 0.4 * normal()).to(dtype),
        ref_logprob=(old + 0.3 * normal()).to(dtype),
        entropy=uniform(0.1, 2.0).to(dtype),
    )


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
