"""`dgpo train`: train a model with any objective, on a task or a data set."""

from __future__ import annotations

import argparse
import gc
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig
from transformers.hf_argparser import string_to_bool
from trl import ModelConfig, get_peft_config, get_quantization_config

from dgpo import tasks
from dgpo.cli import run_folder
from dgpo.cli.arguments import parse
from dgpo.cli.data import DataArguments
from dgpo.cli.errors import user_input
from dgpo.cli.launcher import continuing, resume_flags
from dgpo.cli.models import cannot_load
from dgpo.files import FolderInUse
from dgpo.rewards import REWARDS, answer_reward, math_reward
from dgpo.tasks.data import is_file
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.callbacks import StopOnSignal
from dgpo.training.checkpoint_files import checkpoints, update_of
from dgpo.training.configured_rewards import build as build_rewards
from dgpo.training.configured_rewards import check_choice
from dgpo.training.ranks import on_main
from dgpo.training.resumable import CheckpointNotWritten, drop
from dgpo.training.resuming import Resume


@dataclass(kw_only=True)
class TrainArguments(DataArguments):
    """What to train on; the other flags are those of `DGPOConfig` (and so of TRL's GRPOConfig) and `ModelConfig`."""

    LISTS_OF_MAPPINGS: ClassVar[tuple[str, ...]] = ("rewards",)
    """Options whose lists hold mappings too, in a file."""

    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Rewards: {', '.join(REWARDS)}, or import paths such as my_package.rewards.mine; in a file also "
            "mappings with name, weight and options. Weights of flags: --reward_weights. Default: the task's own "
            "(math_reward for benchmarks), or answer_reward for a data set."
        },
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "With eval_strategy: a hub data set or a file to evaluate on. Default: the dataset_test_split of "
            "dataset; of a task its own held-out split."
        },
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "With eval_strategy: split of a hub data set to evaluate on; test."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue from the newest complete checkpoint in output_dir."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew in a folder that holds another run: its checkpoints are deleted."},
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Print the plan (batches, tokens, memory, time, the objective) and stop: no download, no GPU. Exit "
            "code 3 if it does not fit on --gpu."
        },
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "With --dry_run: the file that `accelerate launch --config_file` takes; ranks and sharding."},
    )
    num_gpus: int | None = field(
        default=None, metadata={"help": "With --dry_run: ranks; default: the accelerate file's, WORLD_SIZE, or 1."}
    )
    gpu: str | None = field(
        default=None,
        metadata={"help": "With --dry_run: a100, h100, h200, rtx3090 or rtx4090; for what fits, and the time."},
    )

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


def run(argv: list[str]) -> int:
    """Run `dgpo train argv`."""
    if _dry_run(argv):
        from dgpo.cli import dry_run

        return dry_run.run(argv)
    args, model, config = parse("dgpo train", [TrainArguments, ModelArguments, DGPOConfig], argv, __doc__ or "")
    with ExitStack() as held:
        with user_input():
            where = run_folder.resume_point(config, resume=args.resume, overwrite=args.overwrite_output_dir)
            _check_record(config, where)
            run_folder.occupy(config, where, overwrite=args.overwrite_output_dir, held=held)
            trainer = _build(args, config, model)
            resume = trainer.find_checkpoint(where) if where else None
        return _run(trainer, args, config, argv, resume)


def _run(trainer: DGPOTrainer, args: TrainArguments, config: DGPOConfig, argv: list[str], resume: Resume | None) -> int:
    say = trainer.accelerator.print
    if resume is not None:
        for note in resume.notes:
            say(note)
        say(f"continuing from {resume.checkpoint}")
    if args.overwrite_output_dir:
        on_main(lambda: drop(checkpoints(config.output_dir)))
    stop = StopOnSignal()
    trainer.add_callback(stop)
    with stop, user_input((CheckpointNotWritten, FolderInUse)):
        trainer.train(resume_from_checkpoint=None if resume is None else resume.checkpoint)
    if stop.stopped:
        say(f"stopped at update {trainer.state.global_step}; checkpoint saved in {config.output_dir}. Continue with:")
        say(f"  {continuing(argv, _resume_words(args, config, argv, trainer.state.global_step))}")
    else:
        with user_input((CheckpointNotWritten,)):
            _save(trainer, config, args.dataset)
        say(f"done: {trainer.state.global_step} updates; model saved in {config.output_dir}")
    # a rank that leaves while another still writes takes the others down with it, and so can threads of the process
    # group that outlive it because a model still holds on to them
    accelerator = trainer.accelerator
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    del trainer
    gc.collect()
    accelerator.end_training()
    return 0


def _resume_words(args: TrainArguments, config: DGPOConfig, argv: list[str], step: int) -> list[str]:
    """What goes on from the checkpoint just written, whatever else lies in the folder or stands in the file."""
    flags, newest = resume_flags(argv), checkpoints(config.output_dir)[0]
    named_in_file = config.resume_from_checkpoint is not None and "resume_from_checkpoint" not in flags
    words = ["--resume"]
    if named_in_file or update_of(newest) != step:
        words = ["--resume_from_checkpoint", str(newest.with_name(f"checkpoint-{step}"))]
        if args.resume and "resume" not in flags:
            words += ["--resume", "false"]
    if args.overwrite_output_dir and "overwrite_output_dir" not in flags:
        words += ["--overwrite_output_dir", "false"]
    return words


def _save(trainer: DGPOTrainer, config: DGPOConfig, dataset: str | None) -> None:
    hub_data = dataset if dataset and not Path(dataset).exists() else None
    trainer.save_model(config.output_dir)
    trainer.create_model_card(model_name=Path(config.output_dir).name, dataset_name=hub_data)
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=hub_data)


def check_settings(args: TrainArguments, config: DGPOConfig) -> None:
    """Raise ValueError for what no run can do, before anything is loaded."""
    if config.correction is not None and not config.use_vllm:
        raise ValueError(
            f"correction = {config.correction!r} needs the sampler's log-probs, which vLLM gives: set use_vllm"
        )
    size = config.vllm_tensor_parallel_size
    if config.use_vllm and config.vllm_mode == "colocate" and config.world_size % size:
        raise ValueError(
            f"vllm_tensor_parallel_size = {size} does not divide the {config.world_size} ranks that vLLM runs on: "
            "vllm_mode = 'colocate'"
        )
    if _evaluates(config):
        _held_out(args, config)
        return
    for name in ("eval_dataset", "dataset_test_split"):
        if getattr(args, name) is not None:
            raise ValueError(f"{name} = {getattr(args, name)!r} needs eval_strategy = 'steps' or 'epoch'")


def make_rewards(args: TrainArguments, config: DGPOConfig, task: tasks.Task | None) -> list[Any]:
    """The rewards of a run; their weights go into the configuration.

    Raises:
        ValueError: what `dgpo.training.configured_rewards` refuses.
    """
    # benchmarks are graded as mathematics; a data set may hold any kind of answer
    rewards: list[Any] = [answer_reward if task is None else task.reward or math_reward]
    if args.rewards is not None:
        rewards, weights = build_rewards(args.rewards, config.max_completion_length)
        set_weights(config, weights)
    check_choice(config, rewards)
    return rewards


def _evaluates(config: DGPOConfig) -> bool:
    """Whether TRL evaluates rewards on held-out prompts during training."""
    return config.eval_strategy != "no" or bool(config.eval_on_start)


def _held_out(args: TrainArguments, config: DGPOConfig) -> tuple[str, str]:
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


def _dry_run(argv: list[str]) -> bool:
    """Whether the flag is set; read before all others, which may ask for a GPU that a dry run does without."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry_run", "--dry-run", nargs="?", const=True, default=False, type=string_to_bool)
    return bool(parser.parse_known_args(argv)[0].dry_run) and not {"-h", "--help"} & set(argv)


def _build(args: TrainArguments, config: DGPOConfig, model: ModelArguments) -> DGPOTrainer:
    check_settings(args, config)
    task = args.make_task()
    data = args.load_dataset("train") if task is None else task.dataset("train")
    held_out = None
    if _evaluates(config):
        name, split = _held_out(args, config)
        held_out = args.load_split(name, split) if task is None else task.dataset(split)
    rewards = make_rewards(args, config, task)
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    try:
        AutoConfig.from_pretrained(model.model_name_or_path, revision=model.model_revision)
    except (OSError, ValueError) as error:
        raise cannot_load(model.model_name_or_path, error) from error
    trainer = DGPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=rewards,
        args=config,
        train_dataset=data,
        eval_dataset=held_out,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.data_name = args.task or args.dataset
    return trainer


def set_weights(config: DGPOConfig, weights: list[float]) -> None:
    """Take over the weights that the mappings of `rewards` give. Raises ValueError if reward_weights are set too."""
    if set(weights) == {1.0}:
        return  # TRL's default, or what --reward_weights says
    if config.reward_weights is not None:
        raise ValueError(
            f"reward_weights = {config.reward_weights} and the weights {weights} in rewards are both set; set one of "
            "them"
        )
    config.reward_weights = weights


def _check_record(config: DGPOConfig, where: str | bool) -> None:
    """Before a model is loaded; the trainer looks more closely."""
    if config.record is not None and not where and (Path(config.record) / "run.json").exists():
        raise ValueError(
            f"record = {config.record!r} already holds a run; give another folder, or continue that run with --resume"
        )
