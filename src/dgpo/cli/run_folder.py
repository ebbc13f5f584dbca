"""The output folder of `dgpo train`: one run, one process, and nothing overwritten without a flag."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from dgpo.files import FolderLock
from dgpo.runs.earlier import recorded_updates
from dgpo.training import DGPOConfig
from dgpo.training.checkpoint_files import MODEL_FILES, checkpoints
from dgpo.training.ranks import on_main
from dgpo.training.recording import occupied, recorded_output


def resume_point(config: DGPOConfig, *, resume: bool, overwrite: bool) -> str | bool:
    """Where to continue from: the checkpoint of `--resume_from_checkpoint`, True for `--resume`, or False.

    Raises:
        ValueError: flags that exclude each other, or no checkpoint to resume from; raised before a model is loaded.
    """
    named = config.resume_from_checkpoint
    if named is not None and resume:
        raise ValueError("--resume and --resume_from_checkpoint exclude each other; give one of them")
    if overwrite and (resume or named is not None):
        raise ValueError("--overwrite_output_dir would delete the checkpoint to resume from; give one of them")
    if named is not None and not Path(named).is_dir():
        raise ValueError(f"resume_from_checkpoint = {named!r}: no such folder")
    if resume and not checkpoints(config.output_dir):
        raise ValueError(f"--resume: no checkpoint in {config.output_dir!r}; to start from scratch, leave --resume out")
    return named if named is not None else resume


def check_record(config: DGPOConfig, where: str | bool, *, overwrite: bool) -> None:
    """Refuse to overwrite the recording of another run, before a model is loaded; the trainer checks further.

    A recording without an update is no run: a command that failed at the first update can be repeated. With `overwrite`
    the configuration allows the recording of the run in `output_dir` to be replaced, and no other.

    Raises:
        ValueError: the folder of `record` holds a run, and this one neither resumes nor replaces it.
    """
    if config.record is None or where or config.record_overwrite or not (updates := recorded_updates(config.record)):
        return
    if not overwrite:
        raise ValueError(occupied(config, updates))
    recorded, output = recorded_output(config.record), Path(config.output_dir).resolve()
    inside = Path(config.record).resolve().is_relative_to(output)
    if not inside and (recorded is None or Path(recorded).resolve() != output):
        raise ValueError(
            f"record = {config.record!r} holds a run with output_dir = {recorded!r}, which --overwrite_output_dir does "
            f"not replace: it is for {config.output_dir!r}; give another folder, or replace that run's recording with "
            "--record_overwrite"
        )
    config.record_overwrite = True


def occupy(config: DGPOConfig, where: str | bool, *, overwrite: bool, held: ExitStack) -> None:
    """Check that the output folder is free for this run, before anything is loaded, and lock it if it exists.

    A new folder is created and locked by `train()`, so that a command that fails leaves none behind.

    Args:
        config: with the folder.
        where: from `resume_point`.
        overwrite: whether existing content may be replaced.
        held: takes the lock, entered by the main process for all ranks.

    Raises:
        FolderInUse: another process trains there.
        ValueError: it holds the checkpoints or the model of another run.
    """

    def look() -> None:
        if Path(config.output_dir).exists():
            held.enter_context(FolderLock(config.output_dir, "training into"))
        continued = where is True or (where and Path(where).resolve().parent == Path(config.output_dir).resolve())
        if continued or overwrite:
            return
        folder = Path(config.output_dir)
        if there := checkpoints(folder):
            what = f"checkpoints of an earlier run (the last is {there[0].name}): continue that with --resume"
        elif models := [name for name in MODEL_FILES if (folder / name).exists()]:
            what = f"a model already ({models[0]}): keep it"
        else:
            return
        raise ValueError(
            f"output_dir = {str(folder)!r} holds {what}, give another --output_dir, or replace it with "
            "--overwrite_output_dir"
        )

    on_main(look)
