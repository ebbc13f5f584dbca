"""HTML from text that a run wrote: everything is escaped here, and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Any text as HTML; what is `Markup` stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Attributes that are None or False are left out, True has no value; `class_` is `class`."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    return Markup(f"<{' '.join(words)}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Elements and texts, one after the other."""
    return Markup("".join(escaped(child) for child in children))


def table(
    caption: object,
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numeric: Sequence[int] = (),
    sortable: bool = False,
    marked: int | None = None,
    name: str,
) -> Markup:
    """A table whose first column heads its rows, in a box that scrolls sideways by keyboard, too.

    Args:
        caption: above the table.
        head: of the columns.
        rows: cells; a cell (text, number) is sorted by the number.
        numeric: columns with numbers, aligned on the right.
        sortable: whether the heads are buttons that sort.
        marked: a row that stands out.
        name: what assistive software calls the box.
    """

    def column(i: int) -> str | None:
        return "number" if i in numeric else None

    heads = [
        tag(
            "th", tag("button", cell, type="button", class_="sort") if sortable else cell, scope="col", class_=column(i)
        )
        for i, cell in enumerate(head)
    ]
    body = [
        tag(
            "tr",
            *(
                tag(
                    "td" if i else "th",
                    cell[0] if isinstance(cell, tuple) else cell,
                    scope=None if i else "row",
                    class_=column(i),
                    data_value=cell[1] if isinstance(cell, tuple) else None,
                )
                for i, cell in enumerate(row)
            ),
            class_="own" if number == marked else None,
        )
        for number, row in enumerate(rows)
    ]
    whole = tag(
        "table",
        tag("caption", caption) if caption else "",
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=name)


def shown(value: float | None, digits: int = 3) -> str:
    """A number for a person; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e9 else text.replace("-", "−", 1)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"
