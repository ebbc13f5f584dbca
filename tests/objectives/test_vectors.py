"""The conformance vectors: up to date, and read by a checker that tells a method from another."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dgpo.objectives import OBJECTIVES

FOLDER = Path(__file__).resolve().parents[2] / "conformance"


def module(name):
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_they_are_up_to_date():
    made, there = module("generate").vectors(), json.loads((FOLDER / "vectors.json").read_text(encoding="utf-8"))
    assert there["inputs"] == json.loads(json.dumps(made["inputs"]))
    assert {case["method"] for case in there["cases"]} == set(OBJECTIVES)
    for found, expected in zip(there["cases"], made["cases"], strict=True):
        assert {k: found[k] for k in ("method", "fields", "inputs", "papers")} == {
            k: expected[k] for k in ("method", "fields", "inputs", "papers")
        }
        for name in ("weight", "gradient"):
            # the last digits may depend on the machine
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-12)


def clipped(method, fields, inputs):
    """GRPO and unclipped importance sampling, as anybody would write them in numpy."""
    if method not in ("grpo", "is"):
        return None
    A, ratio = inputs["advantage"][:, None], np.exp(inputs["logprob"] - inputs["old_logprob"])
    beyond = np.where(A > 0, ratio > 1 + fields.get("eps_high", np.inf), ratio < 1 - fields.get("eps_low", np.inf))
    return -A * np.where(beyond, 0.0, ratio) / inputs["mask"].sum()


def test_the_checker():
    check = module("check").check
    assert check(clipped) == ([], 4)
    wrong, right = check(lambda method, fields, inputs: None if method != "gppo" else clipped("grpo", fields, inputs))
    assert right == 0
    assert wrong[1].startswith("gppo on 'ratios' at [")
    assert check(lambda *given: np.nan)[1] == 0


def test_its_command(tmp_path):
    for name in ("check.py", "vectors.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    (tmp_path / "mine.py").write_text("def gradient(method, fields, inputs):\n    return None\n")
    done = subprocess.run([sys.executable, "check.py", "mine:gradient"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0 cases agree, 0 differ\n")


@pytest.mark.parametrize("needs", ["torch", "dgpo"])
def test_the_checker_needs_numpy_alone(needs):
    assert f"import {needs}" not in (FOLDER / "check.py").read_text()
