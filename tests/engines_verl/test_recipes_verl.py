"""The launch scripts of recipes/verl: verl's own configuration takes every override, batches are those of the YAML."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from transformers import get_constant_schedule_with_warmup as trl_schedule
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import make_iterator
from verl.utils.torch_functional import get_constant_schedule_with_warmup as verl_schedule

from dgpo.objectives import make

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SIZES = {"1.5b": "1.5B", "7b": "7B", "14b": "14B"}
OBJECTIVES = ("dgpo", "maspo", "grpo")
COMMAND = """#!/bin/sh
exec "{python}" -c 'import sys; from dgpo.cli.verl_overrides import run; sys.exit(run(sys.argv[2:]))' "$@"
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `dgpo`, which knows verl-overrides; the one of the machine may be of another environment."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "dgpo").write_text(COMMAND.format(python=sys.executable))
    (folder / "dgpo").chmod(0o755)
    return folder


@cache
def printed(folder: Path, size: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", str(RECIPES / "verl" / f"dapo-math-{size}.sh"), *words],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


@cache
def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", list(overrides))


@pytest.mark.parametrize(
    ("size", "objective"),
    [*(("1.5b", name) for name in OBJECTIVES), ("7b", "dgpo"), ("7b", "maspo"), ("14b", "dgpo")],
)
def test_verl_takes_every_override(folder: Path, size: str, objective: str) -> None:
    words = printed(folder, size, objective).stdout.splitlines()
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    config = composed(*words[3:])
    assert config.actor_rollout_ref.model.path == f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{SIZES[size]}"
    assert config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size == 16
    assert config.data.train_batch_size == 512
    assert config.actor_rollout_ref.rollout.n == 16
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu % longest == 0
    assert config.trainer.n_gpus_per_node % config.actor_rollout_ref.rollout.tensor_model_parallel_size == 0

    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.policy_loss.objective == objective
    expected = {
        "dgpo": {"n": 2 if size == "1.5b" else 1, "m": 2, "eps_low": 0.2, "eps_high": 0.2},
        "maspo": {"sigma_base": 1.0, "alpha": 0.5 if size == "1.5b" else 0.3, "beta_pos": 0.03, "beta_neg": 0.03},
        "grpo": {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": 3.0},
    }[objective]
    assert make(objective, **dict(actor.policy_loss.objective_kwargs)) == make(objective, **expected)


def test_the_same_setting_as_the_yaml(folder: Path) -> None:
    pytest.importorskip("yaml")
    from dgpo.cli.yaml_file import values

    for size in SIZES:
        config = composed(*printed(folder, size, "dgpo").stdout.splitlines()[3:])
        recipe = values(RECIPES / "dapo-math" / f"{size}-dgpo.yaml")
        actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
        assert config.actor_rollout_ref.model.path == recipe["model_name_or_path"]
        assert config.data.max_response_length == recipe["max_completion_length"]
        assert config.data.max_prompt_length == recipe["vllm_max_model_length"] - recipe["max_completion_length"]
        assert rollout.n == recipe["num_generations"]
        assert rollout.temperature == recipe["temperature"]
        assert actor.optim.lr == float(recipe["learning_rate"])
        assert recipe["warmup_steps"] == 16 * actor.optim.lr_warmup_steps
        assert config.trainer.total_epochs == recipe["num_train_epochs"]
        correction = config.algorithm.rollout_correction
        assert recipe["correction"] == {
            "name": "truncate",
            "level": correction.rollout_is,
            "cap": correction.rollout_is_threshold,
        }
        assert actor.optim.weight_decay == recipe.get("weight_decay", 0.0)
        assert actor.fsdp_config.model_dtype == "fp32"
        assert config.trainer.use_v1


def test_the_rates_of_both_engines_meet_at_every_generation() -> None:
    """verl's scheduler makes one step per generation, TRL's one per update."""
    one, other = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-6) for _ in range(2))
    per_generation, per_update = verl_schedule(one, 10), trl_schedule(other, 160)
    for _ in range(12):
        assert per_generation.get_last_lr() == pytest.approx(per_update.get_last_lr())
        one.step()
        per_generation.step()
        for _ in range(16):
            other.step()
            per_update.step()


def test_updates_draw_from_the_whole_generation(folder: Path) -> None:
    """A rank's 1,024 responses in 16 updates, by verl's iterator."""
    actor = composed(*printed(folder, "1.5b", "dgpo").stdout.splitlines()[3:]).actor_rollout_ref.actor
    responses = TensorDict({"index": torch.arange(1024)}, batch_size=1024)

    def cut(shuffle: bool) -> list[torch.Tensor]:
        made = make_iterator(responses, 64, epochs=1, seed=42, dataloader_kwargs={"shuffle": shuffle})
        return [update["index"] for update in made]

    assert [int(update[-1] - update[0]) for update in cut(False)] == [63] * 16
    drawn = cut(actor.shuffle)
    assert torch.cat(drawn).sort().values.equal(torch.arange(1024))
    assert all(update.max() - update.min() > 800 for update in drawn)


def test_more_overrides_come_last_and_mistakes_stop(folder: Path) -> None:
    words = printed(folder, "1.5b", "dgpo", "trainer.nnodes=2").stdout.splitlines()
    assert composed(*words[3:]).trainer.nnodes == 2
    assert "expected dgpo, maspo or grpo" in printed(folder, "1.5b", "gspo", code=2).stderr
    assert "usage: bash" in printed(folder, "1.5b", code=1).stderr
