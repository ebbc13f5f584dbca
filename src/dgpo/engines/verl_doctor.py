"""Whether new workers of a Ray cluster find the plug-in, and if not, why: verl hides errors while loading one."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dgpo import __version__
from dgpo.engines.verl_overrides import PREFIX
from dgpo.installation import hint
from dgpo.objectives import OBJECTIVES

NAME = "dgpo"
"""Name of our entry point in the group `verl.plugins`."""

SWITCH = "VERL_USE_EXTERNAL_PLUGINS"

TIMEOUT = 180.0
"""Seconds that a worker has to start and import verl."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a new worker process on one node found.

    Attributes:
        node: host name.
        python: its interpreter.
        verl: version, None where it could not be imported.
        dgpo: version, None where it could not be imported.
        entry_point: what our entry point loads, None where none is installed.
        switch: `VERL_USE_EXTERNAL_PLUGINS` in the worker; verl takes "auto" where it is not set.
        missing: loss modes that verl does not have after `import verl`.
        queue: whether there is a package `transfer_queue`, which verl's trainer imports.
        errors: what failed -> traceback.
    """

    node: str
    python: str = ""
    verl: str | None = None
    dgpo: str | None = None
    entry_point: str | None = None
    switch: str = "auto"
    missing: tuple[str, ...] = ()
    queue: bool = True
    errors: Mapping[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Why the plug-in does not work there, most basic first; empty if it does."""
        if not self.python:
            return [f"no worker answered: {self.errors['worker'].strip()}"]
        found = []
        if self.dgpo is None:
            found.append(f"dgpo cannot be imported by {self.python}:\n{self.errors['dgpo'].rstrip()}")
        elif self.dgpo != __version__:
            found.append(f"dgpo {self.dgpo} differs from {__version__} here; install the same version on every node")
        if self.verl is None:
            found.append(f"verl cannot be imported by {self.python}:\n{self.errors['verl'].rstrip()}")
            return found
        if not self.missing:
            return found
        allowed = [name.strip() for name in self.switch.split(",")]
        if self.entry_point is None:
            found.append(
                f"no entry point {NAME!r} in the group 'verl.plugins': dgpo is not installed there with its metadata "
                f"(a folder on PYTHONPATH has none); {hint('verl')} on every node"
            )
        elif self.switch == "none" or (self.switch != "auto" and NAME not in allowed):
            found.append(f"{SWITCH}={self.switch} excludes the plug-in; unset it, or add {NAME!r} to the list")
        elif "plug-in" in self.errors:
            found.append(
                f"loading {self.entry_point} fails, which verl does not show:\n{self.errors['plug-in'].rstrip()}"
            )
        if not found:
            found.append(
                f"{self.entry_point} loads, but not while verl is imported: {len(self.missing)} losses are missing, "
                f"the first is {self.missing[0]!r}"
            )
        return found

    def notes(self) -> list[str]:
        """Problems that do not concern the plug-in but would stop a run there."""
        if self.verl is None or self.queue:
            return []
        return [
            "no package transfer_queue, which verl's trainer imports first (trainer.use_v1=true, its default): "
            "pip install 'verl[verl-core]', which verl's extras for a real run (vllm, sglang, fsdp, megatron) contain"
        ]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of `inspect_workers`.

    Attributes:
        cluster: its address; None if there was none and a local one was started for this check.
        workers: one per living node.
    """

    cluster: str | None
    workers: tuple[Worker, ...]


def inspect_workers(address: str | None = None, env: Mapping[str, str] | None = None) -> Inspection:
    """One report per living node of the cluster.

    Args:
        address: of the cluster; None takes the one that Ray finds (RAY_ADDRESS, or one on this machine), or starts one,
            as `ray.init` does in verl; "auto" does not start one.
        env: environment variables of the workers, as a job has them from `ray_kwargs.ray_init.runtime_env.env_vars`.

    Raises:
        ConnectionError: no cluster at that address, or at RAY_ADDRESS.
    """
    ours = not ray.is_initialized()
    named = address not in (None, "auto")
    taken = (address if named else os.environ.get("RAY_ADDRESS")) or ""
    if ours:
        _knock(taken, "" if named else " of the variable RAY_ADDRESS")
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        # a unique environment: Ray starts a new process for it instead of reusing an idle one
        variables = {**(env or {}), "DGPO_DOCTOR": uuid.uuid4().hex}
        # num_cpus=0: a node whose CPUs are all taken is examined too
        # a crash of the worker is a result, so it is not retried
        look = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_probe())
        pending = [
            (
                node["NodeManagerHostname"],
                look.options(
                    runtime_env={"env_vars": variables},
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                ).remote(NAME, SWITCH, [PREFIX + name for name in OBJECTIVES]),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        # the node that this process drives: its head only where `ray.init` has just started it
        node = ray._private.worker._global_node
        if ours and node is not None and node.is_head():
            cluster = None
        else:
            cluster = taken if taken.startswith("ray://") else ray.get_runtime_context().gcs_address
        return Inspection(cluster=cluster, workers=tuple(_worker(name, reference) for name, reference in pending))
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str, source: str) -> None:
    """Raise ConnectionError if nothing listens there; Ray itself would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # none, or a name that Ray knows: auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at the address {address!r}{source}: {error}") from error


def _worker(node: str, reference: Any) -> Worker:
    try:
        return Worker(**ray.get(reference, timeout=TIMEOUT))
    except ray.exceptions.RayError as error:
        return Worker(node=node, errors={"worker": f"{type(error).__name__}: {error}"})


def _probe() -> Callable[[str, str, list[str]], dict[str, Any]]:
    """What runs in the worker. A nested function is sent as code, since the node may have no dgpo."""

    def look(name: str, switch: str, wanted: list[str]) -> dict[str, Any]:
        import importlib.util
        import os
        import socket
        import sys
        import traceback
        from importlib.metadata import entry_points

        errors: dict[str, str] = {}

        def attempt(what: str, action: Callable[[], Any]) -> Any:
            try:
                return action()
            except Exception:  # noqa: BLE001 - any error is what the user needs to see
                errors[what] = traceback.format_exc(limit=-3)
                return None

        ours = [point for point in entry_points(group="verl.plugins") if point.name == name]
        verl = attempt("verl", lambda: importlib.import_module("verl"))
        algorithms = attempt("verl", lambda: importlib.import_module("verl.trainer.ppo.core_algos"))
        missing = [mode for mode in wanted if mode not in getattr(algorithms, "POLICY_LOSS_REGISTRY", {})]
        if ours and missing:
            attempt("plug-in", ours[0].load)
        dgpo = attempt("dgpo", lambda: importlib.import_module("dgpo"))
        return {
            "node": socket.gethostname(),
            "python": sys.executable,
            "verl": None if algorithms is None else getattr(verl, "__version__", "?"),
            "dgpo": getattr(dgpo, "__version__", None),
            "entry_point": ours[0].value if ours else None,
            "switch": os.getenv(switch, "auto").strip().lower(),
            "missing": tuple(missing),
            "queue": importlib.util.find_spec("transfer_queue") is not None,
            "errors": errors,
        }

    return look
