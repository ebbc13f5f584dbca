"""`dgpo train`: train a model with any objective, on a task or a data set."""

from __future__ import annotations

import argparse
import gc
from contextlib import ExitStack
from pathlib import Path

from datasets import Dataset
from transformers.hf_argparser import string_to_bool
from trl import get_peft_config, get_quantization_config

from dgpo.cli import dry_run, run_folder
from dgpo.cli.arguments import parse
from dgpo.cli.errors import user_input
from dgpo.cli.launcher import continuing, resume_flags
from dgpo.cli.models import check_loads, load_tokenizer
from dgpo.cli.parser import HELP_FLAGS, Parser
from dgpo.cli.train_arguments import ModelArguments, TrainArguments, check_settings, evaluates, held_out, make_rewards
from dgpo.cli.train_help import TEXTS, groups
from dgpo.counts import counted
from dgpo.files import FolderInUse
from dgpo.tasks import Task
from dgpo.tokens import NotFiniteError
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.callbacks import StopOnSignal
from dgpo.training.checkpoint_files import checkpoints, update_of
from dgpo.training.data_checks import first_prompt
from dgpo.training.ranks import on_main
from dgpo.training.resumable import CheckpointNotWritten, drop
from dgpo.training.resuming import Resume
from dgpo.training.reward_checks import RewardError


def parser() -> Parser:
    """The flags of `dgpo train`."""
    kinds = [TrainArguments, ModelArguments, DGPOConfig]
    return Parser(kinds, prog="dgpo train", description=__doc__ or "", groups=groups(), texts=TEXTS)


def run(argv: list[str]) -> int:
    """Run `dgpo train argv`."""
    if _dry_run(argv):
        return dry_run.run(argv)
    args, model, config = parse(parser(), argv)
    with ExitStack() as held:
        with user_input():
            where = run_folder.resume_point(config, resume=args.resume, overwrite=args.overwrite_output_dir)
            run_folder.check_record(config, where, overwrite=args.overwrite_output_dir)
            run_folder.occupy(config, where, overwrite=args.overwrite_output_dir, held=held)
            trainer = _build(args, config, model)
            resume = trainer.find_checkpoint(where) if where else None
        return _run(trainer, args, config, argv, resume)


def _run(trainer: DGPOTrainer, args: TrainArguments, config: DGPOConfig, argv: list[str], resume: Resume | None) -> int:
    say = trainer.accelerator.print
    if (note := args.note_of_plain_text(first_prompt(trainer.train_dataset), trainer.processing_class)) is not None:
        say(note)
    if resume is not None:
        for note in resume.notes:
            say(note)
        say(f"continuing from {resume.checkpoint}")
    if args.overwrite_output_dir:
        # only now that the trainer could be made: a command that fails before deletes nothing
        on_main(lambda: drop(checkpoints(config.output_dir)))
    stop = StopOnSignal()
    trainer.add_callback(stop)
    with stop, user_input((CheckpointNotWritten, FolderInUse, NotFiniteError, RewardError)):
        trainer.train(resume_from_checkpoint=None if resume is None else resume.checkpoint)
    if stop.stopped:
        say(f"stopped at update {trainer.state.global_step}; checkpoint saved in {config.output_dir}. Continue with:")
        say(f"  {continuing(argv, _resume_words(args, config, argv, trainer.state.global_step))}")
    else:
        with user_input((CheckpointNotWritten,)):
            _save(trainer, config, args.dataset)
        nothing = "" if trainer.scored_any else ", but no completion was scored: every reward was None or NaN"
        say(f"done: {counted(trainer.state.global_step, 'update')}{nothing}; model saved in {config.output_dir}")
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
    """The flags that resume from the checkpoint just written, whatever else is in the folder or in the file."""
    flags, newest = resume_flags(argv), checkpoints(config.output_dir)[0]
    # the file would name the old checkpoint again
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


def _dry_run(argv: list[str]) -> bool:
    """Whether the flag is set; read before all others, which may ask for a GPU that a dry run does without."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry_run", "--dry-run", nargs="?", const=True, default=False, type=string_to_bool)
    return bool(parser.parse_known_args(argv)[0].dry_run) and not HELP_FLAGS & set(argv)


def _build(args: TrainArguments, config: DGPOConfig, model: ModelArguments) -> DGPOTrainer:
    check_settings(args, config)
    task = args.make_task()
    data, evaluated = _data(args, config, task)
    rewards = make_rewards(args, config, task)
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        # the user's own entries win
        **(config.model_init_kwargs or {}),
    }
    check_loads(model.model_name_or_path, model.model_revision)
    if args.chat_is_open:
        tokenizer = load_tokenizer(model.model_name_or_path, model.model_revision)
        data, evaluated = _data(args, config, args.make_task(tokenizer))
    trainer = DGPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=rewards,
        args=config,
        train_dataset=data,
        eval_dataset=evaluated,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.data_name = args.task or args.dataset
    return trainer


def _data(args: TrainArguments, config: DGPOConfig, task: Task | None) -> tuple[Dataset, Dataset | None]:
    """What to train on, and what `eval_strategy` evaluates on."""
    data = args.load_dataset("train") if task is None else task.dataset("train")
    if not evaluates(config):
        return data, None
    name, split = held_out(args, config)
    return data, args.load_split(name, split) if task is None else task.dataset(split)
