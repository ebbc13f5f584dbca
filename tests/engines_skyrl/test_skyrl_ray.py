"""The losses on the way that SkyRL sends its registry to the workers: a Ray actor."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
import skyrl_problems
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import sync_registries
from skyrl.train.config import AlgorithmConfig
from skyrl_problems import STEADY, of, scaled


def typed_dict_of_extensions() -> None:
    if sys.version_info < (3, 12):
        import typing_extensions

        typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]


@pytest.fixture
def cluster() -> Iterator[None]:
    # a worker cannot import these files
    for module in (sys.modules[__name__], skyrl_problems):
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": typed_dict_of_extensions},
    )
    yield
    ray.shutdown()


def losses_in_a_worker(names: list[str], configs: list[AlgorithmConfig], arguments: Any) -> Any:
    from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry as fresh

    before = set(fresh._functions)
    found = []
    for name, config in zip(names, configs, strict=True):
        logprob, old, advantages, mask = arguments
        logprob = logprob.clone().requires_grad_()
        value, metrics = fresh.get(f"dgpo:{name}")(logprob, old, advantages, config=config, loss_mask=mask)
        value.backward()
        found.append((value.item(), logprob.grad, metrics))
    return before, found


@pytest.mark.usefixtures("cluster")
def test_a_worker_of_ray_gets_the_losses_from_the_registry(make_batch: Callable[..., Any]) -> None:
    """As in a run: registered in the driver, synchronised, and read by a process that registered nothing."""
    batch = make_batch()
    sync_registries()
    arguments = (batch.logprob, batch.old_logprob, scaled(batch, "token_mean"), batch.mask.to(torch.float64))
    configs = [of(name) for name in STEADY]
    before, found = ray.get(ray.remote(losses_in_a_worker).remote(STEADY, configs, arguments))
    assert "regular" in before
    assert not any(name.startswith("dgpo:") for name in before)
    _, expected = losses_in_a_worker(STEADY, configs, arguments)
    for (value, gradient, metrics), (ours, our_gradient, our_metrics) in zip(found, expected, strict=True):
        assert value == ours
        assert torch.equal(gradient, our_gradient)
        assert metrics == our_metrics
