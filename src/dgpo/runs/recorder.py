"""Writing a run folder while training, within a limit on its size; never a reason for training to stop."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from torch import Tensor

from dgpo.aggregation import StepTotals
from dgpo.files import write_json_atomic
from dgpo.runs.schema import INFO, METRICS, RUN_SCHEMA, in_words, token_files
from dgpo.runs.tokens import footer
from dgpo.runs.write import TokenTable
from dgpo.tokens import TokenBatch


class Recorder:
    """Writes a run folder while training, and never stops it: an error of the disk is one warning, and then silence.

    Args:
        folder: the run folder.
        every: record the tokens of every `every`-th update.
        limit: bytes that the token files of this rank may take. Beyond it, every other generation is deleted, and from
            then on half as many are recorded: what stays covers the whole run evenly. Where one generation alone takes
            more, its files stay, and a warning says that no more are recorded.
        updates_per_generation: updates that one batch of completions serves.
        rank, world_size: of this process; metrics are written by rank 0.
        warn: called with the one warning.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1,
        limit: float = math.inf,
        updates_per_generation: float = 1,
        rank: int = 0,
        world_size: int = 1,
        warn: Any = print,
    ) -> None:
        self.folder, self.every, self.limit = Path(folder), every, limit
        self.updates_per_generation, self.rank, self.world_size = updates_per_generation, rank, world_size
        self.on = True
        self.stride = 1
        self.first = 0
        """The generation that training began with."""
        self._origin = 0
        self._warn = warn
        self._full = False
        self._table = TokenTable()
        # those of a run that is continued count too
        self._files = {
            path: _File(update, path.stat().st_size, _generation_of(path))
            for update, rank, path in token_files(self.folder)
            if rank == self.rank
        }

    @property
    def last(self) -> int:
        """The last update of which this rank has a file, also from a run that is continued; 0 without one."""
        return max((file.update for file in self._files.values()), default=0)

    def begin(self, step: int) -> None:
        """Training starts after `step` updates, with a new generation.

        What was recorded of later updates, on a way not taken, is deleted.
        """
        self._table = TokenTable()
        self._origin = step
        if self.on:
            with _Guarded(self):
                self._keep(lambda file: file.update <= step)
        # completions of a generation that was cut are sampled again, as a generation of their own
        self.first = max(
            [math.ceil(step / self._per), *(file.generation + 1 for file in self._files.values())], default=0
        )

    @property
    def _per(self) -> float:
        return max(self.updates_per_generation, 1)

    @property
    def taking(self) -> bool:
        """Whether tokens are still recorded at all."""
        return self.on and not self._full

    def wants(self, update: int) -> bool:
        """Whether the tokens of this update (from 1) are to be recorded."""
        return self.taking and (update - 1) % self.every == 0 and self.generation(update) % self.stride == 0

    def agree(self, taking: bool, stride: int, first: int) -> None:
        """Do as all ranks do: stop where one has stopped, keep every `stride`-th generation, count them alike."""
        self._full |= not taking
        self.first = first
        if stride > self.stride and self.on:
            with _Guarded(self):
                self._thin(stride)

    def generation(self, update: int) -> int:
        """The batch of completions that an update (from 1, after the beginning) belongs to, from 0."""
        return self.first + int((update - 1 - self._origin) // self._per)

    def add(self, tokens: TokenBatch, **more: Tensor | None) -> None:
        """One micro-batch of an update; `more` as in `record`."""
        self._table.add(tokens, **more)

    def finish(self, update: int, totals: StepTotals | None = None) -> None:
        """Write the micro-batches that were added as this update's file."""
        table, self._table = self._table, TokenTable()
        if not table or not self.on:
            return
        with _Guarded(self):
            generation = self.generation(update)
            path = table.write(
                self.folder,
                update=update,
                generation=generation,
                index=int((update - 1 - self._origin) % self._per),
                totals=totals,
                rank=self.rank,
                world_size=self.world_size,
            )
            self._files[path] = _File(update, path.stat().st_size, generation)
            while sum(file.size for file in self._files.values()) > self.limit and not self._full:
                if len({file.generation for file in self._files.values()}) == 1:
                    self._full = True
                    self._warn(
                        f"one generation of tokens takes more than the {self.limit / 2**20:.3g} MiB of this rank in "
                        f"{str(self.folder)!r}: no more are recorded"
                    )
                else:
                    self._thin(2 * self.stride)

    def _thin(self, stride: int) -> None:
        self.stride = stride
        self._keep(lambda file: file.generation % stride == 0)

    def _keep(self, wanted: Callable[[_File], bool]) -> None:
        for path in [path for path, file in self._files.items() if not wanted(file)]:
            path.unlink(missing_ok=True)
            del self._files[path]

    def info(self, about: dict[str, Any]) -> None:
        """Write `run.json`; NaN and infinities as words."""
        if self.on:
            with _Guarded(self):
                write_json_atomic(self.folder / INFO, in_words({"schema": RUN_SCHEMA, **about}))

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; NaN and infinities, for which JSON has no form, as words."""
        if not self.on:
            return
        with _Guarded(self):
            self.folder.mkdir(parents=True, exist_ok=True)
            line = json.dumps(in_words(row)) + "\n"
            with open(self.folder / METRICS, "ab+") as file:
                _drop_half_a_line(file)
                file.write(line.encode())

    def guard(self) -> _Guarded:
        """Around other writing into the folder: what it raises because of the disk is the one warning."""
        return _Guarded(self)


class _File(NamedTuple):
    update: int
    size: int
    generation: int


def _generation_of(path: Path) -> int:
    """The generation that a file of tokens belongs to; -1 where its footer cannot be read."""
    try:
        return footer(path).generation
    except ValueError:
        return -1


def _drop_half_a_line(file: IO[bytes]) -> None:
    """Cut off what a writer that was killed left behind the last line feed."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start > 0:
        start = max(0, start - 4096)
        file.seek(start)
        line_feed = file.read(min(4096, end - start)).rfind(b"\n")
        if line_feed >= 0:
            start += line_feed + 1
            break
    if start < end:
        file.truncate(start)


class _Guarded:
    """Turns an OSError into one warning, and the recorder off."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, OSError):
            return False
        self.recorder.on = False
        self.recorder._warn(
            f"recording to {str(self.recorder.folder)!r} failed and is off from here on; training continues: {error}"
        )
        return True
