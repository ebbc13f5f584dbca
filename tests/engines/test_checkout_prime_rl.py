"""The loss for prime-rl in prime-rl's own `setup_rl_loss_fn` and `compute_loss`, from a checkout of 559b4477.

    git clone https://github.com/PrimeIntellect-ai/prime-rl && git -C prime-rl checkout 559b4477
    DGPO_PRIME_RL=prime-rl pytest tests/engines/test_checkout_prime_rl.py

Its trainer needs GPUs and many packages; that one file needs its configuration and two type checkers, stood in for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dgpo import objectives, policy_loss

CHECKOUT = os.environ.get("DGPO_PRIME_RL")
if CHECKOUT is None:
    pytest.skip("needs prime-rl, which is on no package index: DGPO_PRIME_RL=a checkout", allow_module_level=True)

STEADY = [name for name, cls in objectives.OBJECTIVES.items() if "batch" not in cls().reads]
LENGTHS = [5, 3, 7]


class Custom(SimpleNamespace):
    """`[trainer.loss] type = "custom"`."""


class Other(SimpleNamespace):
    """The types that are not custom."""


class Shape:
    def __class_getitem__(cls, of: Any) -> Any:
        return Tensor


def import_object(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def prime_rl(monkeypatch: pytest.MonkeyPatch) -> Any:
    contents: dict[str, dict[str, Any]] = {
        "beartype": {"beartype": lambda function: function},
        "jaxtyping": dict.fromkeys(("Bool", "Float", "Int"), Shape)
        | {"jaxtyped": lambda **_: lambda function: function},
        "prime_rl": {},
        "prime_rl.configs": {},
        "prime_rl.configs.trainer": {
            "CustomLossConfig": Custom,
            "DefaultLossConfig": type("Default", (Other,), {}),
            "IPOLossConfig": type("IPO", (Other,), {}),
            "LossConfig": object,
        },
        "prime_rl.utils": {},
        "prime_rl.utils.utils": {"import_object": import_object},
        "prime_rl.trainer": {},
        "prime_rl.trainer.rl": {},
        "prime_rl.trainer.rl.loss": {},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    file = Path(CHECKOUT) / "src/prime_rl/trainer/rl/loss.py"
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), vars(module))
    return module


@pytest.mark.parametrize("name", STEADY)
def test_its_own_compute_loss_is_policy_loss(name: str, prime_rl: Any) -> None:
    """In float64, as the mean over tokens that it divides by; one entry per sequence in every metric."""
    total = sum(LENGTHS)
    logprob = (-3 * torch.rand(total, dtype=torch.float64)).requires_grad_()
    sampler = (logprob.detach() + 0.4 * torch.randn(total, dtype=torch.float64)).clamp(max=-1e-3)
    values = torch.tensor([1.0, -0.7, 0.3], dtype=torch.float64)
    advantage = values.repeat_interleave(torch.tensor(LENGTHS))
    mask = torch.rand(total) > 0.2
    loss = prime_rl.setup_rl_loss_fn(
        Custom(import_path="dgpo.engines.prime_rl.loss", kwargs={"objective": name, "objective_kwargs": {}})
    )
    parts = [list(x.split(LENGTHS)) for x in (logprob, sampler, advantage, mask)]
    found, metrics = prime_rl.compute_loss(
        parts[0], parts[1], None, parts[2], parts[3], None, None, None, loss, int(mask.sum()), 1, 1
    )
    padded = [pad_sequence(x, batch_first=True) for x in parts]
    expected = policy_loss(*padded, name).value
    gradients = [torch.autograd.grad(value, logprob)[0] for value in (found, expected)]
    torch.testing.assert_close((found, gradients[0]), (expected, gradients[1]), atol=1e-14, rtol=0)
    assert gradients[0].abs().sum() > 0
    assert all(values.shape == (len(LENGTHS),) for values in metrics.values())


def test_another_import_path_is_another_loss(prime_rl: Any) -> None:
    """The comparison above runs what `import_path` says."""
    fn: Callable[..., Any] = prime_rl.setup_rl_loss_fn(
        Custom(import_path="dgpo.engines.prime_rl.loss", kwargs={"objective": "bapo"})
    )
    one = [torch.zeros(2)]
    with pytest.raises(ValueError, match="prime-rl: objective 'bapo' calibrates itself"):
        prime_rl.compute_loss(one, one, None, one, [torch.ones(2).bool()], None, None, None, fn, 2, 1, 1)
