"""The files of a run folder: names, columns, versions.

A run folder holds `run.json` (what ran), `metrics.jsonl` (one log line per line, and events) and, for every recorded
update, `tokens/update-000012.parquet` with one row per valid response token; ranks other than 0 write
`tokens/update-000012-rank3.parquet`. `completions.jsonl` has a sample of what the model wrote (`completions.py`).

| column | type | |
|---|---|---|
| `response` | int32 | response within the file |
| `group` | int32 | prompt within the file |
| `position` | int32 | column of the token within its response |
| `token_id` | int32, null where unknown | |
| `logprob`, `old_logprob` | float32 | log π_θ, log π_old in nats |
| `advantage` | float32 | A |
| `rollout_logprob`, `entropy`, `sum_pi_squared` | float32, null where unknown | log μ, H in nats, Σ_v π(v)² |

The key `dgpo` of the parquet metadata is JSON: `schema`, `update`, `generation`, `index` (of the update within its
generation), `rank`, `world_size`, `totals`, `anchor` (the policy that the ratio was taken against, "old" or "rollout";
"old" where it is missing).

JSON has no NaN or infinity: `run.json` and `metrics.jsonl` have the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOKENS_SCHEMA = "dgpo.tokens/1"
RUN_SCHEMA = "dgpo.run/1"
TOKENS, METRICS, INFO, COMPLETIONS = "tokens", "metrics.jsonl", "run.json", "completions.jsonl"
LOG = "log.jsonl"
"""Written by `dgpo train` into its output folder where the run is not recorded: the lines of a `metrics.jsonl`."""

TRAINER_STATE = "trainer_state.json"
"""Written by transformers' trainer into every checkpoint; its `log_history` is the log up to that step."""

FLOATS = ("logprob", "old_logprob", "advantage", "rollout_logprob", "entropy", "sum_pi_squared")
INTEGERS = ("response", "group", "position", "token_id")
NEVER_NULL = ("response", "group", "position", "logprob", "advantage")

_TOKEN_FILE = re.compile(r"update-([0-9]{1,15})(?:-rank([0-9]{1,9}))?\.parquet$")


class TokenFile(NamedTuple):
    """A token file, as described by its name."""

    update: int
    rank: int
    path: Path


def token_file(folder: Path, update: int, rank: int) -> Path:
    """Where the tokens of an update on one rank are written in a run folder."""
    return folder / TOKENS / f"update-{update:06d}{f'-rank{rank}' if rank else ''}.parquet"


def named(path: Path) -> TokenFile | None:
    """Parse the name of a token file; None for any other name."""
    match = _TOKEN_FILE.fullmatch(path.name)
    return None if match is None else TokenFile(int(match[1]), int(match[2] or 0), path)


def token_files(folder: Path) -> Iterator[TokenFile]:
    """The token files of a run folder, by update and rank."""
    found = map(named, (folder / TOKENS).glob("update-*.parquet"))
    return iter(sorted(file for file in found if file is not None))


def in_words(value: Any) -> Any:
    """NaN and infinities as "nan", "inf" and "-inf", at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: in_words(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(inner) for inner in value]
    return value


def in_numbers(value: Any) -> Any:
    """The inverse of `in_words`."""
    if isinstance(value, dict):
        return {name: in_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [in_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
