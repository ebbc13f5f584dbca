"""The worked example of CONTRIBUTING.md is a complete method: it runs, keeps its claims and passes the common suite."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.objectives import OBJECTIVES, Objective, table

NAME = "importance"


@pytest.fixture
def source(root: Path, python_blocks: Callable[[Path], list[str]]) -> str:
    (block,) = python_blocks(root / "CONTRIBUTING.md")
    return block


@pytest.fixture
def example(source: str, monkeypatch: pytest.MonkeyPatch) -> type[Objective]:
    """The class of the example, registered for the time of one test."""
    module = ModuleType("contributing_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclass() looks its module up there
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    cls: type[Objective] = module.ImportanceSampling
    monkeypatch.setitem(OBJECTIVES, NAME, cls)
    return cls


def tokens_at(log_ratio: torch.Tensor, advantage: float) -> TokenBatch:
    old = torch.full_like(log_ratio, -0.7)
    every = torch.ones_like(log_ratio, dtype=torch.bool)
    return TokenBatch(old + log_ratio, old, torch.full_like(log_ratio, advantage), every)


def test_policy_loss_takes_it_by_name(example: type[Objective], make_batch: Callable[..., object]) -> None:
    """Value and gradient are those of DGPO(n=0, m=inf), which the text says it is."""
    batch = make_batch()
    results = []
    for objective in (NAME, example(), objectives.DGPO(n=0, m=math.inf)):
        logprob = batch.logprob.detach().clone().requires_grad_()
        out = policy_loss(logprob, batch.old_logprob, batch.advantage, batch.mask, objective=objective)
        (gradient,) = torch.autograd.grad(out.value, logprob)
        results.append((out.value.detach(), gradient))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])
    assert results[0][1].abs().sum() > 0


@pytest.mark.parametrize("cap", [None, 1, 3.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_declared_properties_hold(example: type[Objective], cap: float | None, sign: float) -> None:
    objective = objectives.make(NAME, cap=cap)
    claims = objective.properties()
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64).unsqueeze(0)
    tokens = tokens_at(x, sign)
    weight = objective.weight(tokens)
    assert (claims.unit_on_policy, claims.nonnegative, claims.continuous) == (True, True, True)
    assert weight[0, 2000].item() == pytest.approx(1.0)
    assert (weight >= 0).all()
    assert (weight.diff() / (1 + weight[:, 1:])).abs().max() < 0.011, "no jump: w grows by at most 1 % per 0.01 nats"
    assert weight.max().item() == pytest.approx(min(claims.upper_bound, math.exp(20)))
    assert claims.limit_negative == claims.limit_positive == "finite"
    torch.testing.assert_close(weight[x < 0] / tokens.ratio[x < 0], torch.ones_like(x[x < 0]))

    logprob = tokens.logprob.detach()[:, 1:-1].requires_grad_()  # the ends sit on the clamp
    inner = TokenBatch(logprob, tokens.old_logprob[:, 1:-1], tokens.advantage[:, 1:-1], tokens.mask[:, 1:-1])
    (slope,) = torch.autograd.grad(objective.potential(inner).sum(), logprob)
    torch.testing.assert_close(slope, weight[:, 1:-1], rtol=1e-9, atol=0)


def test_its_field_is_validated(example: type[Objective]) -> None:
    with pytest.raises(ValueError, match=r"cap = 0\.5 is not allowed; expected a number in \[1, inf\]"):
        objectives.make(NAME, cap=0.5)
    with pytest.raises(ValueError, match="has no field 'caps', did you mean 'cap'"):
        objectives.make(NAME, caps=2)


def test_table_picks_it_up(example: type[Objective]) -> None:
    row = table.rows()[-1]
    assert (row.name, row.arxiv, row.fields) == (NAME, "1707.06347", {"cap": None})
    assert row.summary == "The ratio itself: unbiased per token, and of unbounded variance."


def test_figure_picks_it_up(example: type[Objective], weights_script: ModuleType) -> None:
    drawn = weights_script.curves()[NAME]
    for weight in drawn.values():
        torch.testing.assert_close(weight, weights_script.LOG_RATIO.exp())


def test_the_common_suite_accepts_it_without_an_edit(source: str, root: Path, tmp_path: Path) -> None:
    """A plug-in registers the example before the suite is collected: its cases must exist, and pass."""
    (tmp_path / "contributing_example.py").write_text(source, encoding="utf-8")
    (tmp_path / "register_example.py").write_text(
        "from contributing_example import ImportanceSampling\n"
        "from dgpo.objectives import OBJECTIVES\n"
        f"OBJECTIVES[{NAME!r}] = ImportanceSampling\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = ["-q", "-p", "register_example", "-p", "no:cacheprovider", "-k", NAME]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/objectives/test_every_objective.py"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
