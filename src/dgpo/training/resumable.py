"""GRPOTrainer with atomic checkpoints, and an output folder that one run at a time may use."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, sort_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from dgpo.files import FolderLock, first_line, move_files
from dgpo.training import reference
from dgpo.training.checkpoint_files import REFERENCE_FILE, checkpoints, flush_folder, seal
from dgpo.training.config import DGPOConfig
from dgpo.training.heartbeat import Heartbeat
from dgpo.training.ranks import on_main
from dgpo.training.resuming import Resume, ThisRun, describe_run, find

logger = logging.getLogger(__name__)

STAGING = "_saving"
"""In the output folder: what is being written. The underscore keeps it out of uploads to a model hub."""
_REPLACED = "replaced-"
_TORCH_WRITES = ("inline_container.cc", "PytorchStreamWriter", "iostream error")
"""Parts of the messages that torch raises when it cannot write a file."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; the ones before it are untouched."""


class ResumableTrainer(GRPOTrainer):
    """TRL's trainer; what it saves, and where it continues from.

    A checkpoint is written into the folder `_saving` of the output folder, flushed to the disk, listed in its
    `dgpo_checkpoint.json`, and renamed to `checkpoint-N` when it is complete. Checkpoints that `save_total_limit`
    drops are renamed away before they are deleted. `train()` holds a lock on the output folder.

    Raises:
        FolderInUse: from `train()`: another process trains into `output_dir`, or records into `record`.
        CheckpointError: from `train(resume_from_checkpoint=...)`: no complete checkpoint to continue from, a missing
            state, or a checkpoint of another run.
        CheckpointNotWritten: during training: the disk is full, or fails otherwise.
    """

    args: DGPOConfig
    _staging = False
    _push_later = False
    _resume: Resume | None = None
    _run: dict[str, Any]

    def _states(self) -> set[str]:
        """Those of `resuming.STATES` that a checkpoint of this run holds."""
        of_options = {
            "scaler": self.accelerator.scaler is not None,
            "entropy_controller": self.use_adaptive_entropy,
            "ref_model": self.args.sync_ref_model,
        }
        return {"optimizer", "scheduler", "rng_state", *(name for name, there in of_options.items() if there)}

    def _save_own_state(self, folder: Path) -> None:
        """Write what the run needs beside TRL's own files; every rank calls it."""
        if self.args.sync_ref_model and not self.args.save_only_model:
            reference.save(self.ref_model, self.accelerator, folder, writes=self.args.should_save)

    def _load_own_state(self, folder: Path) -> None:
        """Read what `_save_own_state` wrote."""
        if self.args.sync_ref_model and (folder / REFERENCE_FILE).is_file():
            reference.load(self.ref_model, self.accelerator, folder)

    def _check_fresh(self) -> None:
        """Raise if this run may not start from scratch; with the locks of its folders."""

    # --- training --------------------------------------------------------------------------------------------------

    def find_checkpoint(self, where: str | os.PathLike[str] | bool) -> Resume:
        """The checkpoint that `train(resume_from_checkpoint=where)` continues from; see `resuming.find`."""
        run = self._describe()
        self._resume = on_main(lambda: find(run, where))
        return self._resume

    def _describe(self) -> ThisRun:
        fsdp, deepspeed = self.is_fsdp_enabled, self.is_deepspeed_enabled
        model = self.accelerator.unwrap_model(self.model)
        described = describe_run(self.args, model, self.train_dataset, self.reward_funcs, sharded=fsdp or deepspeed)
        self._run = described
        return ThisRun(
            config=self.args, described=described, states=frozenset(self._states()), fsdp=fsdp, deepspeed=deepspeed
        )

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *more: Any, **kwargs: Any
    ) -> TrainOutput:
        """As in TRL; `resume_from_checkpoint=True` takes the newest checkpoint that can be continued from."""
        with self._locked():
            # sets `_run`, which every checkpoint of this training records
            self._describe()
            checkpoint = None
            if resume_from_checkpoint:
                checkpoint = self._checked(resume_from_checkpoint)
            else:
                self._check_fresh()
            on_main(lambda: self._clear(fresh=checkpoint is None))
            with Heartbeat(self.args.rank_timeout):
                trained: TrainOutput = super().train(checkpoint, *more, **kwargs)
            return trained

    def _checked(self, where: str | os.PathLike[str] | bool) -> str:
        # `dgpo train` has looked already: a second look would read and check every file again
        if self._resume is None or where != self._resume.checkpoint:
            for note in self.find_checkpoint(where).notes:
                logger.warning(note)
        assert self._resume is not None
        # used up: a later `train()` looks afresh
        checkpoint, self._resume = self._resume.checkpoint, None
        return checkpoint

    def _clear(self, fresh: bool) -> None:
        """Remove what a process that was killed left half done."""
        folder = Path(self.args.output_dir)
        if (folder / STAGING).exists():
            for replaced in (folder / STAGING).glob(f"{_REPLACED}*"):
                whole = folder / replaced.name.removeprefix(_REPLACED)
                if not whole.exists():  # killed between the two renames of a checkpoint that is written again
                    replaced.rename(whole)
            shutil.rmtree(folder / STAGING)
        if fresh and (there := checkpoints(folder)):
            logger.warning(
                "%s holds checkpoints of an earlier run (%s) and this one starts from scratch: use another output_dir, "
                "or resume_from_checkpoint=True to continue",
                folder,
                there[0].name,
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The locks of the folders that the run writes, which the main process holds, unless it has them already."""

        def lock() -> None:
            if not FolderLock.held(self.args.output_dir):
                held.enter_context(FolderLock(self.args.output_dir, "training into"))
            if self.args.record is not None and not FolderLock.held(self.args.record):
                with suppress(OSError):  # a disk that cannot be written to ends no run: the recorder will say so
                    held.enter_context(FolderLock(self.args.record, "recording into"))

        with ExitStack() as held:
            on_main(lock)
            yield

    # --- writing a checkpoint --------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._staging else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging:
            self._push_later = True  # an upload in the background must not lose its files to the rename
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = folder / STAGING / name, folder / name
        self._push_later = False
        with self._writing(f"the checkpoint of update {self.state.global_step}", folder):
            # transformers writes into, and deletes surplus checkpoints from, the folder that `_get_output_dir` names
            self._staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = False
            self._save_own_state(staged)
            # transformers has recorded the staged path, which is about to disappear
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
            # every rank has written its part before the main process lists the files
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))  # last, with the final name of the best
            self._publish(staged, final)
        if self._push_later:
            super()._push_from_checkpoint(str(final))
        if self.args.should_save:
            self._rotate(folder, final)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers, but each file is written atomically."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        with self._writing("the model", folder):
            # internal, so that transformers does not upload before the files are in their place
            super().save_model(str(folder / STAGING / "model"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                move_files(folder / STAGING / "model", folder)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextmanager
    def _writing(self, what: str, folder: Path) -> Iterator[None]:
        """For writing into `_saving`, which is removed afterwards; a disk error becomes a `CheckpointNotWritten`."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = first_line(error)
            if isinstance(error, OSError):
                reason = error.strerror or reason
            elif isinstance(error, RuntimeError):
                if not any(words in str(error) for words in _TORCH_WRITES):
                    raise
                reason = "a file could not be written completely; is the disk full?"  # torch does not say why
            there = checkpoints(folder)
            last = f"the last checkpoint is {there[0].name}" if there else "there is no checkpoint"
            raise CheckpointNotWritten(f"{what} could not be written to {str(folder)!r}: {reason}; {last}") from error
        finally:
            # once per machine: the ranks of one machine share the folder
            if self.accelerator.is_local_main_process:
                shutil.rmtree(folder / STAGING, ignore_errors=True)

    def _publish(self, staged: Path, final: Path) -> None:
        """Give a complete checkpoint its name."""
        if self.accelerator.is_main_process:
            seal(staged, self._run)
            # a rename cannot replace a folder with files in it, and a kill in between loses neither (`_clear`)
            if final.exists():
                final.rename(staged.with_name(_REPLACED + final.name))
            staged.rename(final)
            # the renames themselves, not only the files, must survive a power cut
            flush_folder(final.parent)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process and not self.accelerator.is_main_process:
            _publish_part(staged, final)
        self.accelerator.wait_for_everyone()

    def _rotate(self, folder: Path, newest: Path) -> None:
        """As transformers does for `save_total_limit`, but a checkpoint loses its name before its files."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        # the newest and the best are never dropped, even beyond the limit
        kept = {str(newest), str(Path(self.state.best_model_checkpoint or newest))}
        there = sort_checkpoints(str(folder), use_mtime=True)
        surplus = max(0, len(there) - max(limit, len(kept)))
        drop([Path(path) for path in there if path not in kept][:surplus])

    # --- reading one -----------------------------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._load_one_of_two(Path(checkpoint))
        self._load_own_state(Path(checkpoint))

    def _load_one_of_two(self, checkpoint: Path) -> None:
        """Optimiser or scheduler, where `resume_allow_missing` lets the other go: transformers then loads neither."""
        optimizer, scheduler = checkpoint / "optimizer.pt", checkpoint / SCHEDULER_NAME
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or optimizer.is_file() == scheduler.is_file():
            return
        if optimizer.is_file():
            self.optimizer.load_state_dict(torch.load(optimizer, map_location="cpu", weights_only=True))
        else:
            self.lr_scheduler.load_state_dict(torch.load(scheduler, map_location="cpu", weights_only=True))
        # the rate stands in both states: that of the scheduler holds, whichever of the two was loaded
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self._advance_order(prepared[1])
        return prepared

    def _advance_order(self, loader: Any) -> None:
        """The order of the epoch that training stopped in: TRL's sampler draws one after the other, from the seed."""
        sampler = loader.batch_sampler
        # accelerate's BatchSamplerShard wraps the batch sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler = getattr(sampler, "sampler", None)
        if not isinstance(sampler, RepeatSampler) or not sampler.shuffle:
            return
        updates = max(-(-len(loader) // self.args.gradient_accumulation_steps), 1)
        for _ in range(self.state.global_step // updates):
            # the draw that RepeatSampler makes at the beginning of every epoch
            torch.randperm(sampler.num_samples, generator=sampler.generator)


def drop(unwanted: Iterable[Path]) -> None:
    """Delete checkpoints; one that is killed half-way leaves none that looks whole."""
    for checkpoint in unwanted:
        away = checkpoint.parent / STAGING / f"dropped-{checkpoint.name}"
        away.parent.mkdir(exist_ok=True)
        # first the name, in one step: from here on nobody can take it for a checkpoint
        checkpoint.rename(away)
        shutil.rmtree(away.parent, ignore_errors=True)


def _publish_part(staged: Path, final: Path) -> None:
    """What another machine than the main process's has written, where they share no file system.

    Where they do share one, everything has its name already, and a machine may not know that yet.
    """
    with suppress(FileNotFoundError):  # renamed by the main process
        if final.exists():
            move_files(staged, final)
        else:
            staged.rename(final)
