"""The page of runs, and what any page is: one HTML file with its script, style, plotly and data, which makes no network
request."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import dgpo
from dgpo.counts import counted
from dgpo.files import write_text_atomic
from dgpo.installation import require
from dgpo.report import cards, sections, written
from dgpo.report.data import collect
from dgpo.report.markup import escaped, tag

SCRIPTS = ("base", "curves", "written", "regions", "overlay", "explorer", "evaluation", "controls", "frame")
"""Parts of the page's script, in execution order; later parts use declarations of earlier ones."""

SECTIONS = {
    "overview": "Overview",
    "curves": "Curves",
    "written": "Completions",
    "regions": "Regions",
    "overlay": "Tokens on weights",
    "explorer": "Explorer",
    "replay": "Replay",
    "doctor": "Doctor",
    "evaluation": "Evaluation",
    "tokens": "Top tokens",
    "config": "Config",
}
"""Id of a section -> its name in the navigation."""

CONTENT: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "written": lambda run: bool(run["written"] or run["info"]),
    "regions": lambda run: bool(run["regions"]["over"]) or bool(run["recorded"]),
    "overlay": lambda run: run["histogram"] is not None or bool(run["recorded"]),
    "replay": lambda run: bool(run["recorded"]),
    "tokens": lambda run: bool(run["recorded"]),
    "config": lambda run: bool(run["info"] or run["config"]),
}
"""Section -> whether a run has something for it; a page of logs alone leaves out the others."""

SECTION = re.compile(r'<section id="(\w+)".*?</section>\n*', re.DOTALL)
PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    evaluation: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the report of some runs as one HTML file, atomically.

    Args:
        runs: folders that were recorded to, or logs, overlaid in this order.
        out: the file.
        evaluation: folders of `dgpo eval`.

    Raises:
        ValueError: as `collect`.
        ModuleNotFoundError: if plotly is not installed, or pyarrow is not and a run has tokens.
        OSError: if the file cannot be written.
    """
    return write_text_atomic(out, page(collect(runs, evaluation)))


def page(data: Mapping[str, Any]) -> str:
    """Render the data of `collect`.

    Raises:
        ModuleNotFoundError: if plotly is not installed.
    """
    runs = data["runs"]
    empty = {name for name, there in CONTENT.items() if not any(there(run) for run in runs)}
    # the explorer uses parts of the overlay's script, and is about recorded tokens
    empty |= {"explorer"} if "overlay" in empty else set()
    parts = {
        "title": escaped("dgpo report: " + _titled([run["label"] for run in runs])),
        "header": cards.header(runs, data["evaluations"], data["groups"]),
        "written": written.section(runs),
        "findings": sections.findings_of_all(runs),
        "replay": sections.each(runs, sections.replay),
        "evaluations": sections.evaluations(data["evaluations"]),
        "top_tokens": sections.each(runs, sections.top_tokens),
        "config": sections.config(runs),
    }
    shown = {name: words for name, words in SECTIONS.items() if name not in empty}
    scripts = [name for name in SCRIPTS if name not in empty]
    return rendered("page.html", shown, scripts, parts, _for_the_browser(data))


def _titled(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{counted(len(names), 'run')}: {', '.join(names[:3])}, …"


def rendered(
    template: str, named: Mapping[str, str], scripts: Sequence[str], parts: Mapping[str, str], data: Mapping[str, Any]
) -> str:
    """Fill the template of a page, in what all pages share (`shell.html`).

    Text from a run has to be escaped in `parts`; in `data`, a JSON block, it need not. The content security policy of
    the page allows only the two scripts whose hashes it lists, and no network request.

    Args:
        template: file of its sections among the assets, after the overview.
        named: id of a section -> its name in the navigation; others of the template are left out.
        scripts: parts of its script, in execution order.
        parts: name of a place -> HTML; `title` and `header` of the overview among them.
        data: what the script reads.

    Raises:
        ModuleNotFoundError: if plotly is not installed.
    """
    plotly, script = _plotly(), _script(scripts)
    whole = {
        **parts,
        "links": "\n".join(tag("li", tag("a", name, href=f"#{place}")) for place, name in named.items()),
        "policy": _policy([plotly, script]),
        "style": _asset("style.css"),
        "version": escaped(dgpo.__version__),
        "data": _json(data),
        "plotly": plotly,
        "script": script,
    }
    sections = SECTION.sub(lambda section: section[0] if section[1] in named else "", _asset(template))
    places = _asset("shell.html").replace("{{sections}}", sections)
    # a single pass, so that placeholders in text of a run are not filled
    return PLACE.sub(lambda place: whole[place[1]], places)


def _for_the_browser(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without what the page has as text."""
    keys = (
        "label",
        "colour",
        "objective",
        "summary",
        "charts",
        "evaluations",
        "regions",
        "histogram",
        "resumed",
        "no_tokens",
    )
    runs = [
        {key: run[key] for key in (*keys, "read", "recorded", "every", "broken", "incomplete", "damaged")}
        | {"thinned": sections.thinned(run)}
        for run in data["runs"]
    ]
    return {**data, "runs": runs}


def _json(data: Mapping[str, Any]) -> str:
    """JSON that is safe between script tags: without characters that an HTML parser interprets."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    # plotly adds style rules at run time, and exports figures through a data or blob image
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _script(scripts: Sequence[str]) -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in scripts)
    return f'"use strict";\n(() => {{\n{parts}\n}})();'


def _asset(name: str) -> str:
    return files("dgpo.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    require("the report draws with", "report", "plotly")
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
