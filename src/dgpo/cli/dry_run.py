"""`dgpo train ... --dry_run`: the plan of a run, with nothing loaded and nothing asked of the network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from rich.console import Console
from rich.text import Text

from dgpo import tasks
from dgpo.cli.arguments import parse, settings
from dgpo.cli.errors import user_input
from dgpo.cli.parser import Parser
from dgpo.cli.plan_tables import as_tables
from dgpo.cli.train_arguments import ModelArguments, TrainArguments, check_settings, make_rewards
from dgpo.cli.yaml_file import Entry
from dgpo.plan.machines import GPUS, Sharding, World
from dgpo.plan.model_shapes import lora_targets, shape_of
from dgpo.plan.plan import Plan
from dgpo.registry import did_you_mean
from dgpo.tasks.data import is_file
from dgpo.training import DGPOConfig

REPORTED_ROWS = {
    ("open-r1/DAPO-Math-17k-Processed", "all"): 17_398,
    ("open-r1/DAPO-Math-17k-Processed", "en"): 14_116,
    ("open-r1/DAPO-Math-17k-Processed", "cn"): 3_282,
}
"""(hub data set, configuration) -> rows of its train split, from public notes that quote the data card; the data set
itself could not be reached. Those of the benchmarks are in `dgpo.tasks`."""

DOES_NOT_FIT = 3
"""Exit code of a plan that does not fit on its GPU."""

_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_", "MASTER_", "ACCELERATE_", "FSDP_", "GROUP_", "ROLE_", "TORCHELASTIC_")
_SHARDED: dict[str, Sharding] = {"1": "ZeRO-1", "2": "ZeRO-2", "3": "ZeRO-3"}


def run(argv: list[str]) -> int:
    """Print the plan of `dgpo train argv`, and where each setting comes from; of several ranks, the first prints.

    Returns:
        0, or `DOES_NOT_FIT` if the estimate is more than the GPU that was named has.
    """
    plan = plan_of(argv)
    # one plan, however many ranks a launcher started
    if int(os.environ.get("RANK", "0")) == 0:
        console = Console()
        for part in as_tables(plan, settings(argv)):
            # the terminal wraps text, so that a path or value is copied and searched for as it is
            console.print(part, soft_wrap=isinstance(part, Text))
    return DOES_NOT_FIT if plan.fits is False else 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run, as `dgpo train` would have them, in the world of its plan."""

    args: TrainArguments
    model: ModelArguments
    config: DGPOConfig
    task: tasks.Task | None
    world: World
    on_cpu: bool


def checked(argv: list[str], entries: Mapping[str, Entry] | None = None) -> Settings:
    """The settings of `dgpo train argv`, on a machine that need not have a GPU.

    Args:
        argv: the flags.
        entries: of a file that has been read already, in place of `--config`.

    Raises:
        UserError: what `dgpo train` would refuse before it loads anything, an accelerate file that cannot be used.
    """
    found: list[World] = []
    # read before `_unlaunched` hides it
    launched = os.environ.get("WORLD_SIZE")

    @dataclass(kw_only=True)
    class Arguments(TrainArguments):
        def __post_init__(self) -> None:
            self.check_source()
            found.append(world_of(self.accelerate_config, self.num_gpus, launched))

    @dataclass
    class Config(DGPOConfig):
        """For the ranks of the plan, on a machine that need not have a GPU."""

        def __post_init__(self) -> None:
            self.on_cpu, self.use_cpu = self.use_cpu, True  # type: ignore[has-type]
            super().__post_init__()

        @property
        def world_size(self) -> int:
            return found[-1].processes  # the arguments are made before it

    with _unlaunched():
        args, model, config = parse(Parser([Arguments, ModelArguments, Config], prog="dgpo train"), argv, entries)
    with user_input():
        check_settings(args, config)
        task = args.make_task()
        make_rewards(args, config, task)
    return Settings(args=args, model=model, config=config, task=task, world=found[-1], on_cpu=config.on_cpu)


def updates_of(found: Settings) -> int | None:
    """The optimiser updates of a run; None where they depend on data that is not at hand."""
    with user_input():
        rows, _ = _rows(found.args, found.task)
    name = found.model.model_name_or_path
    return Plan(config=found.config, model=name, shape=None, world=found.world, data_rows=rows).updates


def plan_of(argv: list[str]) -> Plan:
    """The plan of `dgpo train argv`.

    Raises:
        UserError: as `checked`, or an unknown GPU.
    """
    found = checked(argv)
    args, model, config = found.args, found.model, found.config
    with user_input():
        if args.gpu is not None and args.gpu not in GPUS:
            raise ValueError(f"unknown GPU {args.gpu!r}{did_you_mean(args.gpu, GPUS)}; known: {', '.join(GPUS)}")
        if model.load_in_4bit or model.load_in_8bit:
            raise ValueError("--dry_run does not estimate quantised weights; leave out load_in_4bit and load_in_8bit")
        given = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
        # as `dgpo train` merges them: model_init_kwargs wins
        given.update({name: value for name, value in (config.model_init_kwargs or {}).items() if name in given})
        rows, source = _rows(args, found.task)
        return Plan(
            config=config,
            model=model.model_name_or_path,
            shape=shape_of(model.model_name_or_path),
            world=found.world,
            gpu=None if args.gpu is None else GPUS[args.gpu],
            data_rows=rows,
            data_source=source,
            dtype=str(given["dtype"] or "auto").removeprefix("torch."),
            attention=given["attn_implementation"],
            lora=(model.lora_r, lora_targets(model.lora_target_modules)) if model.use_peft else None,
            on_cpu=found.on_cpu,
        )


@contextmanager
def _unlaunched() -> Iterator[None]:
    """Without what a launcher set, for which the configuration would start a process group."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_LAUNCHER)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def world_of(accelerate_config: str | None, num_gpus: int | None, launched: str | None = None) -> World:
    """The ranks: of `--num_gpus`, else of the accelerate file, else of WORLD_SIZE, else one.

    The file sets the sharding. Without one, DDP is assumed for several ranks, and the plan notes it.

    Raises:
        ValueError: fewer than one GPU, a file that is not a configuration of accelerate, a sharding that is not
            estimated.
    """
    if num_gpus is not None and num_gpus < 1:
        raise ValueError(f"num_gpus = {num_gpus} is not allowed; expected >= 1")
    if accelerate_config is None:
        processes = num_gpus or int(launched or 1)
        source = "--num_gpus" if num_gpus else "WORLD_SIZE" if launched else "no --accelerate_config and no --num_gpus"
        several = processes > 1
        return World(processes=processes, sharding="DDP" if several else "one process", source=source, assumed=several)
    file = Path(accelerate_config)
    if not file.is_file():
        raise ValueError(f"accelerate_config = {accelerate_config!r}: no such file")
    try:
        launch = load_config_from_file(str(file))
        kind = str(launch.distributed_type).removeprefix("DistributedType.")
        processes = num_gpus or int(launch.num_processes)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{accelerate_config!r} is not a configuration of accelerate: {error}") from error
    source = f"--num_gpus, {accelerate_config}" if num_gpus else accelerate_config
    return World(processes=processes, sharding=_sharding(kind, launch, processes, accelerate_config), source=source)


def _sharding(kind: str, launch: Any, processes: int, file: str) -> Sharding:
    if kind in ("NO", "MULTI_GPU"):
        return "DDP" if processes > 1 else "one process"
    if kind == "FSDP" and str(launch.fsdp_config.get("fsdp_version")) == "2":
        if str(launch.fsdp_config.get("fsdp_offload_params", False)).lower() != "false":
            raise ValueError(f"{file!r} offloads parameters, which --dry_run does not estimate")
        return "FSDP2"
    if kind == "DEEPSPEED" and str(launch.deepspeed_config.get("zero_stage")) in _SHARDED:
        offloads = [launch.deepspeed_config.get(f"offload_{part}_device", "none") for part in ("optimizer", "param")]
        if set(offloads) != {"none"}:
            raise ValueError(f"{file!r} offloads to {', '.join(offloads)}, which --dry_run does not estimate")
        return _SHARDED[str(launch.deepspeed_config["zero_stage"])]
    raise ValueError(
        f"{file!r} has distributed_type {kind}, which --dry_run does not estimate; expected NO, MULTI_GPU, FSDP with "
        "fsdp_version: 2, or DEEPSPEED with zero_stage 1, 2 or 3"
    )


def _rows(args: TrainArguments, task: tasks.Task | None) -> tuple[int | None, str]:
    """Prompts to train on, where that can be said without the network, and how it is known."""
    if task is not None and task.name not in tasks.BENCHMARKS:
        return len(task.problems("train")), "counted"
    name, config, split = args.dataset, args.dataset_config, args.dataset_split or "train"
    if task is not None:
        content = tasks.BENCHMARKS[task.name].content.get("train")
        return (None, "unknown") if content is None else (content.hub.rows, "as published")
    assert name is not None
    if is_file(name):
        return len(args.load_dataset("train")), "counted"
    hubs = [content.hub for benchmark in tasks.BENCHMARKS.values() for content in benchmark.content.values()]
    published = {(hub.name, hub.config, hub.split): hub.rows for hub in hubs}
    if (name, config, split) in published:
        return published[name, config, split], "as published"
    if config is not None and split == "train" and (name, config) in REPORTED_ROWS:
        return REPORTED_ROWS[name, config], "the data card's count, second-hand"
    return None, "unknown"
