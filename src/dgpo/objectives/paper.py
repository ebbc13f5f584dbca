"""Papers: titles, authors and ids, as model cards, tables and citations print them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

ARXIV_ID = re.compile(r"\d{4}\.\d{4,5}")
UNVERIFIED = "title and authors could not be verified"
ACL_2026 = (
    "Proceedings of the 64th Annual Meeting of the Association for Computational Linguistics (Volume 1: Long Papers)"
)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper, as it was published.

    Attributes:
        arxiv_id: such as "2603.14389"; None for a paper that is not on arXiv, which then needs `url`.
        title: as published; None if it could not be verified.
        authors: in the order of the paper, each "Given Family", or one word for a group; empty if they could not be
            verified.
        year: of publication.
        venue: where it appeared besides arXiv, such as "ACL 2026".
        book: full title of the proceedings.
        anthology: id in the ACL Anthology.
        pages: such as "41410-41430".
        code: URL of the authors' code.
        url: address of the paper if it is not on arXiv.

    Raises:
        ValueError: if the arXiv id is malformed, or both id and url are missing.
        TypeError: if authors is a string.
    """

    arxiv_id: str | None = None
    title: str | None = None
    authors: tuple[str, ...] = ()
    year: int
    venue: str | None = None
    book: str | None = None
    anthology: str | None = None
    pages: str | None = None
    code: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.arxiv_id is None and self.url is None:
            raise ValueError("Paper: arxiv_id and url are both missing; expected one of them")
        if self.arxiv_id is not None and not ARXIV_ID.fullmatch(self.arxiv_id):
            raise ValueError(f"Paper: arxiv_id = {self.arxiv_id!r} is not allowed; expected digits such as 2603.14389")
        if isinstance(self.authors, str):
            raise TypeError(f"Paper: authors = {self.authors!r} is a string; expected a tuple of names")

    @property
    def link(self) -> str:
        """Address of the paper."""
        return self.url or f"https://arxiv.org/abs/{self.arxiv_id}"

    @property
    def name(self) -> str:
        """The title; if it could not be verified, the id or URL with a remark."""
        return self.title or f"{self.identifiers()} ({UNVERIFIED})"

    def short_authors(self) -> str:
        """`Fu et al.`, `Xie and Xu`, or the one name."""
        families = [family(author) for author in self.authors]
        if len(families) > 2:
            return f"{families[0]} et al."
        return " and ".join(families)

    def identifiers(self) -> str:
        """`arXiv 2603.14389; ACL 2026, 2026.acl-long.1921, pages 41410-41430`."""
        published = [word for word in (self.venue, self.anthology, self.pages and f"pages {self.pages}") if word]
        where = f"arXiv {self.arxiv_id}" if self.arxiv_id else self.link
        return "; ".join([where, *([", ".join(published)] if published else [])])

    def markdown(self) -> str:
        """`[Title](link), Fu et al., ACL 2026`."""
        return ", ".join(
            word for word in (f"[{self.name}]({self.link})", self.short_authors(), self.venue or str(self.year)) if word
        )

    def text(self) -> str:
        """Title, authors and ids, one per line."""
        return "\n".join(
            [self.title or UNVERIFIED, *([", ".join(self.authors)] * bool(self.authors)), self.identifiers()]
        )

    @property
    def key(self) -> str:
        """BibTeX key: family name, year, first word of the title."""
        who = family(self.authors[0]) if self.authors else "unverified"
        word = (self.title or self.arxiv_id or "paper").split()[0]
        return re.sub(r"[^a-z0-9]", "", _ascii(f"{who}{self.year}{word}").lower())

    def bibtex(self) -> str:
        """The BibTeX entry. Without a verified title, a note says so and no authors are named."""
        entry = {
            "title": f"{{{_tex(self.title)}}}" if self.title else None,
            "author": " and ".join(name if " " in name else f"{{{name}}}" for name in self.authors) or None,
            "booktitle": self.book or self.venue,
            "pages": self.pages.replace("-", "--") if self.pages else None,
            "year": str(self.year),
            "eprint": self.arxiv_id,
            "archivePrefix": "arXiv" if self.arxiv_id else None,
            "url": self.link,
            "note": None if self.title else UNVERIFIED,
        }
        kind = "inproceedings" if self.book or self.venue else "misc"
        lines = [f"    {name:<13} = {{{value}}}," for name, value in entry.items() if value]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


def names(text: str) -> tuple[str, ...]:
    """Authors of a paper as its first page lists them, separated by commas."""
    return tuple(text.split(", "))


def family(author: str) -> str:
    """The family name, which is the last word."""
    return author.rpartition(" ")[2]


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _tex(text: str) -> str:
    return text.replace("π", r"$\pi$").replace("&", r"\&").replace("%", r"\%")
