"""What the model wrote: a bounded sample of the prompts and completions of a run, one JSON object per line."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dgpo.files import loads, read_text, write_lines_atomic
from dgpo.runs.schema import COMPLETIONS

LONGEST_PROMPT = 4_000
LONGEST_COMPLETION = 16_000
LONGEST_GOLD = 500
"""Characters that are recorded of a text; of a longer one the middle is left out."""

MOST_PER_PROMPT = 8
"""Completions of one prompt that are recorded: those with the lowest and the highest advantage among them."""

LIMIT = 16 * 2**20
"""Bytes of the file. Beyond it every other generation is dropped, and half as many are recorded from then on."""

STOP, CUT = "stop", "limit"
"""Why a completion ended: by an end token, or at the limit of tokens."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion that was sampled in training.

    Its texts are as the model wrote them, with control characters and whatever else: escape them before you show them.

    Attributes:
        update: the first update that it was sampled for, from 1.
        prompt_id: equal for equal prompts, in the whole run.
        prompt: as the model saw it, with the chat template.
        completion: as the model wrote it, with its end token.
        gold: the reference answer; None if the data has none.
        rewards: reward function -> what it gave; None where it gave nothing.
        advantage: A, as the loss had it; None if it was not finite.
        ended: `STOP` or `CUT`.
        token_ids: of the completion.
    """

    update: int
    prompt_id: str
    prompt: str
    completion: str
    gold: str | None
    rewards: Mapping[str, float | None]
    advantage: float | None
    ended: str
    token_ids: tuple[int, ...]


class CompletionWriter:
    """Appends to the file of a run folder, within `LIMIT`.

    Of every generation the prompts with the lowest ids are recorded. An id is a hash, so these are prompts at random,
    and the same ones whenever they come up again.

    Args:
        folder: the run folder.
        prompts: how many prompts of a generation.
    """

    def __init__(self, folder: str | os.PathLike[str], prompts: int) -> None:
        self.path, self.prompts = Path(folder) / COMPLETIONS, prompts
        self._stride = 1
        self._generations = 0

    def begin(self, step: int) -> None:
        """Training starts after `step` updates: completions of later ones, from before a resume, are dropped."""
        if self.path.exists():
            self._rewrite(lambda row, _: row["update"] <= step)

    def chosen(self, prompt_ids: Sequence[str], advantages: Sequence[float]) -> list[int]:
        """Which completions of a generation to record, in order; none of it in most generations of a long run."""
        self._generations += 1
        if not self.prompts or (self._generations - 1) % self._stride:
            return []
        found: list[int] = []
        for prompt in sorted(set(prompt_ids))[: self.prompts]:
            rows = [i for i, one in enumerate(prompt_ids) if one == prompt]
            if len(rows) > MOST_PER_PROMPT:
                # evenly over the ranks of the advantage, both ends included
                rows.sort(key=lambda i: advantages[i])
                rows = [rows[round(i * (len(rows) - 1) / (MOST_PER_PROMPT - 1))] for i in range(MOST_PER_PROMPT)]
            found += sorted(rows)
        return found

    def write(self, completions: Sequence[Completion]) -> None:
        """Append completions of one generation.

        Raises:
            OSError: if the file cannot be written.
        """
        if not completions:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(asdict(one), allow_nan=False) + "\n" for one in completions)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
        if self.path.stat().st_size > LIMIT:
            self._stride *= 2
            self._rewrite(lambda _, generation: generation % 2 == 0)

    def _rewrite(self, wanted: Callable[[Mapping[str, Any], int], bool]) -> None:
        """Keep some lines, by the row and the number of its generation in the file."""
        kept, numbers = [], dict[int, int]()
        for line in read_text(self.path).split("\n"):
            # half a line, which a killed writer leaves behind, has no update
            row = _object(line)
            if row is not None and wanted(row, numbers.setdefault(row["update"], len(numbers))):
                kept.append(f"{line}\n")
        write_lines_atomic(self.path, kept)


def prompt_id(token_ids: bytes) -> str:
    """The id of a prompt, from the bytes of its token ids."""
    return hashlib.blake2b(token_ids, digest_size=8).hexdigest()


def clipped(text: str, longest: int) -> str:
    """A text without its middle if it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"


def read_completions(path: str | os.PathLike[str], *, leave_out: Callable[[int, str], None]) -> list[Completion]:
    """The completions of a run folder, in order; none if there is no such file.

    Args:
        path: the file.
        leave_out: called for a line that cannot be used, with its number and what is wrong.

    Raises:
        ValueError: if the file is not UTF-8 text.
        OSError: if the file cannot be read.
    """
    try:
        lines = read_text(path).removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        row = _object(line)
        if row is None and number == len(lines):
            break  # a killed writer
        try:
            found.append(_completion(row))
        except ValueError as error:
            leave_out(number, f"{str(path)!r}, line {number} {error}")
    return found


def _object(line: str) -> dict[str, Any] | None:
    """A line that is a JSON object with an update."""
    try:
        row = loads(line)
    except ValueError:
        return None
    update = row.get("update") if isinstance(row, dict) else None
    return row if isinstance(update, int) and not isinstance(update, bool) and 0 <= update < 2**31 else None


def _completion(row: dict[str, Any] | None) -> Completion:
    """Raises ValueError where a field is missing or of another type."""
    if row is None:
        raise ValueError("is not a JSON object with an update >= 0")
    for name in ("prompt_id", "prompt", "completion", "ended"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"has {name} = {row.get(name)!r:.60}; expected a string")
    if not isinstance(row.get("gold"), str | None):
        raise ValueError(f"has gold = {row.get('gold')!r:.60}; expected a string or null")
    rewards, ids = row.get("rewards"), row.get("token_ids")
    if not isinstance(rewards, dict) or not all(value is None or _number(value) for value in rewards.values()):
        raise ValueError(f"has rewards = {rewards!r:.60}; expected names and numbers")
    if row.get("advantage") is not None and not _number(row["advantage"]):
        raise ValueError(f"has advantage = {row['advantage']!r:.60}; expected a finite number or null")
    if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < 2**31 for i in ids):
        raise ValueError(f"has token_ids = {ids!r:.60}; expected integers >= 0")
    names = {field.name for field in fields(Completion)}
    return Completion(**{name: value for name, value in row.items() if name in names} | {"token_ids": tuple(ids)})


def _number(value: Any) -> bool:
    # an integer of any size is JSON
    return not isinstance(value, bool) and (
        (isinstance(value, int) and abs(value) < 2**53) or (isinstance(value, float) and math.isfinite(value))
    )
