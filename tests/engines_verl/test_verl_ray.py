"""Two worker processes of a Ray cluster as the two ranks of a step, for every method."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from verl_problems import LENGTHS, actor_config, compose_config, expected, make_batch, run_ppo_loss

from dgpo.engines.verl_overrides import overrides
from dgpo.objectives import OBJECTIVES


class Rank:
    """What verl's actor worker does with a mini-batch, without a model: two micro-batches through `ppo_loss`."""

    def __init__(self, rank: int, port: int) -> None:
        torch.set_num_threads(1)
        self.rank = rank
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def registered(self) -> tuple[int, list[str]]:
        """What `import verl` alone has registered, in a process that no test has touched."""
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

        return os.getpid(), list(POLICY_LOSS_REGISTRY)

    def step(self, names: list[str]) -> dict[str, tuple[float, list[list[float]]]]:
        """name -> value and gradient [B, T] of this rank's rows."""
        batch, found = make_batch(), {}
        for name in names:
            config = actor_config(objective=name)
            # an adaptive method looks at what it is given: one micro-batch, so that it is the whole step
            mine = list(range(self.rank, len(LENGTHS), 2))
            parts = [mine] if "batch" in OBJECTIVES[name]().reads else [mine[:1], mine[1:]]
            losses = [run_ppo_loss(config, batch, rows, dp_size=2) for rows in parts]
            found[name] = sum(loss[0].item() for loss in losses), sum(loss[1] for loss in losses).tolist()
        return found


@pytest.fixture(scope="module")
def ranks(cluster: Any) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # for this module and its helpers; the package under test is the installed one
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    kind = cluster.remote(num_cpus=1, runtime_env=environment)(Rank)
    return [kind.remote(rank, port) for rank in range(2)]


def test_two_new_processes_have_every_loss(cluster: Any, ranks: list[Any]) -> None:
    found = cluster.get([rank.registered.remote() for rank in ranks], timeout=240)
    assert len({os.getpid(), *(pid for pid, _ in found)}) == 3
    for _, names in found:
        assert {f"dgpo:{name}" for name in OBJECTIVES} <= set(names)


def test_two_ranks_of_ppo_loss_are_policy_loss(cluster: Any, ranks: list[Any]) -> None:
    """Gradients averaged over the two ranks, as FSDP does, are those of the whole batch in this process."""
    batch = make_batch()
    found = cluster.get([rank.step.remote(list(OBJECTIVES)) for rank in ranks], timeout=240)
    assert [set(one) for one in found] == [set(OBJECTIVES)] * 2
    for name in OBJECTIVES:
        value, gradient = expected(batch, name)
        assert sum(one[name][0] for one in found) / 2 == pytest.approx(value.item(), abs=1e-12)
        mean = sum(torch.tensor(one[name][1], dtype=torch.float64) for one in found) / 2
        torch.testing.assert_close(mean, gradient, atol=1e-12, rtol=0)


def loss_of_a_worker(config: Any) -> tuple[int, float, list[list[float]]]:
    """What a worker does with the configuration that the driver sends: its process, and value and gradient [B, T]."""
    from verl.utils.config import omega_conf_to_dataclass

    torch.set_num_threads(1)
    value, gradient, _ = run_ppo_loss(omega_conf_to_dataclass(config), make_batch(), range(len(LENGTHS)))
    return os.getpid(), value.item(), gradient.tolist()


def test_a_worker_imports_the_objective_that_its_configuration_names(cluster: Any, my_package: Path) -> None:
    """The path of a class outside this package is all that reaches the worker, which has never heard of it."""
    path = "my_package.my_module:MyObjective"
    config = compose_config(*overrides(path, {"cap": 1.1})).actor_rollout_ref.actor
    assert config.policy_loss.loss_mode == f"dgpo:{path}"
    search = f"{Path(__file__).parent}{os.pathsep}{my_package.parent}"
    environment = {"env_vars": {"PYTHONPATH": search}}
    worker = cluster.remote(num_cpus=0, runtime_env=environment)(loss_of_a_worker)
    process, value, gradient = cluster.get(worker.remote(config), timeout=240)
    assert process != os.getpid()
    wanted, slope = expected(make_batch(), path, cap=1.1)
    assert value == pytest.approx(wanted.item(), abs=1e-12)
    torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), slope, atol=1e-12, rtol=0)


def test_a_worker_says_which_module_it_cannot_import(cluster: Any, my_package: Path) -> None:
    config = compose_config(*overrides("my_package.my_module:MyObjective", {})).actor_rollout_ref.actor
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    worker = cluster.remote(num_cpus=0, runtime_env=environment)(loss_of_a_worker)
    with pytest.raises(Exception, match=r"cannot import the objective .*there is no module 'my_package'"):
        cluster.get(worker.remote(config), timeout=240)
