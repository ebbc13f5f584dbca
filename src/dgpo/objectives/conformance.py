"""Tables of the settings in other frameworks that give the gradient of a method here, as the classes declare them."""

from __future__ import annotations

import textwrap
from typing import Any

from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Objective
from dgpo.objectives.table import shown

CHECKED = {
    "trl": "in every test run",
    "verl": "by `make test-verl`, 0.9.1",
    "skyrl": "by `make test-verl`, 0.3.0",
    "liger": "run with Liger 0.8.5",
}
"""How the gradients of a framework's rows are compared with the framework itself. verl, SkyRL and Liger do not share an
environment with TRL's newest release; Liger's were run once, by hand."""

NOBODY_LOOKED = "No settings in other frameworks are recorded for this method."


def settings_in_trl(objective: Objective) -> dict[str, Any]:
    """TRL's options that give this objective's gradient; empty if none do or none are recorded."""
    try:
        return objective.elsewhere.get("trl", Conformance()).options(objective)
    except ValueError:
        return {}


def as_text(method: type[Objective], width: int = 100) -> str:
    """The records of one method as plain text, one paragraph per framework."""
    lines: list[str] = []
    for framework, record in method.elsewhere.items():
        text = f"{FRAMEWORKS[framework]}: {_setting(record)}" + f" ({record.note})" * bool(record.note)
        text = text.replace("`", "")
        lines += textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines or [NOBODY_LOOKED])


def as_markdown(method: type[Objective]) -> str:
    """The rows of one method as a Markdown table; a method without records says so."""
    if not method.elsewhere:
        return NOBODY_LOOKED
    lines = ["| framework | setting | goes with | note | checked |", "|---|---|---|---|---|"]
    for framework, record in method.elsewhere.items():
        how = "-" if record.setting is None else CHECKED[framework]
        goes_with = f"`{record.aggregation}`" if record.aggregation else "-"
        cells = [_setting(record), goes_with, record.note or "-", how]
        lines.append("| " + " | ".join([FRAMEWORKS[framework], *cells]) + " |")
    return "\n".join(lines)


def _setting(record: Conformance) -> str:
    if record.setting is None:
        return "not available"
    text = ", ".join(f"`{option}={shown(value)}`" for option, value in record.setting.items())
    only = ", ".join(f"`{field}={value}`" for field, value in (record.only or {}).items())
    return f"{text}; only {only}" if only else text
