r"""An answer's LaTeX as a structure: expressions, tuples and intervals, lists and sets. Nothing is evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, product

# relative: a worker loads this folder without the package around it, which would import torch
from .brackets import bracketed, inside, split
from .labels import is_variable, split_names, take_label, unlabelled
from .numbers import squeeze
from .spelling import clean
from .structure import LINE, Collection, Expression, Kind, Ordered, Reading, members
from .units import take_unit

MAX_NESTING = 8

_FUNCTIONS = re.compile(r"\\(?:frac|sqrt|sin|cos|tan|log|ln|exp|pi|infty|cot|sec|csc|arcsin|arccos|arctan|min|max)")

_QUANTIFIED = re.compile(
    r"\s*,?\s*(?:\x02\s*,?\s*(?:for (?:all|any|every|each|some)|where|with|when|if|as long as)\b.*|"
    r"\(\s*(?:\x02\s*(?:where|for|with)\b|[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*\\mathbb).*|"
    r",\s*[a-zA-Z]\s*\\in\s*(?:\\mathbb|\\Z|\\N|\\R).*)$",
    re.DOTALL,
)
_RISING, _FALLING = ("<", "\\leq"), (">", "\\geq")
_RELATION = re.compile(r"<|>|\\leq(?![A-Za-z])|\\geq(?![A-Za-z])")
_SEPARATOR_WORDS = re.compile(
    r"\x02(?P<words>[^\x03]*)\x03|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:land|lor|wedge|vee)(?![A-Za-z])"
)
_JOINING_BEFORE = re.compile(r"^\s*,?\s*(?:and|or)(?![A-Za-z])")
_JOINING_AFTER = re.compile(r"(?:^|(?<=[\s,]))(?:and|or)\s*,?\s*$")
_JOINING = re.compile(f"{_JOINING_BEFORE.pattern}|{_JOINING_AFTER.pattern}")
_SET_BUILDER = re.compile(
    r"^\s*[A-Za-z](?:\s*\\in\s*\\mathbb\s*\{?[A-Z]\}?)?\s*(?:\||:)\s*(?P<condition>.+)$", re.DOTALL
)
_REALS = re.compile(
    r"(?:\\mathbb\s*\{\s*R\s*\}|\x02?\s*(?:the set of )?(?:all|any|the) (?:the )?reals?(?: numbers?)?\s*\x03?)\s*\.?",
    re.I,
)
_EMPTY = re.compile(
    r"\\emptyset|\x02?\s*(?:(?:the )?(?:empty|null) set|(?:there (?:is|are) )?no (?:real )?solutions?)\s*\x03?", re.I
)
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])")
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_ONE_LETTER = re.compile(r"\x02\s*([A-Za-z])\s*\x03")
_ENDLESS = re.compile(r"(.*\w)\s*\\ldots\s*", re.DOTALL)


def read(text: str, *, trusted: bool = False, known: frozenset[str] = frozenset()) -> Reading:
    """The structure of an answer or a gold.

    Args:
        text: its LaTeX.
        trusted: whether it is a gold; see `take_unit`.
        known: words of the gold.
    """
    return _collapse(_Reader(trusted, known).collection(clean(text)))


class _Reader:
    def __init__(self, trusted: bool, known: frozenset[str]) -> None:
        self.trusted, self.known = trusted, known

    def expression(self, text: str) -> Expression:
        rest, unit = take_unit(text.strip(), trusted=self.trusted, known=self.known)
        if not _ONE_LETTER.fullmatch(rest):  # 5\text{i} is 5i
            rest = _ONE_LETTER.sub(r" \1 ", rest).strip()
        return Expression(rest, unit)

    def collection(self, text: str, depth: int = 0) -> Reading:
        # commas in a matrix separate nothing
        if depth > MAX_NESTING or r"\begin" in text:
            return Expression(text)
        joined_by_or = _OR.search(text) is not None
        separated = _SEPARATOR_WORDS.sub(_separator, text)
        if not self.trusted and ";" in (separated.strip()[:1], separated.strip()[-1:]):  # 42 \text{ or}: of how many?
            return Expression(text)
        text = ";".join(_strip_quantifier(piece, self.trusted) for piece in split(separated, ";"))
        label, body = take_label(text)
        if label is not None and bracketed(body):
            return _named(self.collection(body, depth + 1), label)
        if "," in text and _GROUPED.match(text.strip()):  # 1,000 km
            number = self.expression(text)
            if _GROUPED.fullmatch(number.latex):
                return number
        parts = [part for piece in split(text, ";") for part in split(piece, ",")]
        parts = [part.strip() for part in parts if part.strip()]
        if len(parts) > 1:
            endless = _ENDLESS.fullmatch(parts[-1])
            if endless is not None:  # 1, 2, 3\ldots
                parts[-1:] = [endless[1], "\\ldots"]
            # words with commas between them are one answer in words
            if all(_FUNCTIONS.search(part) is None and "\x02" in part and not re.search(r"\d", part) for part in parts):
                return Expression(text)
            items = [self.item(part, depth + 1) for part in unlabelled(parts)]
            return Collection("list", _flat(items, "list"), joined_by_or)
        return self.item(parts[0], depth + 1) if parts else Expression("")

    def item(self, text: str, depth: int) -> Reading:
        text = text.strip()
        if depth > MAX_NESTING or r"\begin" in text:
            return Expression(text)
        union = split(text, "\\cup")
        if len(union) > 1:
            return Collection("union", tuple(self.item(part, depth + 1) for part in union))
        difference = split(text, "\\setminus") if "\\setminus" in text else []
        if len(difference) == 2:
            whole, points = (self.item(part, depth + 1) for part in difference)
            if whole == LINE and isinstance(points, Collection) and points.kind == "set":
                return replace(points, kind="without")
        label, body = take_label(text)
        if label is not None and (bracketed(body) or _REALS.fullmatch(body)):
            return _named(self.item(body, depth + 1), label)
        if _REALS.fullmatch(text):
            return LINE
        if _EMPTY.fullmatch(text):
            return Collection("set", ())
        found = self.brackets(text, depth) if bracketed(text) else None
        if found is None:
            found = self.interval(text)
        if found is not None:
            return found
        variants = _signs(self.expression(text))
        return variants[0] if len(variants) == 1 else Collection("list", variants)

    def brackets(self, text: str, depth: int) -> Reading | None:
        """What one pair of brackets around the whole text holds; None for [x], which is not a structure."""
        held = inside(text)
        if text.startswith("\\{") or (text.startswith("{") and _is_set(held)):
            builder = _SET_BUILDER.match(held)
            if builder is not None:
                return self.collection(builder["condition"], depth + 1)
            if _GROUPED.fullmatch(held.strip()):  # {1,234} has two members
                held = held.replace(",", ", ")
            return Collection("set", members(self.collection(held, depth + 1), "list") if held.strip() else ())
        items = split(held, ";" if ";" in held else ",")
        if len(items) > 1:
            spread = [self.choices(item, depth + 1) for item in items]
            # 16: four \pm in one tuple; further choices are cut off
            tuples = tuple(Ordered(text[0], text[-1], choice) for choice in islice(product(*spread), 16))
            return tuples[0] if len(tuples) == 1 else Collection("list", tuples)
        return self.item(held, depth + 1) if text[0] in "({" else None

    def choices(self, text: str, depth: int) -> tuple[Reading, ...]:
        r"""What one place of a tuple may hold: both values of a \pm, otherwise what is there."""
        reading = self.item(text, depth)
        return members(reading, "list") if "\\pm" in text else (reading,)

    def interval(self, text: str) -> Reading | None:
        r"""`a < x \leq b`, `x < b` and the like as an interval; None for anything else."""
        signs = [match.group() for match in _RELATION.finditer(text)]
        sides = [side.strip() for side in _RELATION.split(text)]
        if not 1 <= len(signs) <= 2 or "=" in text or "|" in text or not all(sides):
            return None
        if len({sign in _RISING for sign in signs}) == 2:
            return None
        if signs[0] not in _RISING:
            # from here on every relation rises
            sides, signs = sides[::-1], [_RISING[_FALLING.index(sign)] for sign in signs[::-1]]
        names = [is_variable(side) for side in sides]
        if len(signs) == 2 and names[1]:
            name, low, high = sides[1], self.expression(sides[0]), self.expression(sides[2])
            opened, closed = signs[0] == "<", signs[1] == "<"
        elif names == [True, False]:
            name, low, high = sides[0], Expression("-\\infty"), self.expression(sides[1])
            opened, closed = True, signs[0] == "<"
        elif names == [False, True]:
            name, low, high = sides[1], self.expression(sides[0]), Expression("\\infty")
            opened, closed = signs[0] == "<", True
        else:
            return None
        return Ordered("(" if opened else "[", ")" if closed else "]", (low, high), (squeeze(name),))


def _is_set(held: str) -> bool:
    """Whether bare braces hold a set: {1,2}, {}, {x | x > 2}; {73} is grouping."""
    return not held.strip() or len(split(held, ",")) > 1 or _SET_BUILDER.match(held) is not None


def _named(reading: Reading, label: str) -> Reading:
    """A tuple with the names in front of it; other structures unchanged."""
    names = split_names(label)
    if isinstance(reading, Ordered) and len(names) == len(reading.items):
        return replace(reading, names=names)
    return reading


def _separator(match: re.Match[str]) -> str:
    r"""Words that join answers as a separator, such as `\text{ and }` or the end of `\text{ goats and }`."""
    words = match["words"]
    if words is None:
        return " ; "
    rest, joins = _JOINING.subn("", words)
    kept = f"\x02{rest.strip()}\x03" if rest.strip() else ""
    before, after = _JOINING_BEFORE.match(words), _JOINING_AFTER.search(words)
    if not joins:
        return match.group()
    return (" ; " if before else "") + kept + (" ; " if after and (kept or not before) else "")


def _signs(item: Expression) -> tuple[Expression, ...]:
    r"""`1 \pm \sqrt{5}` as the two that it stands for; with \mp, the signs go together."""
    pieces = item.latex.split("\\pm")
    if len(pieces) == 1:
        return (item,)
    if "\\mp" in item.latex:
        pairs = (("+", "-"), ("-", "+"))
        texts = [item.latex.replace("\\pm", plus).replace("\\mp", minus) for plus, minus in pairs]
    elif len(pieces) > 4:
        return (item,)
    else:
        choices = product("+-", repeat=len(pieces) - 1)
        texts = [pieces[0] + "".join(map("".join, zip(signs, pieces[1:], strict=True))) for signs in choices]
    return tuple(replace(item, latex=text.strip().removeprefix("+").strip()) for text in texts)


def _strip_quantifier(text: str, trusted: bool) -> str:
    """Without the range of a variable. Conditions of an answer stay: `42 \\text{ if even, 41 otherwise}` is two."""
    match = _QUANTIFIED.search(text)
    if match is None or not text[: match.start()].strip():
        return text
    conditional = re.search(r"\x02\s*,?\s*(?:if|when|as long as|otherwise)\b", match.group())
    ranged = re.search(r"\x02\s*,?\s*for\b|\\mathbb|\\in(?![A-Za-z])", match.group())
    if not trusted and (conditional or (not ranged and re.search(r"\d", match.group()))):
        return text
    return text[: match.start()]


def _flat(items: Iterable[Reading], *kinds: Kind) -> tuple[Reading, ...]:
    """Items, and the members of those that are collections of one of these kinds."""
    return tuple(inner for item in items for inner in members(item, *kinds))


def _collapse(reading: Reading) -> Reading:
    """A list of one item is that item; the members of a set within a union are members of the union."""
    if isinstance(reading, Expression):
        return reading
    items = tuple(map(_collapse, reading.items))
    if isinstance(reading, Collection):
        if reading.kind == "union":
            items = _flat(items, "union", "set", "list")
        if len(items) == 1 and reading.kind in ("list", "union"):
            return items[0]
    return replace(reading, items=items)
