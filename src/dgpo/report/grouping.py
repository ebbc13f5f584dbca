"""Runs that differ in their seed alone belong together; what else differs names the groups."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SEEDS = ("seed", "config.seed", "config.data_seed")
"""Settings in which the runs of a group differ."""

NO_SETTING = re.compile(
    r"schema|run|started|tokenizer|engine|git(\..*)?|hardware(\..*)?|versions(\..*)?|data\.rows_hashed"
    r"|objective(\..*)?|aggregation(\..*)?|model\.(class|parameters)"
    r"|config\.(output_dir|record|run_name|logging_dir|project|trackio_space_id|hub_model_id|eval_benchmark_kwargs"
    r"|resume_from_checkpoint|objective(_kwargs)?|disable_tqdm|report_to|save_.*|logging_.*|record_.*)"
)
"""Entries of `run.json` that do not say how a run was trained, or that the label of the objective says."""

NULL = "null"
"""A setting that is not given, as `flattened` writes it."""

MOST_NAMED = 3
"""Settings in the name of a group."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How some runs are grouped.

    Attributes:
        labels: of the groups, in the order of their first runs.
        of: of each run, the place of its group.
        differences: setting -> its value in each run, as text; "–" where it is null or a run does not have it.
    """

    labels: tuple[str, ...]
    of: tuple[int, ...]
    differences: Mapping[str, tuple[str, ...]]

    @property
    def several(self) -> bool:
        """Whether a line per group says more than a line per run: of two runs it does not."""
        return len(self.labels) < len(self.of) > 2


def group(names: Sequence[str], objectives: Sequence[str | None], infos: Sequence[Mapping[str, Any]]) -> Groups:
    """Group runs by what differs between them apart from the seed.

    Runs of which nothing is known are groups of their own.

    Args:
        names: of the runs.
        objectives: their labels.
        infos: their `run.json`.
    """
    flat = [
        {
            "objective": objective or "–",
            # null is the same as not there: a mapping that one run leaves out has no entries in it
            **{k: v for k, v in flattened(info).items() if v != NULL and not NO_SETTING.fullmatch(k)},
        }
        for objective, info in zip(objectives, infos, strict=True)
    ]
    settings = list(dict.fromkeys(name for one in flat for name in one))
    values = {name: tuple(one.get(name, "–") for one in flat) for name in settings}
    differences = {name: found for name, found in values.items() if len(set(found)) > 1}
    if "config.seed" in differences:
        differences.pop("seed", None)  # `run.json` has it twice
    deciding = [name for name in differences if name not in SEEDS]
    keys: list[tuple[str, ...]] = []
    for number, info in enumerate(infos):
        key = tuple(differences[name][number] for name in deciding)
        keys.append(key if info else (*key, names[number]))
    order = list(dict.fromkeys(keys))
    of = tuple(order.index(key) for key in keys)
    labels = [names[of.index(place)] for place in range(len(order))]
    if len(order) < len(names):
        labels = [_label(deciding, key) or objectives[0] or "all runs" for key in order]
    return Groups(labels=tuple(labels), of=of, differences=differences)


def _label(settings: Sequence[str], values: Sequence[str]) -> str:
    words = [
        value if name == "objective" else f"{name.rpartition('.')[2]} = {value}"
        for name, value in zip(settings, values, strict=False)
    ]
    return ", ".join(words[:MOST_NAMED]) + (", …" if len(words) > MOST_NAMED else "")


def flattened(given: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings by dotted name, as text."""
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    walk("", given)
    return found
