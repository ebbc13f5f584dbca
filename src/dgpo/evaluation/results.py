"""What an evaluation leaves behind: two files and a table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo.evaluation.evaluate import Evaluation
from dgpo.evaluation.files import write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from rich.table import Table


def write(evaluation: Evaluation, folder: str | os.PathLike[str], **extra: Any) -> tuple[Path, Path]:
    """Write `results.json` and `generations.jsonl` into `folder`, which is created; each file whole or not at all.

    `results.json` holds the fields of `Evaluation` except `generations`, and `extra` beside them (the model, the task,
    ...). `generations.jsonl` holds one completion per line and is written first: results without their generations do
    not occur.

    Returns:
        the paths (results, generations).

    Raises:
        ValueError: `extra` has the name of a field, or something holds NaN or an infinity.
        TypeError: something has no form in JSON.
        OSError: the folder cannot be created or written to.
    """
    results = asdict(evaluation)
    generations = results.pop("generations")
    if taken := sorted(extra.keys() & {*results, "generations"}):
        raise ValueError(f"extra names {', '.join(taken)}; expected names that results.json does not have already")
    # ASCII: a U+2028 in a completion would end the line for readers that split with str.splitlines
    lines = [json.dumps(row, allow_nan=False) + "\n" for row in generations]
    document = {**extra, **results}
    json.dumps(document, allow_nan=False)  # fail before either file is replaced
    generations_path = write_text_atomic(Path(folder) / "generations.jsonl", "".join(lines))
    return write_json_atomic(Path(folder) / "results.json", document), generations_path


def table(evaluation: Evaluation) -> Table:
    """One row per estimate: metric, value in percent, 95 % interval over problems; the settings as caption."""
    from rich.table import Table

    settings, rates = evaluation.settings, evaluation.rates
    drawn = (
        f"{settings['samples']} samples at temperature {settings['temperature']:g}, top_p {settings['top_p']:g}, "
        f"seed {settings['seed']}"
    )
    rows = Table(
        title=f"{evaluation.problems} problems",
        min_width=64,  # rich folds a caption to the width of its table
        caption=f"{drawn if settings['samples'] else 'greedy only'}\nat most {settings['max_new_tokens']} new tokens; "
        f"{100 * rates['truncated']:.1f} % truncated, {rates['mean_tokens']:.1f} tokens on average",
    )
    rows.add_column("metric")
    rows.add_column("value, %", justify="right")
    rows.add_column("95 % interval", justify="right")
    for name, estimate in evaluation.estimates.items():
        bounds = f"{100 * estimate.low:.1f} .. {100 * estimate.high:.1f}"
        rows.add_row(name, f"{100 * estimate.value:.1f}", bounds)
    return rows
