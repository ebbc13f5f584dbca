"""Brackets in LaTeX: whether one pair spans a text, and a text split at separators outside all of them."""

from __future__ import annotations

_OPEN, _CLOSE = "([{", ")]}"


def bracketed(text: str) -> bool:
    """Whether one pair of brackets spans all of the text."""
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        return _closing(text, 1) == len(text) - 1
    if text.startswith("{"):
        return text.endswith("}") and not text.endswith("\\}") and _closing(text, 0) == len(text) - 1
    return len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _closing(text, 0) == len(text) - 1


def inside(text: str) -> str:
    """What one pair of brackets holds."""
    return text[2:-2] if text.startswith("\\{") else text[1:-1]


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        if text[place] in _OPEN:
            depth += 1
        elif text[place] in _CLOSE:
            depth -= 1
            if depth == 0:
                return place
    return -1


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside all brackets and words."""
    parts, depth, words, start, place = [], 0, False, 0, 0
    while place < len(text):
        character = text[place]
        if character in "\x02\x03":
            words = character == "\x02"
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth = max(0, depth - 1)
        elif depth == 0 and not words and text.startswith(separator, place):
            follows = text[place + len(separator) : place + len(separator) + 1]
            # with a letter behind it, it is the start of a longer command
            if not (separator[0] == "\\" and follows.isalpha()):
                parts.append(text[start:place])
                place += len(separator)
                start = place
                continue
        place += 1
    return [*parts, text[start:]]
