"""The wheel in an environment that holds torch and nothing else of what we use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import dgpo
from dgpo.cli.main import COMMANDS, EXTRAS

ROOT = Path(__file__).resolve().parents[2]

IMPORT = """
import importlib.util, sys
import dgpo
heavy = ["transformers", "trl", "datasets", "accelerate", "matplotlib", "scipy", "rich", "yaml", "triton"]
print([name for name in heavy if name in sys.modules])
print([name for name in heavy[:8] if importlib.util.find_spec(name)])
print(dgpo.__file__)
"""

BACKWARD = """
import torch
import dgpo
for name in dgpo.objectives.OBJECTIVES:
    old = torch.full((2, 3), -1.5)
    logprob = (old + torch.tensor([[-0.5, 0.0, 0.5], [0.5, 0.1, -0.5]])).requires_grad_()
    advantage = dgpo.group_advantage(torch.tensor([1.0, 0.0]), group_size=2)
    out = dgpo.policy_loss(logprob, old, advantage, torch.ones(2, 3, dtype=torch.bool), objective=name)
    out.value.backward()
    print(name, bool(logprob.grad.isfinite().all()), float(logprob.grad.abs().sum()) > 0)
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_wheel_works_with_torch_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"dgpo-{dgpo.__version__}-py3-none-any.whl"
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "dgpo").rglob("*.py")}
    assert sources | {"dgpo/py.typed"} <= packed
    assert {name.split("/")[0] for name in packed} == {"dgpo", f"dgpo-{dgpo.__version__}.dist-info"}

    venv.create(tmp_path / "empty", with_pip=True)
    scripts = tmp_path / "empty" / ("Scripts" if os.name == "nt" else "bin")
    torch = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None
    run(scripts / "python", "-m", "pip", "install", "--quiet", torch[0])
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)

    loaded, there, file = run(scripts / "python", "-c", IMPORT).stdout.splitlines()
    assert (loaded, there) == ("[]", "[]")
    assert file.startswith(str(tmp_path))
    rows = run(scripts / "python", "-c", BACKWARD).stdout.split("\n")[:-1]
    assert rows == [f"{name} True True" for name in dgpo.objectives.OBJECTIVES]

    assert run(scripts / "dgpo", "--version").stdout == f"dgpo {dgpo.__version__}\n"
    table = run(scripts / "dgpo", "objectives").stdout
    assert all(name in table for name in dgpo.objectives.OBJECTIVES)
    for command, (extra, _) in COMMANDS.items():
        if extra:
            error = run(scripts / "dgpo", command, "--help", code=2).stderr.splitlines()[-1]
            needs = ", ".join(module for module in EXTRAS[extra] if module != "torch")
            assert error.startswith(f"dgpo {command}: error: needs {needs}, which are not installed: pip install '/")
            assert error.endswith(f".whl[{extra}]'")  # pip's own record of where the package came from
