"""The README stays short, its code runs, its links and commands exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

from dgpo import objectives


def text(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_it_is_short(root):
    assert len(text(root).splitlines()) <= 150


def test_it_counts_the_methods(root):
    made = [objectives.make(name) for name in objectives.OBJECTIVES]
    assert f"prints all {len(made)} with their fields" in text(root)
    assert sum(one.penalises for one in made) == 5
    assert "five also subtract a penalty" in text(root)


def test_library_example_runs(root, python_blocks, capsys):
    namespace: dict[str, object] = {}
    block = python_blocks(root / "README.md")[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 13
    exec(compile(block, "README.md", "exec"), namespace)
    logprob, out = namespace["logprob"], namespace["out"]
    assert logprob.grad.abs().sum() > 0
    assert torch.equal(logprob.grad == 0, ~namespace["mask"].expand(4, 6))
    assert 0 < float(out.statistics["mass/left"]) < float(out.statistics["fraction/left"]) < 1
    assert "tensor" in capsys.readouterr().out


def test_trl_example_is_a_valid_config(root, python_blocks, tmp_path):
    block = python_blocks(root / "README.md")[1]
    head = block.split("trainer =")[0].replace('"out"', repr(str(tmp_path)))
    namespace: dict[str, object] = {}
    exec(
        compile(head.replace("DGPOConfig(", "DGPOConfig(bf16=False, use_cpu=True, ", 1), "README.md", "exec"), namespace
    )
    assert namespace["args"].make_objective().n == 2
    assert namespace["args"].updates_per_generation == 16


def test_links_lead_somewhere(root):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text(root)):
        assert (root / target).exists(), target
    for path in re.findall(r"`((?:tests|docs|recipes|benchmarks)/[\w./-]*)`", text(root)):
        assert (root / path).exists(), path


def test_make_help_lists_the_targets_that_the_readme_uses(root):
    listed = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make (\w+)", listed, re.MULTILINE))
    assert {"setup", "demo", "test", "soak", "lint", "docs", "figures", "bench"} <= targets
    assert set(re.findall(r"`make (\w+)", text(root))) <= targets
