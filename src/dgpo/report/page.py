"""The page: one HTML file that holds its script, its style, plotly and the data, and reaches for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import dgpo
from dgpo.files import write_text_atomic
from dgpo.installation import require
from dgpo.report import cards, sections
from dgpo.report.data import collect
from dgpo.report.markup import escaped

SCRIPTS = ("base", "curves", "regions", "overlay", "explorer", "evaluation", "controls")
"""Parts of the page's script, in the order in which they run; what one declares, those after it use."""

PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    evaluation: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the report of some runs as one HTML file, atomically.

    Args:
        runs: folders that were recorded to, overlaid in this order.
        out: the file.
        evaluation: folders of `dgpo eval`.

    Raises:
        ValueError: as `collect`.
        ModuleNotFoundError: plotly is not installed, or pyarrow and a run has tokens.
        OSError: the file cannot be written.
    """
    return write_text_atomic(out, page(collect(runs, evaluation)))


def page(data: Mapping[str, Any]) -> str:
    """The page of what `collect` returned.

    What a run wrote gets in as escaped HTML or as JSON in a data block, and the policy of the page lets no script run
    but the two whose hashes it names, and no request leave.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    plotly, script, runs = _plotly(), _script(), data["runs"]
    title = "dgpo report: " + ", ".join(run["label"] for run in runs)
    parts = {
        "title": escaped(title),
        "policy": _policy([plotly, script]),
        "style": _asset("style.css"),
        "version": escaped(dgpo.__version__),
        "header": cards.header(runs, data["evaluations"]),
        "findings": sections.each(runs, sections.findings),
        "replay": sections.each(runs, sections.replay),
        "evaluations": sections.evaluations(data["evaluations"]),
        "top_tokens": sections.each(runs, sections.top_tokens),
        "config": sections.config(runs),
        "data": _json(_for_the_browser(data)),
        "plotly": plotly,
        "script": script,
    }
    # one pass: a place that stands in what a run wrote is not filled
    return PLACE.sub(lambda place: parts[place[1]], _asset("page.html"))


def _for_the_browser(data: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is in the page as text already."""
    keys = ("label", "objective", "summary", "charts", "evaluations", "regions", "histogram", "resumed", "no_tokens")
    runs = [
        {key: run[key] for key in (*keys, "read", "recorded", "every", "broken", "incomplete", "damaged")}
        for run in data["runs"]
    ]
    return {**data, "runs": runs}


def _json(data: Mapping[str, Any]) -> str:
    """JSON that may stand between script tags: no character in it means anything to an HTML parser."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    # plotly writes style rules at run time, and downloads a figure through an image of its own making
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _script() -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();'


def _asset(name: str) -> str:
    return files("dgpo.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    require("the report draws with", "report", "plotly")
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
