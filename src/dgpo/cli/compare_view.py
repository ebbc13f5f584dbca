"""What `dgpo compare` shows while it runs: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dgpo.comparison.cells import CellFolder, Progress
from dgpo.comparison.runner import Runner
from dgpo.comparison.study import Study
from dgpo.counts import counted
from dgpo.plan.arithmetic import duration

REFRESH = 1.0
"""Seconds between two reads of the logs."""

_SHOWN = {"waiting": "·", "running": "▶", "stopped": "‖", "failed": "✗", "finished": "✓"}
_STYLE = {"failed": "red", "finished": "green", "running": "cyan", "stopped": "yellow", "waiting": "dim"}


class View:
    """Prints what happens; a context manager.

    Args:
        study: what is run.
        console: where to.
        clock: seconds.
    """

    def __init__(self, study: Study, console: Console, clock: Callable[[], float]) -> None:
        self._study, self._console, self._clock = study, console, clock
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next = 0.0
        self._first = True
        self.failed: list[CellFolder] = []
        self.later = 0
        """Runs that come after those of the runner, for the time that is left."""

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    # --- what the runner tells --------------------------------------------------------------------------------------

    def began(self, folder: CellFolder, resumed: bool) -> None:
        """A process of a run has begun."""
        if self._live is None:
            self._say(f"{'continuing' if resumed else 'begun'}: {folder.cell}")

    def ended(self, folder: CellFolder, progress: Progress) -> None:
        """A process of a run has ended."""
        if progress.state == "failed":
            self.failed.append(folder)
            how = f"exit code {progress.code}" if (progress.code or 0) >= 0 else f"signal {-(progress.code or 0)}"
            self._say(f"failed: {folder.cell} ({how}); the others go on. The end of {folder.log_file}:", "red")
            for line in folder.last_words():
                self._say(f"    {line}")
        elif progress.state == "stopped" or self._live is None:
            self._say(f"{progress.state}: {folder.cell}, {duration(progress.seconds)}")

    def waiting(self, folder: CellFolder) -> None:
        """Another process runs it."""
        self._say(f"another process runs this one, and is waited for at the end: {folder.cell}")

    def stopping(self, running: int, first: bool) -> None:
        """Ctrl-C was pressed."""
        if first:
            self._say(f"stopping: {counted(running, 'run')} will save a checkpoint; press again to kill")
        else:
            self._say("killed")

    def tick(self, runner: Runner) -> None:
        """Called several times a second."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + REFRESH
        states = [progress.state for progress in runner.progress.values()]
        if self._live is not None:
            with _terminal_may_be_gone():
                self._live.update(self._table(runner), refresh=True)
        elif self._first and "finished" in states and (left := self._left(runner)) is not None:
            self._first = False
            runs = len(states) - states.count("finished") + self.later
            self._say(f"about {duration(left)} left for {counted(runs, 'run')}")

    def _left(self, runner: Runner) -> float | None:
        return seconds_left(self._study, runner, self.later)

    def _say(self, text: str, style: str = "") -> None:
        with _terminal_may_be_gone():
            # soft_wrap: a path or a line of a log is copied and searched for as it is
            self._console.print(Text(text, style), soft_wrap=True)

    # --- the table --------------------------------------------------------------------------------------------------

    def _table(self, runner: Runner) -> Table:
        left = self._left(runner)
        states = [runner.progress[folder.cell.name].state for folder in runner.folders]
        caption = f"{states.count('finished')} of {len(states)} runs finished"
        caption += f", {self.later} come after them" if self.later else ""
        caption += f", {states.count('failed')} failed" if "failed" in states else ""
        caption += f", about {duration(left)} left" if left is not None else ""
        table = Table(title=Text(self._study.name), caption=Text(caption), min_width=64)
        table.add_column("arm")
        table.add_column("runs")
        table.add_column("now", justify="right")
        for arm in self._study.arms:
            folders = [folder for folder in runner.folders if folder.cell.arm == arm.label]
            marks = Text()
            for folder in folders:
                state = runner.progress[folder.cell.name].state
                # recorded as running by a process that is gone, or by somebody else
                state = "stopped" if state == "running" and folder.cell.name not in runner.running else state
                marks.append(_SHOWN[state], _STYLE[state])
            now = [f"{folder.step()}/{self._study.updates}" for folder in folders if folder.cell.name in runner.running]
            table.add_row(Text(arm.label), marks, Text(" ".join(now)))
        return table


def _terminal_may_be_gone() -> AbstractContextManager[None]:
    """Printing raises OSError after a hang-up, which must not end the runs: they go on, or save a checkpoint."""
    return suppress(OSError)


def seconds_left(study: Study, runner: Runner, later: int = 0) -> float | None:
    """Seconds until all runs have ended: updates that are missing, at the mean time of one so far, over the runs at a
    time. None until an update was measured.

    A run that finished in an earlier call counts with the time that it took then.

    Args:
        study: that is run.
        runner: what of it runs now.
        later: runs that come after.
    """
    seconds = updates = 0.0
    missing: float = later * study.updates
    for folder in runner.folders:
        name, progress = folder.cell.name, runner.progress[folder.cell.name]
        if progress.state == "finished":
            seconds, updates = seconds + progress.seconds, updates + study.updates
            continue
        done = folder.step() if name in runner.running else 0
        # of a run that was continued, only what this process did can be timed: left out
        if done and progress.starts == 1:
            seconds, updates = seconds + runner.running[name], updates + done
        missing += 0 if progress.state == "failed" else study.updates - done
    return missing * seconds / updates / runner.jobs if updates else None
