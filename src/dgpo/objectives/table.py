"""The registered methods, read from their classes, as `dgpo objectives` and the documentation print them."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from dgpo.fields import range_text
from dgpo.objectives import OBJECTIVES, Objective, Paper, Properties, find, third_party
from dgpo.registry import is_required

NOTE = (
    "bound: largest w over all ratios, inf where only the clamp of the log ratio bounds it. "
    "w/π: what the weight on ∇π goes to as π -> 0 at fixed π_old = 1/2."
)
HEADER = ("name", "class", "arXiv", "continuous", "bound", "w/π, A<0", "w/π, A>0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One registered method.

    Attributes:
        name: its key in `objectives.OBJECTIVES`.
        cls: name of the class.
        summary: first line of the class's docstring.
        fields: field -> default, in the order of the class.
        ranges: field -> what is allowed, in words.
        properties: what the class declares with its defaults; None if a field has no default.
        papers: of the method, the one that introduced it first.
        level: "token" or "sequence".
        adaptive: whether its weight depends on the batch.
    """

    name: str
    cls: str
    summary: str
    fields: dict[str, Any]
    ranges: dict[str, str]
    properties: Properties | None
    papers: tuple[Paper, ...]
    level: str
    adaptive: bool

    @property
    def arxiv(self) -> str | None:
        """Id of the first paper; None without one."""
        return self.papers[0].arxiv_id if self.papers else None

    def cells(self) -> tuple[str, ...]:
        """The cells of the row under `HEADER`."""
        claims = self.properties
        named = (self.name, self.cls, self.arxiv or "-")
        if claims is None:
            return (*named, "-", "-", "-", "-")
        return (
            *named,
            "yes" if claims.continuous else "no",
            f"{claims.upper_bound:.4g}",
            claims.limit_negative or "-",
            claims.limit_positive or "-",
        )

    def field_cells(self) -> list[tuple[str, str, str]]:
        """Name, default and range of every field."""
        return [
            (field, "-" if default is dataclasses.MISSING else shown(default), self.ranges[field])
            for field, default in self.fields.items()
        ]

    def settings(self) -> str:
        """`field=default, ...`, then "sequence level" and "adaptive" where they apply."""
        words = [
            field if default is dataclasses.MISSING else f"{field}={shown(default)}"
            for field, default in self.fields.items()
        ]
        remarks = [f"{self.level} level"] * (self.level != "token") + ["adaptive"] * self.adaptive
        return "; ".join([", ".join(words) or "no fields", *remarks])


def rows() -> list[Row]:
    """One row per registered method, in the order of the registry."""
    return [_row(name, cls) for name, cls in OBJECTIVES.items()]


def published() -> tuple[list[Row], list[str]]:
    """One row per objective of the entry points of installed packages, and one line for each that cannot be used."""
    found, refused = [], []
    for name, entry in third_party.published().items():
        try:
            found.append(_row(name, third_party.of_package(entry, OBJECTIVES)))
        except ValueError as error:
            refused.append(str(error))
    return found, refused


def as_text(width: int = 100) -> str:
    """Aligned plain text, no line longer than `width` where words and columns allow it; with `published`."""
    others, refused = published()
    found = rows() + others
    header, *lines = _aligned([HEADER, *(row.cells() for row in found)])
    text = [header]
    for row, line in zip(found, lines, strict=True):
        text += [line, *_wrapped(row.summary, width), *_wrapped(row.settings(), width)]
    left_out = [line for one in refused for line in textwrap.wrap(f"left out: {one}", width)]
    return "\n".join([*text, "", *textwrap.wrap(NOTE, width), *left_out])


def as_markdown() -> str:
    """A Markdown table, one line per method."""
    header = ("name", "summary", "fields and defaults", *HEADER[2:])
    lines = [header, tuple("---" for _ in header)]
    for row in rows():
        name, _, *claims = row.cells()
        if row.arxiv:
            claims[0] = f"[{row.arxiv}]({row.papers[0].link})"
        lines.append((f"`{name}`", row.summary, row.settings(), *claims))
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
    return "\n".join([*table, "", NOTE])


def describe(name: str) -> str:
    """The docstring of one method, its fields with defaults and ranges, and its papers with their BibTeX entries."""
    cls = find(name)
    row = _row(name, cls)
    doc = inspect.getdoc(cls) or ""
    return "\n\n".join(
        [
            f"{name} ({row.cls})" + (f", arXiv {row.arxiv}" if row.arxiv else ""),
            doc,
            "\n".join(_aligned([("field", "default", "allowed"), *row.field_cells()])) if row.fields else "No fields.",
            "Papers:" if row.papers else "No paper is declared.",
            *(f"{paper.text()}\n\n{paper.bibtex()}" for paper in row.papers),
        ]
    )


def shown(value: object) -> str:
    """A default or a bound, as short as it is exact."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _row(name: str, cls: type[Objective]) -> Row:
    doc = inspect.getdoc(cls) or ""
    declared = dataclasses.fields(cls)
    by_default = None if any(map(is_required, declared)) else cls()
    return Row(
        name=name,
        cls=cls.__name__,
        summary=doc.partition("\n")[0],
        fields={
            field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in declared
        },
        ranges={field.name: range_text(field) for field in declared},
        properties=by_default.properties() if by_default else None,
        papers=cls.papers,
        level=cls.level,
        adaptive=by_default is not None and "batch" in by_default.reads,
    )


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
