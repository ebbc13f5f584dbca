"""Callbacks: stop on a signal with a checkpoint; a progress bar that shows one metric."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dgpo.training.terminal import TerminalLog

ONE_PRESS = 1.0
"""Seconds within which further signals belong to the first: torchrun passes on a Ctrl-C that its ranks had as well."""


class StopOnSignal(TrainerCallback):
    """On Ctrl-C, SIGTERM or SIGHUP: finish the optimiser step, save a checkpoint, stop. A second Ctrl-C stops at once.

    A signal that the process was started to ignore stays ignored: SIGHUP under `nohup`, SIGINT in the background of a
    script. When the terminal is gone, which is what SIGHUP says, output goes nowhere from then on.

    Use it as a context manager around `trainer.train()`; `stopped` says afterwards whether training was cut short. All
    ranks stop after the same step, whichever of them a signal reached first.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self) -> None:
        self.stopped = False
        self._requested: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {
                number: signal.signal(number, self._request)
                for number in self.SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested is not None:
            if number == signal.SIGINT and time.monotonic() - self._requested > ONE_PRESS:
                raise KeyboardInterrupt
            return
        self._requested = time.monotonic()
        for descriptor in (1, 2):
            _silence(descriptor)
        # not `print`: the signal may have interrupted one, and Python's buffers cannot be entered twice
        with suppress(OSError):  # nobody reads it
            os.write(1, b"\nstopping after this step and saving a checkpoint; press again to stop immediately\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # every rank must call this after every step: it is a collective
        if self._any_rank(args.device):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def _any_rank(self, device: torch.device) -> bool:
        requested = self._requested is not None
        if not (dist.is_available() and dist.is_initialized()):
            return requested
        flag = torch.tensor(int(requested), device=device)
        # any rank is enough: a launcher may signal one process only
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


def _silence(descriptor: int) -> None:
    """Point it to the null device where it is a terminal that is gone: a log line must not end what is to be saved."""
    try:
        os.get_terminal_size(descriptor)
    except OSError as error:
        if error.errno == errno.EIO:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


class RewardProgress(ProgressCallback):
    """A progress bar that shows the latest value of one metric, in place of a line of all metrics per log."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and self.metric in logs:
            self.training_bar.set_postfix({self.metric: f"{logs[self.metric]:.3g}"})

    @classmethod
    def install(cls, trainer: Trainer, metric: str) -> None:
        """Let it take the place of the trainer's own progress output."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(TerminalLog)
        trainer.add_callback(cls(metric))
