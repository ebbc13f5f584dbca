"""What `dgpo train` is told beside `DGPOConfig`, and what of it no run can do; a run and its plan share both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trl import ModelConfig

from dgpo import tasks
from dgpo.cli.arguments import argument
from dgpo.cli.data import DataArguments
from dgpo.counts import counted
from dgpo.plan.machines import GPUS
from dgpo.rewards import REWARDS, answer_reward, math_reward
from dgpo.rewards import build as build_rewards
from dgpo.tasks.data import is_file
from dgpo.training import DGPOConfig
from dgpo.training.configured_rewards import check_choice


@dataclass(kw_only=True)
class TrainArguments(DataArguments):
    """What to train on; the other flags are those of `DGPOConfig` (and so of TRL's GRPOConfig) and `ModelConfig`."""

    LISTS_OF_MAPPINGS: ClassVar[tuple[str, ...]] = ("rewards",)
    """Options whose lists hold mappings too, in a file."""

    rewards: list[str] | None = argument(
        None,
        f"Rewards: {', '.join(REWARDS)}, or import paths such as my_package.rewards:mine; in a file also "
        "mappings with name, weight and options. Weights of flags: --reward_weights. Default: the task's own "
        "(math_reward for benchmarks), or answer_reward for a data set.",
    )
    eval_dataset: str | None = argument(
        None,
        "With eval_strategy: a hub data set or a file to evaluate on. Default: the dataset_test_split of "
        "dataset; of a task its own held-out split.",
    )
    dataset_test_split: str | None = argument(
        None, "With eval_strategy: split of a hub data set to evaluate on (default: test)."
    )
    resume: bool = argument(False, "Continue from the newest complete checkpoint in output_dir.")
    overwrite_output_dir: bool = argument(
        False, "Start from scratch in a folder that holds another run; its checkpoints and its recording are deleted."
    )
    dry_run: bool = argument(
        False,
        "Print the plan (batches, tokens, memory, time, the objective) and stop; needs no download and no "
        "GPU. Exit code 3 if it does not fit on --gpu.",
    )
    accelerate_config: str | None = argument(
        None, "With --dry_run: configuration file of accelerate, for the ranks and the sharding."
    )
    num_gpus: int | None = argument(
        None, "With --dry_run: number of ranks (default: that of the accelerate file, WORLD_SIZE, or 1)."
    )
    gpu: str | None = argument(None, f"With --dry_run: GPU to check memory and estimate time for: {', '.join(GPUS)}.")

    def __post_init__(self) -> None:
        """Before the configuration is made, which asks for a GPU."""
        self.check_source()
        if self.dry_run:
            raise ValueError("dry_run is a flag, not a setting of a run: give --dry_run on the command line")
        for name in ("accelerate_config", "num_gpus", "gpu"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is for --dry_run; a run takes its ranks from `accelerate launch`"
                )


@dataclass
class ModelArguments(ModelConfig):
    """TRL's, with a model that has to be named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_name_or_path is None:
            raise ValueError("--model_name_or_path is required: a hub name or a folder")


def check_settings(args: TrainArguments, config: DGPOConfig) -> None:
    """Raise ValueError for what no run can do, before anything is loaded."""
    if not config.use_vllm:
        config.check_no_sampler()
    size = config.vllm_tensor_parallel_size
    if config.use_vllm and config.vllm_mode == "colocate" and config.world_size % size:
        raise ValueError(
            f"vllm_tensor_parallel_size = {size} does not divide the {counted(config.world_size, 'rank')} that "
            "vLLM runs on: vllm_mode = 'colocate'"
        )
    if evaluates(config):
        held_out(args, config)
        return
    for name in ("eval_dataset", "dataset_test_split"):
        if getattr(args, name) is not None:
            raise ValueError(f"{name} = {getattr(args, name)!r} needs eval_strategy = 'steps' or 'epoch'")


def make_rewards(args: TrainArguments, config: DGPOConfig, task: tasks.Task | None) -> list[Any]:
    """The rewards of a run; their weights go into the configuration.

    Raises:
        ValueError: what `dgpo.rewards.build` and `check_choice` refuse.
    """
    # benchmarks are graded as mathematics; a data set may hold any kind of answer
    rewards: list[Any] = [answer_reward if task is None else task.reward or math_reward]
    if args.rewards is not None:
        rewards, weights = build_rewards(args.rewards, config.max_completion_length)
        _set_weights(config, weights)
    check_choice(config, rewards)
    return rewards


def evaluates(config: DGPOConfig) -> bool:
    """Whether TRL evaluates rewards on held-out prompts during training."""
    return config.eval_strategy != "no" or bool(config.eval_on_start)


def held_out(args: TrainArguments, config: DGPOConfig) -> tuple[str, str]:
    """Name and split of what `eval_strategy` evaluates on: of a task, a data set or a file.

    Raises:
        ValueError: there is nothing held out, or flags that say something else.
    """
    why = f"eval_strategy = {getattr(config.eval_strategy, 'value', config.eval_strategy)!r}"
    if config.eval_strategy == "no":
        why = "eval_on_start = True"
    benchmarks = "or use eval_benchmarks, which evaluates on tasks and benchmarks with the code of `dgpo eval`"
    task = args.make_task()
    if args.eval_dataset is not None:
        if task is not None:
            raise ValueError(f"eval_dataset = {args.eval_dataset!r} is for --dataset; task = {args.task!r} has its own")
        if is_file(args.eval_dataset) and args.dataset_test_split is not None:
            raise ValueError(
                f"dataset_test_split = {args.dataset_test_split!r} is for data of the hub; the file "
                f"{args.eval_dataset!r} has no splits"
            )
        return args.eval_dataset, args.dataset_test_split or "test"
    if task is not None:
        if args.dataset_test_split is not None:
            raise ValueError(
                f"dataset_test_split = {args.dataset_test_split!r} is for --dataset; task = {args.task!r} has its own"
            )
        for split in ("validation", "test"):
            if split in task.splits:
                return task.name, split
        raise ValueError(f"{why}: task = {args.task!r} has only the splits {', '.join(task.splits)}; {benchmarks}")
    assert args.dataset is not None
    if is_file(args.dataset):
        raise ValueError(f"{why} needs data to evaluate on: give --eval_dataset FILE, {benchmarks}")
    return args.dataset, args.dataset_test_split or "test"


def _set_weights(config: DGPOConfig, weights: list[float]) -> None:
    """Take over the weights that the mappings of `rewards` give. Raises ValueError if reward_weights are set too."""
    if set(weights) == {1.0}:
        return  # TRL's default, or --reward_weights
    if config.reward_weights is not None:
        raise ValueError(
            f"reward_weights = {config.reward_weights} and the weights {weights} in rewards are both set; set one of "
            "them"
        )
    config.reward_weights = weights
