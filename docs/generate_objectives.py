"""Write what follows from the registered classes: docs/objectives.md (after docs/objectives_head.md), its figures, and
the imports for type checkers in src/dgpo/objectives/__init__.py.

Formulas and fields are the docstrings'; what a weight reads and where it is 0 is what the classes answer.

    python docs/generate_objectives.py            write page, figures and imports
    python docs/generate_objectives.py --check    exit 1 if one of them is not what would be written
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from dgpo.objectives import OBJECTIVES, Objective, Read, conformance, table
from dgpo.objectives.curves import WeightCurve, weight_curve
from dgpo.regions import REGIONS, regions

DOCS = Path(__file__).resolve().parent
PAGE = "objectives.md"
HEAD = "objectives_head.md"
FIGURES = "figures/objectives"
CLASSES = "../src/dgpo/objectives/__init__.py"

METHOD = """### `{name}`

{summary} {paper}

```{{eval-rst}}
.. py:class:: {signature}
```

{formula}

![Weight of {name} against the ratio, on ∇log π and on ∇π, for A < 0 and A > 0]({figure})

{fields}

* **Inputs of w:** {reads}.
* **Boundaries:** {boundaries}.
* **w is 0** {zero}.
* **Properties:** {shape}.
* **Potential φ:** {potential}.{penalty}

{source}

Settings with the same gradient in other frameworks:

{conformance}
"""
HEAD_COMMENT = (
    "<!-- Written by docs/generate_objectives.py. Edit objectives_head.md or the classes, and run it again. -->\n\n"
)
BEFORE_METHODS = """
## Every method

The figures use π_old = exp(-2), the defaults of the class and, at sequence level, a response of one token. The band is
0.8 … 1.2, and a weight of 0 lies on the dotted line. The class declares the inputs of w, and tests change one input
at a time. The regions in which w is 0 were found on ratios from 1/20 to 20 at π_old = 0.5, 0.1 and 0.001, as long as
π <= 1.

In the tables of other frameworks, values without quotes are our fields. `goes with` is the aggregation here that
averages in the way that setting does (up to a constant if the framework normalises by micro-batch). `checked` says
where the gradients were compared with those of the installed framework (`tests/training/test_conformance_trl.py`,
`tests/objectives/test_conformance_frameworks.py`).
"""


def page() -> str:
    """The text of docs/objectives.md."""
    head = (DOCS / HEAD).read_text(encoding="utf-8").replace("@TABLE@", table.as_markdown())
    return HEAD_COMMENT + head + BEFORE_METHODS + "".join("\n" + section(name) for name in OBJECTIVES)


def section(name: str) -> str:
    """What the page says about one method."""
    cls, row = OBJECTIVES[name], next(row for row in table.rows() if row.name == name)
    words = parse(inspect.getdoc(cls) or "")
    return METHOD.format(
        name=name,
        summary=words.summary,
        paper=papers(cls),
        signature=signature(cls),
        formula=words.body,
        figure=f"{FIGURES}/{name}.svg",
        fields=fields(row, words.arguments),
        reads=reads(cls),
        boundaries=boundaries(cls()),
        zero=zero(cls()),
        shape=shape(row),
        potential="an integral of w" if cls.potential is not Objective.potential else "none in closed form; φ = w",
        penalty=penalty(cls()),
        source=words.source,
        conformance=conformance.as_markdown(cls),
    )


# --- docstrings -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Words:
    """A docstring in parts, as Markdown."""

    summary: str
    body: str
    arguments: dict[str, str]
    source: str


def parse(doc: str) -> Words:
    """Take a class docstring apart: first line, formula and remarks, Args, everything from the source on."""
    doc, _, _ = doc.partition("\nRaises:\n")
    summary, _, rest = doc.partition("\n")
    # the source may stand at the end of a paragraph about the defaults: the paragraph goes with it
    start = rest.rfind("\n\n", 0, rest.find("Source: ")) if "Source: " in rest else len(rest)
    body, source = rest[:start], rest[start:].replace("Source: ", "**Source:** ", 1)
    arguments: dict[str, str] = {}
    blocks, inside = [], False
    for line in body.splitlines():
        if line == "Args:":
            inside = True
        elif inside and (match := re.match(r"    (\w+): (.*)", line)):
            arguments[match[1]] = match[2]
        elif inside and line.startswith("        "):
            name = next(reversed(arguments))
            arguments[name] += " " + line.strip()
        else:
            inside = inside and not line
            blocks.append(line)
    return Words(
        summary=summary,
        body=_markdown("\n".join(blocks)),
        arguments=arguments,
        source=_markdown(source),
    )


def _markdown(text: str) -> str:
    """Paragraphs stay, a block after :: becomes a fenced one."""
    out: list[str] = []
    fenced = False
    pending = False
    for line in text.strip("\n").splitlines():
        if fenced and line and not line.startswith("    "):
            while out[-1] == "":
                out.pop()
            out += ["```", ""]
            fenced = False
        if pending and line.startswith("    "):
            out.append("```text")
            fenced, pending = True, False
        if line.endswith("::") and not fenced:
            line, pending = line[:-1], True
        out.append(line[4:] if fenced else line)
    while out and out[-1] == "":
        out.pop()
    text = "\n".join(out + ["```"] * fenced)
    return re.sub(r"\n{3,}", "\n\n", text)


def papers(cls: type[Objective]) -> str:
    """The papers that the class declares."""
    links = [paper.markdown() for paper in cls.papers]
    return f"Paper{'s' * (len(links) > 1)}: {'; '.join(links)}." if links else ""


def signature(cls: type[Objective]) -> str:
    """module.Class(*, field: type = default, ...)."""
    words = [f"{field.name}: {field.type} = {table.shown(field.default)}" for field in dataclasses.fields(cls)]
    return f"{cls.__module__}.{cls.__name__}(" + ", ".join(["*"] * bool(words) + words) + ")"


def fields(row: table.Row, arguments: dict[str, str]) -> str:
    """The table of fields."""
    rows = [
        f"| `{field}` | {default} | {allowed} | {arguments[field].replace('|', chr(92) + '|')} |"
        for field, default, allowed in row.field_cells()
    ]
    return (
        "\n".join(["| field | default | allowed | what it does |", "|---|---|---|---|", *rows])
        if rows
        else "No fields."
    )


# --- what the classes answer ------------------------------------------------------------------------------------------


INPUTS: dict[Read, str] = {
    "ratio": "the ratio",
    "advantage_sign": "the sign of A",
    "advantage_size": "|A|",
    "old_logprob": "π_old",
    "entropy": "the entropy",
    "response": "the other tokens of the response",
    "batch": "the other responses",
}


def reads(cls: type[Objective]) -> str:
    """What w is declared to be a function of: with the defaults, and with an option that is None by default."""
    found = cls().reads
    text = _listed(found)
    for field in dataclasses.fields(cls):
        for value in (0.8, 3.0) if field.default is None else ():
            try:
                more = cls(**{field.name: value}).reads - found
            except ValueError:
                continue
            text += f"; with `{field.name}` also {_listed(more)}" if more else ""
            break
    return text


def _listed(found: frozenset[Read]) -> str:
    return ", ".join(words for name, words in INPUTS.items() if name in found) or "nothing"


def penalty(objective: Objective) -> str:
    """A line about the penalty of a method that has one."""
    if not objective.penalises:
        return ""
    return "\n* **Penalty:** as in the formula, in addition to w · A; it also gives tokens with A = 0 a gradient."


def zero(objective: Objective) -> str:
    """The regions in which w is exactly 0, everywhere or in part."""
    tally = {name: [0, 0] for name in REGIONS}
    for curve in _curves(objective):
        dropped = curve.weight.unsqueeze(1) == 0
        for name, where in regions(curve.tokens, curve.boundaries).items():
            tally[name][0] += int((dropped & where).sum())
            tally[name][1] += int(where.sum())
    words = [f"in {'all' if zeros == total else 'part'} of `{name}`" for name, (zeros, total) in tally.items() if zeros]
    return ", ".join(words) or "nowhere"


def boundaries(objective: Objective) -> str:
    """Where the treatment of a token changes, and what w is in between."""
    found = [curve.boundaries for curve in _curves(objective)]
    edges = [
        _edge("lower", torch.cat([one.low for one in found]).exp(), 0),
        _edge("upper", torch.cat([one.high for one in found]).exp(), math.inf),
    ]
    compared = "the ratio that it compares" if objective.level == "sequence" else "r"
    why = objective.properties().not_ratio_inside
    inside = f"w = {compared}" if why is None else f"w is not {compared}: {why}"
    return " and ".join(filter(None, edges)) + "; in between " + inside if any(edges) else f"none; {inside}"


def _edge(which: str, values: Tensor, none: float) -> str:
    """A boundary in words; nothing for one that no token has."""
    lowest, highest = values.min().item(), values.max().item()
    if lowest == highest == none:
        return ""
    return f"{which} {lowest:g}" if math.isclose(lowest, highest) else f"{which} by π_old"


def _curves(objective: Objective) -> Iterator[WeightCurve]:
    """By π_old and sign of A, at every ratio that a token can have."""
    for old, sign in product((0.5, 0.1, 0.001), (-1.0, 1.0)):
        ratio = torch.logspace(-1, 1, 2001, base=20, dtype=torch.float64)
        log_ratio = ratio[ratio * old <= 1].log()
        yield weight_curve(objective, log_ratio, advantage=sign, old_logprob=math.log(old))


def shape(row: table.Row) -> str:
    """What the class declares."""
    claims = row.properties
    words = ["continuous in r" if claims.continuous else "jumps"]
    words.append(
        f"at most {table.shown(claims.upper_bound)}" if claims.upper_bound < float("inf") else "no upper bound"
    )
    words.append("1 on-policy" if claims.unit_on_policy else "not 1 on-policy")
    words += [] if claims.nonnegative else ["can be negative"]
    words += [
        f"w/π as π → 0 for A {sign} 0: {limit}"
        for sign, limit in (("<", claims.limit_negative), (">", claims.limit_positive))
        if limit
    ]
    words += [f"{row.level} level"] * (row.level != "token") + ["adapts to the batch"] * row.adaptive
    return "; ".join(words)


# --- names for type checkers ------------------------------------------------------------------------------------------


def classes() -> str:
    """The file of `dgpo.objectives`, whose block for type checkers imports every registered class."""
    text = (DOCS / CLASSES).read_text(encoding="utf-8")
    imports = sorted(
        f"    from {cls.__module__} import {cls.__name__} as {cls.__name__}\n" for cls in OBJECTIVES.values()
    )
    return re.sub(
        r"(?<=^if TYPE_CHECKING:)(.*\n)(?:    .*\n)*", lambda match: match[1] + "".join(imports), text, flags=re.M
    )


# --- files ------------------------------------------------------------------------------------------------------------


def written(figures: bool = True) -> dict[str, bytes]:
    """Path below docs/ -> content."""
    files = {PAGE: page().encode(), CLASSES: classes().encode()}
    if figures:
        sys.path.insert(0, str(DOCS / "figures"))
        import weights

        files |= {f"{FIGURES}/{name}.svg": weights.svg_of(name) for name in OBJECTIVES}
    return files


def stale(docs: Path = DOCS, figures: bool = True) -> list[str]:
    """Paths below `docs` that are missing, differ, or belong to no method."""
    files = written(figures)
    wrong = [name for name, content in files.items() if not _same(docs / name, content)]
    known = {f"{name}.svg" for name in OBJECTIVES}
    return wrong + [f"{FIGURES}/{path.name}" for path in sorted((docs / FIGURES).glob("*")) if path.name not in known]


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def main(argv: list[str]) -> int:
    """Write page and figures, or compare them with what is there."""
    parser = argparse.ArgumentParser(description="Write docs/objectives.md and its figures from the classes.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is out of date")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.check:
        wrong = stale(arguments.out)
        if wrong:
            print(f"out of date: {', '.join(wrong)}; run: python docs/generate_objectives.py", file=sys.stderr)
        return int(bool(wrong))
    for name, content in written().items():
        path = arguments.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
