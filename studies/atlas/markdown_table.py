"""Tables in Markdown, and the parts of a page that are written from results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: bool = False) -> str:
    """A table; with `numbers`, all columns but the first are aligned to the right."""
    names = list(head)
    align = ["---", *["--:" if numbers else "---"] * (len(names) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, align, *rows])


def filled(page: str, parts: Mapping[str, str], study: str) -> str:
    """The page with every part between its markers, `<!-- STUDY: NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: a part has no markers.
    """
    for name, text in parts.items():
        marked = re.compile(f"(<!-- {re.escape(f'{study}: {name}')} -->\n).*?(<!-- end -->\n)", re.DOTALL)
        if not marked.search(page):
            raise ValueError(f"the page has no <!-- {study}: {name} --> ... <!-- end -->")
        page = marked.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", page)  # type: ignore[misc]
    return page
