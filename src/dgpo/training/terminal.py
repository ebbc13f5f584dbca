"""What a run shows: three lines before it, a short line per log; all metrics go to a file."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dgpo import registry
from dgpo.counts import counted
from dgpo.runs.append import append_line
from dgpo.runs.progress_line import evaluation_line, progress_line
from dgpo.runs.schema import LOG, METRICS
from dgpo.training.config import DGPOConfig

logger = logging.getLogger(__name__)


def opening(config: DGPOConfig, updates: int) -> list[str]:
    """What is trained, on what schedule, and where the results go, as three lines.

    Args:
        config: of the run.
        updates: optimiser updates of the whole run.
    """
    objective = registry.written(config.objective, config.make_objective())
    advantage = config.advantage or f"by scale_rewards = {config.scale_rewards}"
    kl = f"KL coefficient {config.beta:g}" if config.beta else "no KL term"
    per_update = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    generation = config.generation_batch_size or per_update
    most = config.max_completion_length
    tokens = f"at most {per_update} x {counted(most, 'token')} each" if most else "of unlimited length"
    per_generation = (
        f"{config.updates_per_generation:g} per generation of {generation:,} completions "
        f"({counted(generation // config.num_generations, 'prompt')} x {config.num_generations})"
    )
    log = Path(config.record, METRICS) if config.record is not None else Path(config.output_dir, LOG)
    reported = config.report_to if isinstance(config.report_to, list) else [config.report_to]
    to = [str(one) for one in reported if one and one != "none"]
    return [
        f"objective  {objective}, {config.aggregation}, advantage {advantage}, {kl}",
        f"schedule   {counted(updates, 'update')}, {per_generation}, {tokens}",
        f"output     {config.output_dir}; all metrics: {log}" + (f", {', '.join(to)}" if to else ""),
    ]


class TerminalLog(TrainerCallback):
    """Prints `opening` when training begins, and one short line per log; `install` puts it in place of TRL's dict.

    All metrics of a log are appended to `log.jsonl` in the output folder, unless the run is recorded, whose
    `metrics.jsonl` has them. Nothing in the file is replaced: a reader drops what came before a run that begins anew. A
    disk error gives one warning, and training continues.
    """

    def __init__(self, config: DGPOConfig) -> None:
        self._config = config
        self._file = Path(config.output_dir, LOG) if config.record is None else None
        self._began = 0.0
        self._seconds: list[float] = []

    @classmethod
    def install(cls, trainer: Trainer, config: DGPOConfig) -> None:
        """Let it take the place of the default log lines; a progress bar stays one, and a notebook keeps its table."""
        # the last one is the default, which is added after the callbacks of the user
        default = [
            one for one in trainer.callback_handler.callbacks if type(one) in (PrinterCallback, ProgressCallback)
        ]
        if not default:
            return
        trainer.remove_callback(default[-1])
        if isinstance(default[-1], ProgressCallback):
            trainer.add_callback(_Bar())
        trainer.add_callback(cls(config))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        for line in opening(self._config, state.max_steps):
            _print(line)
        self._append({"event": "begin", "step": state.global_step})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds.append(time.perf_counter() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        self._append({**logs, "step": state.global_step})
        # without the time between updates: evaluations and checkpoints are not what an update costs
        seconds = sum(self._seconds) / len(self._seconds) if self._seconds else None
        if (line := progress_line(state.global_step, state.max_steps, logs, seconds)) is not None:
            self._seconds.clear()
            _print(line)
        if (line := evaluation_line(state.global_step, state.max_steps, logs)) is not None:
            _print(line)

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            append_line(self._file, row)
        except OSError as error:
            logger.warning("%s cannot be written, and is not from here on; training continues: %s", self._file, error)
            self._file = None


def _print(line: str) -> None:
    """Above the progress bar, if there is one, and at once: the output may be a file that somebody follows."""
    tqdm.write(line)
    sys.stdout.flush()


class _Bar(ProgressCallback):
    """transformers' progress bar without its log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        pass
