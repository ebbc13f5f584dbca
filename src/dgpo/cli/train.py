"""`dgpo train`: train a model with any objective, on a task or a data set."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, get_peft_config, get_quantization_config

from dgpo import tasks
from dgpo.cli.arguments import parse
from dgpo.cli.errors import UserError, user_input
from dgpo.registry import did_you_mean
from dgpo.rewards import answer_reward
from dgpo.tasks.data import load
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.callbacks import StopOnSignal

REWARDS: dict[str, Callable[..., list[float]]] = {"answer_reward": answer_reward}


@dataclass
class TrainArguments:
    """What to train on; the other flags are those of `DGPOConfig` (and so of TRL's GRPOConfig) and `ModelConfig`."""

    task: str | None = field(
        default=None, metadata={"help": f"A task that makes its own data: {', '.join(tasks.TASKS)}."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "A hub data set, or a .jsonl/.parquet file, with prompt (or problem, question) and answer."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})
    prompt_template: str | None = field(
        default=None, metadata={"help": "Text around each prompt, with {prompt} in it."}
    )
    chat: bool = field(default=False, metadata={"help": "Make each prompt a user message (for chat templates)."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: 'answer_reward' or import paths such as my_package.rewards.mine. Default: the task's "
            "own, or answer_reward for a data set."
        },
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})


def run(argv: list[str]) -> int:
    """Run `dgpo train argv`."""
    args, config, model = parse("dgpo train", [TrainArguments, DGPOConfig, ModelConfig], argv, __doc__ or "")
    checkpoint = _last_checkpoint(config.output_dir) if args.resume else None
    with user_input():
        trainer = _build(args, config, model)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    with stop:
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped:
        trainer.accelerator.print(
            f"stopped at update {trainer.state.global_step}; checkpoint saved in {config.output_dir}. Continue with:\n"
            f"  dgpo train {' '.join(_quote(word) for word in argv if word != '--resume')} --resume"
        )
        return 0
    trainer.save_model(config.output_dir)
    trainer.accelerator.print(f"done: {trainer.state.global_step} updates; model saved in {config.output_dir}")
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=args.dataset)
    return 0


def _build(args: TrainArguments, config: DGPOConfig, model: ModelConfig) -> DGPOTrainer:
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is required: a hub name or a folder")
    if (args.task is None) == (args.dataset is None):
        raise ValueError(f"give either --task or --dataset; got task = {args.task!r}, dataset = {args.dataset!r}")
    if args.task is not None:
        task = tasks.make(args.task)
        data, default_reward = task.dataset("train"), task.reward
    else:
        assert args.dataset is not None
        data = load(args.dataset, args.dataset_split, template=args.prompt_template, chat=args.chat)
        default_reward = answer_reward
    rewards = [_reward(name) for name in args.reward_funcs] if args.reward_funcs else [default_reward]
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    _check_model(model.model_name_or_path, model.model_revision)
    return DGPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=rewards,
        args=config,
        train_dataset=data,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )


def _check_model(name: str, revision: str | None) -> None:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        kind = "the folder holds no model" if os.path.isdir(name) else "no such folder, and no such model on the hub"
        raise ValueError(f"cannot load model {name!r}: {kind} ({str(error).strip().splitlines()[0]})") from error


def _reward(name: str) -> Callable[..., list[float]]:
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.rpartition(".")
    if not module:
        raise ValueError(
            f"unknown reward {name!r}{did_you_mean(name, REWARDS)}; known: {', '.join(REWARDS)}, or an import path"
        )
    sys.path.insert(0, os.getcwd())  # a reward beside the script, as TRL allows
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the reward {name!r}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    return found


def _last_checkpoint(folder: str) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    checkpoint = get_last_checkpoint(folder) if os.path.isdir(folder) else None
    if checkpoint is None:
        raise UserError(f"--resume: no checkpoint in {folder!r}")
    return str(checkpoint)


def _quote(word: str) -> str:
    import shlex

    return shlex.quote(word)
