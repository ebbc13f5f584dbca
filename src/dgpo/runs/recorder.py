"""Writing a run folder while training, within a size limit. A failed write never stops training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dgpo.aggregation import StepTotals
from dgpo.files import write_json_atomic
from dgpo.runs.append import append_line
from dgpo.runs.schema import INFO, METRICS, RUN_SCHEMA, in_words, token_files
from dgpo.runs.tokens import Part, footer
from dgpo.runs.write import TokenTable
from dgpo.tokens import TokenBatch


class Recorder:
    """Writes a run folder while training. A disk error gives one warning and turns recording off; training continues.

    Args:
        folder: the run folder.
        every: record the tokens of every `every`-th update.
        limit: maximum size of the token files of this rank, in bytes. Beyond it, every other generation is deleted and
            half as many are recorded from then on, so that the remaining files cover the run evenly. If a single
            generation exceeds it, its files stay, and a warning says that no more are recorded.
        updates_per_generation: number of updates per batch of completions.
        rank, world_size: of this process; rank 0 writes the metrics.
        anchor: the policy that the ratio is taken against.
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
        anchor: str = "old",
        warn: Any = print,
    ) -> None:
        self.folder, self.every, self.limit = Path(folder), every, limit
        self.updates_per_generation, self.rank, self.world_size = updates_per_generation, rank, world_size
        self.anchor = anchor
        self.on = True
        self.stride = 1
        self.first = 0
        """The generation that training began with."""
        self._origin = 0
        self._warn = warn
        self._full = False
        self._table = TokenTable()
        # the files of a resumed run count too
        self._files = {
            path: _File(update, path.stat().st_size, _generation_of(path))
            for update, rank, path in token_files(self.folder)
            if rank == self.rank
        }

    @property
    def last(self) -> int:
        """The last update that this rank has a file of, including files of a resumed run; 0 without files."""
        return max((file.update for file in self._files.values()), default=0)

    def begin(self, step: int) -> None:
        """Training starts after `step` updates, with a new generation.

        Files of later updates, from before the resume, are deleted.
        """
        self._table = TokenTable()
        self._origin = step
        if self.on:
            with self.guard():
                self._keep(lambda file: file.update <= step)
        # the completions of an interrupted generation are sampled again, as a new generation
        self.first = max(
            [math.ceil(step / self._per), *(file.generation + 1 for file in self._files.values())], default=0
        )

    @property
    def _per(self) -> float:
        # below 1, several generations share an update, which then counts as one
        return max(self.updates_per_generation, 1)

    @property
    def taking(self) -> bool:
        """Whether tokens are still recorded."""
        return self.on and not self._full

    def wants(self, update: int) -> bool:
        """Whether the tokens of this update (from 1) are to be recorded."""
        return self.taking and (update - 1) % self.every == 0 and self.generation(update) % self.stride == 0

    def agree(self, taking: bool, stride: int, first: int) -> None:
        """Adopt the state of all ranks: whether any has stopped, the stride, and the first generation."""
        self._full |= not taking
        self.first = first
        if stride > self.stride and self.on:
            with self.guard():
                self._thin(stride)

    def generation(self, update: int) -> int:
        """The batch of completions that an update (from 1, after the beginning) belongs to, from 0."""
        return self.first + int((update - 1 - self._origin) // self._per)

    def add(self, tokens: TokenBatch, **more: Tensor | None) -> None:
        """One micro-batch of an update; `more` as in `record`."""
        self._table.add(tokens, **more)

    def finish(self, update: int, totals: StepTotals | None = None) -> None:
        """Write the added micro-batches as the file of this update."""
        # a new table first: the rows of a failed write must not go to the next update
        table, self._table = self._table, TokenTable()
        if not table or not self.on:
            return
        with self.guard():
            generation, index = self.generation(update), int((update - 1 - self._origin) % self._per)
            part = Part(update, generation, totals, index, self.rank, self.world_size, self.anchor)
            path = table.write(self.folder, part)
            self._files[path] = _File(update, path.stat().st_size, generation)
            # each round drops about every other generation, until one is left
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
            with self.guard():
                write_json_atomic(self.folder / INFO, in_words({"schema": RUN_SCHEMA, **about}))

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; NaN and infinities, which JSON does not have, as words."""
        if not self.on:
            return
        with self.guard():
            append_line(self.folder / METRICS, row)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn an OSError into the one warning, and the recorder off; also for other writes to the folder."""
        try:
            yield
        except OSError as error:
            self.on = False
            self._warn(f"recording to {str(self.folder)!r} failed and is off from here on; training continues: {error}")


class _File(NamedTuple):
    update: int
    size: int
    generation: int


def _generation_of(path: Path) -> int:
    """The generation of a token file; -1 if its footer cannot be read."""
    try:
        return footer(path).generation
    except ValueError:
        return -1
