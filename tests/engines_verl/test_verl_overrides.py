"""`dgpo verl-overrides`: what it prints composes with verl's configuration."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.config import omega_conf_to_dataclass
from verl_problems import compose_config

from dgpo.cli.errors import UserError
from dgpo.cli.verl_overrides import run
from dgpo.engines.verl import DGPOPolicyLossConfig
from dgpo.engines.verl_overrides import overrides
from dgpo.objectives import OBJECTIVES


def test_the_printed_lines_compose(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--objective", "dgpo", "--n", "1", "--m=2.5", "--eps-low", "0.1", "--right_cap", "none"]) == 0
    printed = capsys.readouterr()
    config = compose_config(*printed.out.splitlines())
    chosen = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
    assert type(chosen) is DGPOPolicyLossConfig
    assert chosen.objective_kwargs == {"n": 1, "m": 2.5, "eps_low": 0.1, "right_cap": None}
    assert config.reward.custom_reward_function.path == "pkg://dgpo.engines.verl"
    assert "leave actor.clip_ratio, " in printed.err


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_line_needs_quotes(name: str) -> None:
    """So that they can be pasted, and inserted with $( ), which would keep quotes."""
    declared = {field.name: field.default for field in dataclasses.fields(OBJECTIVES[name])}
    for line in overrides(name, declared):
        assert shlex.quote(line) == line


@pytest.mark.parametrize("value", [None, 1, 0.2, 1e-06, float("inf"), True])
def test_values_survive_hydra(value: object) -> None:
    from dgpo.engines.verl_overrides import _literal

    assert compose_config(f"+trainer.probe={_literal(value)}").trainer.probe == value


def test_an_objective_of_the_user_is_named_by_its_import_path(
    my_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "my_package.my_module:MyObjective"
    assert run(["--objective", f"{path}:n=3", "--cap", "1.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.quote(line) for line in lines] == lines
    chosen = omega_conf_to_dataclass(compose_config(*lines).actor_rollout_ref.actor).policy_loss
    assert (chosen.loss_mode, chosen.objective) == (f"dgpo:{path}", path)
    assert chosen.objective_kwargs == {"n": 3, "cap": 1.5}
    assert f"dgpo:{path}" in POLICY_LOSS_REGISTRY
    with pytest.raises(UserError, match=f"the fields of '{path}': cap, n"):
        run(["--objective", path, "--alpha", "1"])
    with pytest.raises(UserError, match="there is no module 'my_package.other'"):
        run(["--objective", "my_package.other:X"])


def test_without_the_reward(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--objective", "maspo", "--no-reward"])
    assert "reward" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "dgop"], "did you mean 'dgpo'"),
        (["--objective", "dgpo", "--epslow", "0.2"], "unknown argument '--epslow', did you mean '--eps_low'"),
        (["--objective", "dgpo", "--alpha", "0.2"], "the fields of 'dgpo': n, m, "),
        (["--objective", "dgpo", "--n", "two"], "n = 'two'"),
        (["--objective", "dgpo", "--n", "-1"], "n = -1"),
        (["--objective", "aspo", "--entropy_quantile", "0.8"], "verl does not provide"),
    ],
)
def test_wrong_input(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(flags)


def test_help_lists_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        run(["--objective", "maspo", "--help"])
    assert exit_code.value.code == 0
    said = capsys.readouterr().out
    assert all(f"--{field.name}" in said for field in dataclasses.fields(OBJECTIVES["maspo"]))


def test_neither_verl_nor_ray_is_imported() -> None:
    code = (
        "import sys; from dgpo.cli.verl_overrides import run; run(['--objective', 'dgpo']);"
        "import dgpo.engines, dgpo.engines.verl_reward; assert not {'verl', 'ray', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
