"""`import dgpo` needs torch and nothing else, and what it makes public is there and documented."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import dgpo
from dgpo import objectives

HEAVY = [
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "matplotlib",
    "plotly",
    "triton",
    "rich",
    "scipy",
    "yaml",
    "peft",
    "tokenizers",
]

WHAT_IS_LOADED = """
import json, sys
import torch
before = set(sys.modules)
import dgpo
for name in dgpo.__all__:  # imported when they are used
    getattr(dgpo, name)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - set(sys.stdlib_module_names))))
"""

WITHOUT_ANYTHING_ELSE = """
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    # not found, as if it were not installed: torch asks for triton when it is imported
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {heavy!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Others
import torch
import dgpo

try:
    import {probe}
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the block does not work")

old = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, -0.5, -2.5]])
for name in dgpo.objectives.OBJECTIVES:
    logprob = (old + torch.tensor([[-0.5, 0.0, 0.5], [0.5, 0.1, -0.5]])).requires_grad_()
    advantage = dgpo.group_advantage(torch.tensor([1.0, 0.0]), group_size=2)
    out = dgpo.policy_loss(logprob, old, advantage, torch.ones(2, 3, dtype=torch.bool), objective=name)
    out.value.backward()
    assert logprob.grad.isfinite().all() and logprob.grad.abs().sum() > 0, name
    print(name)
"""


WITHOUT_TORCH = """
import sys
from dgpo.cli.main import run

assert (run(["--version"]), run(["--help"])) == (0, 0)
print(*({"torch", "numpy", *%r} & set(sys.modules)))
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_and_help_import_no_torch() -> None:
    """`dgpo --version` answers at once: the names of the package are imported when they are used."""
    version, *usage, loaded = run(WITHOUT_TORCH % HEAVY).split("\n")[:-1]
    assert version == f"dgpo {dgpo.__version__}"
    assert usage[0].startswith("usage: dgpo ")
    assert loaded == ""


def test_a_name_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="module 'dgpo' has no attribute 'polcy_loss'"):
        dgpo.polcy_loss  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'polcy_loss' from 'dgpo'"):
        from dgpo import polcy_loss  # noqa: F401
    assert set(dgpo.__all__) <= set(dir(dgpo))


def test_import_dgpo_loads_nothing_beyond_torch() -> None:
    """In a fresh interpreter: what every name of `dgpo` adds to `import torch` is dgpo and the standard library."""
    new = json.loads(run(WHAT_IS_LOADED))
    assert set(new) & set(HEAVY) == set()
    assert new == ["dgpo"]


def test_a_loss_runs_where_nothing_but_torch_can_be_imported() -> None:
    printed = run(WITHOUT_ANYTHING_ELSE.format(heavy=set(HEAVY), probe="rich"))
    assert printed.split() == list(objectives.OBJECTIVES)


@pytest.mark.parametrize("name", dgpo.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(dgpo, name) is not None


def test_public_names_are_the_ones_that_others_rely_on() -> None:
    assert {"TokenBatch", "PolicyLoss", "policy_loss", "objectives", "check", "StepTotals"} <= set(dgpo.__all__)
    assert len(dgpo.__all__) == len(set(dgpo.__all__))
    assert set(objectives.__all__) <= set(vars(objectives))


CORE = ("tokens", "registry", "objectives", "advantages", "correction", "aggregation", "kl", "regions", "loss")


def core_modules() -> Iterator[ModuleType]:
    yield dgpo
    for name in CORE:
        module = importlib.import_module(f"dgpo.{name}")
        yield module
        for child in pkgutil.walk_packages(getattr(module, "__path__", []), f"{module.__name__}."):
            yield importlib.import_module(child.name)


def public_symbols() -> Iterator[tuple[str, Any]]:
    for module in core_modules():
        yield module.__name__, module
        for name, symbol in vars(module).items():
            defined_here = getattr(symbol, "__module__", None) == module.__name__
            if name.startswith("_") or not defined_here or not (inspect.isclass(symbol) or inspect.isroutine(symbol)):
                continue
            yield f"{module.__name__}.{name}", symbol
            if inspect.isclass(symbol):
                for member, value in vars(symbol).items():
                    if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                        yield f"{module.__name__}.{name}.{member}", getattr(symbol, member)


SYMBOLS = dict(public_symbols())


@pytest.mark.parametrize("name", SYMBOLS)
def test_every_public_symbol_has_a_docstring(name: str) -> None:
    """Its own, or the one that it inherits from the contract it fulfils."""
    symbol = SYMBOLS[name]
    text = inspect.getdoc(symbol) or ""
    assert len(text.split()) >= 3
    # the text that a dataclass writes for itself is only its signature
    assert not (inspect.isclass(symbol) and text.startswith(f"{symbol.__name__}("))


def test_the_search_for_symbols_finds_them() -> None:
    assert {
        "dgpo.tokens.TokenBatch.log_ratio",
        "dgpo.objectives.dgpo.DGPO.weight",
        "dgpo.loss.policy_loss",
        "dgpo.kl.k3_ratio",
        "dgpo.aggregation.StepTotals.of",
        "dgpo.registry.build",
    } <= set(SYMBOLS)
