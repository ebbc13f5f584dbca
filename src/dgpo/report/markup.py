"""HTML from untrusted text of a run. All escaping happens here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Escape a text for HTML; `Markup` stays unchanged."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Attributes that are None or False are omitted, True has no value; `class_` means `class`."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    return Markup(f"<{' '.join(words)}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Concatenate elements and texts."""
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
    """A table with row headers in its first column, in a box that scrolls horizontally, also by keyboard.

    Args:
        caption: text above the table.
        head: column headers.
        rows: cells; a cell (text, number) is sorted by the number.
        numeric: indices of right-aligned columns.
        sortable: whether the headers are sort buttons.
        marked: index of a highlighted row.
        name: label of the box for assistive software.
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
    """A number as readable text; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e9 else text.replace("-", "−", 1)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"
