r"""Where the answer of a response is: in the last `\boxed{}` of what the model said.

Every reward, grader and task finds it here, so that they agree. Model text is hostile input: every step is linear in
its length.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from dgpo.grading.responses import Completion, said, text_of

# braces, dollars, spaces and fonts around nothing; but models write the empty set as braces alone
_NOTHING = re.compile(r"\\(?:text\w*|math\w*|operatorname|quad|qquad|[,;:! ])|[{}$~]")
_EMPTY_SET = re.compile(r"\{\s*\}")
# characters; only contents up to this length are checked for showing nothing
_SHORT = 200

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
# TeX boxes one token without braces; a model means the number or formula up to the next space. If an operator
# follows, the end is ambiguous.
# the possessive `++` keeps hostile text from backtracking
_BARE_BOX = (
    r"(?=[-+−\w\\(.])(?:[^\s$\\{}]|\\(?!boxed|fbox)[A-Za-z]+|\\%|\{[^{}]{0,200}\})++(?!\s*(?:[-+*/=^_<>{]|\\[A-Za-z]))"
)
# `\\.` skips the braces of \{ and \}; a doubled backslash before a box still opens it
_BRACE = re.compile(
    rf"(?P<box>{_BOX.pattern}\s*(?:(?P<brace>\{{)|(?P<bare>{_BARE_BOX})|))"
    r"|\\(?!\\(?:boxed|fbox)(?![A-Za-z])).|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)


def visible(text: str) -> bool:
    """Whether a text holds more than spaces and characters that are not shown, such as U+200B."""
    return any(not (one.isspace() or unicodedata.category(one) in ("Cc", "Cf")) for one in text)


@dataclass(frozen=True)
class Box:
    """A box in a text; `content` is None if it was never closed."""

    content: str | None

    @property
    def answer(self) -> str | None:
        """Its content; None if that shows nothing."""
        content = (self.content or "").strip()
        if len(content) > _SHORT or _EMPTY_SET.fullmatch(content) or visible(_NOTHING.sub("", content)):
            return content
        return None


def boxes(text: str) -> list[slice | None]:
    r"""Positions of the contents of all boxes, in the order in which they open; None for a box never closed.

    A box is `\boxed` or `\fbox` with an argument in braces, or without braces as in `\boxed 5`. Slices and not texts:
    the contents of nested boxes overlap, and copying all of them would take quadratic memory.
    """
    found: list[tuple[int, int | None]] = []
    opened: list[int | None] = []  # where the content of a box starts; None for any other brace
    for match in _BRACE.finditer(text):
        if match["brace"]:
            opened.append(match.end())
        elif match["bare"]:
            start, end = match.span("bare")
            # the full stop of `\boxed 5.` ends the sentence
            found.append((start, start + len(text[start:end].rstrip(".,;:"))))
        elif match["box"]:
            found.append((match.end(), None))
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened and (brace := opened.pop()) is not None:
            found.append((brace, match.start()))
    found += [(start, None) for start in opened if start is not None]
    return [None if end is None else slice(start, end) for start, end in sorted(found, key=lambda span: span[0])]


def last_box(text: str) -> Box | None:
    r"""The box that opens last; None if there is no box. It may be empty or unclosed."""
    last = -1
    for match in _BOX.finditer(text):
        last = match.start()
    if last < 0:
        return None
    # nothing before the last box decides where it ends
    rest = text[last:]
    place = boxes(rest)[0]
    return Box(None if place is None else rest[place])


def boxed_answer(response: Completion) -> str | None:
    r"""Content of the last box of a response; None if there is no box, or the last one is empty or was never closed.

    The last box is the one that opens last. If it is not closed, the response was cut off in its answer, and an earlier
    box is an intermediate result that does not count.
    """
    box = last_box(said(text_of(response)))
    return None if box is None else box.answer


def gold_answer(gold: str) -> str:
    r"""The answer in a gold: what follows GSM8K's `####`, or the content of its last `\boxed{}`, or all of it."""
    if "####" in gold:
        return gold.rpartition("####")[2].strip()
    box = last_box(gold)
    return (gold if box is None or box.content is None else box.content).strip()


def marked_answer(response: Completion, marker: str) -> str | None:
    """The rest of the line after the last `marker`, such as GSM8K's `####`; None if there is none, or it is empty."""
    _, found, rest = said(text_of(response)).rpartition(marker)
    return (rest.strip().partition("\n")[0].strip() or None) if found else None
