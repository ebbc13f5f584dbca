r"""An answer's LaTeX as a structure: expressions, tuples and intervals, lists and sets.

Text in, nested lists out; nothing is evaluated. The structure decides most hedges by itself: `42 \text{ or } 43` is a
list of two, and a list of two is not the number 42.

    ["expr", latex, unit]                a number, a formula, an equation, words
    ["tuple", "(", ")", [items], names]  ordered; with a square bracket or an infinity it is an interval. Names: "x,y"
                                         of (x, y) = (1, 2), "x" of 1 < x < 2, "" if it has none
    ["list", [items]]                    bare, separated by commas, "and", "or"; in any order
    ["set", [items]]                     in braces
    ["union", [items]]                   of intervals and sets
    ["without", [items]]                 the real line without these points

A list whose items are joined by "or" says so in a third place.
"""

from __future__ import annotations

import re
from itertools import islice, product
from typing import Any

# relative: a worker loads this room by its folder, without the package around it, which would import torch
from .numbers import squeeze
from .spelling import clean
from .units import take_unit

Reading = list[Any]

MAX_NESTING = 8

# names that stand before "=" without being part of the answer: x, x_1, a_{n}, f(x), m_{\max}, \alpha_p, (x, y), S
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".replace(" ", "|")
)
_LETTER = rf"(?:\\(?:{_GREEK})(?![A-Za-z])|[A-Za-z])"
_VALUE_AT = r"[fghFGHPQ]\s*\(\s*-?\d+\s*\)"  # f(2)
_GEOMETRY = r"(?:m\s*)?\\angle\s*(?:[A-Z]{1,3}|\{\s*[A-Z]{1,3}\s*\})|[A-Z]{2,4}(?![A-Za-z])"  # \angle ABC, AB
NAME = rf"(?:{_VALUE_AT}|{_GEOMETRY}|{_LETTER}(?:\s*_\s*(?:\{{[^{{}}]*\}}|\\?[A-Za-z0-9]+))?'*)"
CALL = rf"(?:\s*\^\s*\{{\s*-1\s*\}})?\s*\(\s*(?P<arguments>{NAME}(?:\s*,\s*{NAME})*)\s*\)"
_CALL = rf"{NAME}(?:{CALL.replace('?P<arguments>', '?:')})?"
_VARIABLE = re.compile(NAME)
_LABEL = re.compile(rf"\s*(?P<name>{_CALL}|\(\s*{_CALL}(?:\s*,\s*{_CALL})*\s*\))\s*(?P<sign>=|\\in(?![A-Za-z]))\s*")
# `Minimum: 1`, `\text{Sequence 2: } 3`: a colon has to say that the words are a label
_WORD_LABEL = re.compile(r"\s*(?:\x02\s*)?(?P<words>[A-Za-z][A-Za-z .']*?(?:\s\d+)?)\s*(?:\x03\s*:|:\s*\x03|:|=)\s*")
_FUNCTIONS = re.compile(r"\\(?:frac|sqrt|sin|cos|tan|log|ln|exp|pi|infty|cot|sec|csc|arcsin|arccos|arctan|min|max)")

_QUANTIFIED = re.compile(
    r"\s*,?\s*(?:\x02\s*,?\s*(?:for (?:all|any|every|each|some)|where|with|when|if|as long as)\b.*|"
    r"\(\s*(?:\x02\s*(?:where|for|with)\b|[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*\\mathbb).*|"
    r",\s*[a-zA-Z]\s*\\in\s*(?:\\mathbb|\\Z|\\N|\\R).*)$",
    re.DOTALL,
)
_NEGATION = re.compile(
    r"\b(?:not|no|none|neither|nor|never|except|without|isn't|unknown|undefined|or|maybe|either|between)\b", re.I
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
_OPEN, _CLOSE = "([{", ")]}"


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

    def expression(self, text: str) -> Reading:
        rest, unit = take_unit(text.strip(), trusted=self.trusted, known=self.known)
        if not _ONE_LETTER.fullmatch(rest):  # 5\text{i} is 5i
            rest = _ONE_LETTER.sub(r" \1 ", rest).strip()
        return ["expr", rest, unit]

    def collection(self, text: str, depth: int = 0) -> Reading:
        if depth > MAX_NESTING or r"\begin" in text:
            return ["expr", text, ""]
        joined_by_or = _OR.search(text) is not None
        separated = _SEPARATOR_WORDS.sub(_separator, text)
        if not self.trusted and ";" in (separated.strip()[:1], separated.strip()[-1:]):  # 42 \\text{ or}: of how many?
            return ["expr", text, ""]
        text = ";".join(_strip_quantifier(piece, self.trusted) for piece in _split(separated, ";"))
        label, body = _take_label(text)
        if label is not None and _bracketed(body):
            return _named(self.collection(body, depth + 1), label)
        if "," in text and _GROUPED.match(text.strip()):  # 1,000 km
            number = self.expression(text)
            if _GROUPED.fullmatch(number[1]):
                return number
        parts = [part for piece in _split(text, ";") for part in _split(piece, ",")]
        parts = [part.strip() for part in parts if part.strip()]
        if len(parts) > 1:
            endless = _ENDLESS.fullmatch(parts[-1])
            if endless is not None:  # 1, 2, 3\ldots
                parts[-1:] = [endless[1], "\\ldots"]
            if all(_FUNCTIONS.search(part) is None and "\x02" in part and not re.search(r"\d", part) for part in parts):
                return ["expr", text, ""]
            items = [self.item(part, depth + 1) for part in _unlabelled(parts)]
            flat = [inner for item in items for inner in (item[1] if item[0] == "list" else [item])]
            return ["list", flat, "or"] if joined_by_or else ["list", flat]
        return self.item(parts[0], depth + 1) if parts else ["expr", "", ""]

    def item(self, text: str, depth: int) -> Reading:
        text = text.strip()
        if depth > MAX_NESTING or r"\begin" in text:
            return ["expr", text, ""]
        union = _split(text, "\\cup")
        if len(union) > 1:
            return ["union", [self.item(part, depth + 1) for part in union]]
        difference = _split(text, "\\setminus") if "\\setminus" in text else []
        if len(difference) == 2:
            whole, points = (self.item(part, depth + 1) for part in difference)
            if whole == _line() and points[0] == "set":
                return ["without", points[1]]
        label, body = _take_label(text)
        if label is not None and (_bracketed(body) or _REALS.fullmatch(body)):
            return _named(self.item(body, depth + 1), label)
        if _REALS.fullmatch(text):
            return _line()
        if _EMPTY.fullmatch(text):
            return ["set", []]
        found = self.brackets(text, depth) if _bracketed(text) else None
        if found is None:
            found = self.interval(text)
        if found is not None:
            return found
        expression = self.expression(text)
        variants = _signs(expression)
        return expression if len(variants) == 1 else ["list", variants]

    def brackets(self, text: str, depth: int) -> Reading | None:
        """What one pair of brackets around all of the text holds; None for [x], which is no structure."""
        inside = _inside(text)
        if text.startswith("\\{") or (text.startswith("{") and _is_set(inside)):
            builder = _SET_BUILDER.match(inside)
            if builder is not None:
                return self.collection(builder["condition"], depth + 1)
            if _GROUPED.fullmatch(inside.strip()):  # {1,234} has two members
                inside = inside.replace(",", ", ")
            members = self.collection(inside, depth + 1) if inside.strip() else ["list", []]
            return ["set", members[1] if members[0] == "list" else [members]]
        items = _split(inside, ";" if ";" in inside else ",")
        if len(items) > 1:
            spread = [_variants(self.item(item, depth + 1), item) for item in items]
            tuples: list[Reading] = [
                ["tuple", text[0], text[-1], list(choice), ""] for choice in islice(product(*spread), 16)
            ]
            return tuples[0] if len(tuples) == 1 else ["list", tuples]
        return self.item(inside, depth + 1) if text[0] in "({" else None

    def interval(self, text: str) -> Reading | None:
        r"""`a < x \leq b`, `x < b` and the like as ["tuple", ...]; None for anything else."""
        signs = [match.group() for match in _RELATION.finditer(text)]
        sides = [side.strip() for side in _RELATION.split(text)]
        if not 1 <= len(signs) <= 2 or "=" in text or "|" in text or not all(sides):
            return None
        if len({sign in _RISING for sign in signs}) == 2:
            return None
        if signs[0] not in _RISING:
            sides, signs = sides[::-1], [_RISING[_FALLING.index(sign)] for sign in signs[::-1]]
        names = [_VARIABLE.fullmatch(side) is not None and not _is_constant(side) for side in sides]
        if len(signs) == 2 and names[1]:
            name, low, high = sides[1], self.expression(sides[0]), self.expression(sides[2])
            opened, closed = signs[0] == "<", signs[1] == "<"
        elif names == [True, False]:
            name, low, high = sides[0], ["expr", "-\\infty", ""], self.expression(sides[1])
            opened, closed = True, signs[0] == "<"
        elif names == [False, True]:
            name, low, high = sides[1], self.expression(sides[0]), ["expr", "\\infty", ""]
            opened, closed = signs[0] == "<", True
        else:
            return None
        return ["tuple", "(" if opened else "[", ")" if closed else "]", [low, high], squeeze(name)]


def _line() -> Reading:
    return ["tuple", "(", ")", [["expr", "-\\infty", ""], ["expr", "\\infty", ""]], ""]


def _is_set(inside: str) -> bool:
    """Whether bare braces hold a set: {1,2}, {}, {x | x > 2}; {73} is grouping."""
    return not inside.strip() or len(_split(inside, ",")) > 1 or _SET_BUILDER.match(inside) is not None


def _named(reading: Reading, label: str) -> Reading:
    """A tuple with the names that it was given; other structures have no use for them."""
    names = squeeze(label)
    names = names[1:-1] if names[0] == "(" else names
    if reading[0] == "tuple" and len(split_names(names)) == len(reading[3]):
        return [*reading[:4], names]
    return reading


def split_names(names: str) -> list[str]:
    """`x,y` and `f(x,y),g` at their outer commas."""
    return _split(names, ",")


def _separator(match: re.Match[str]) -> str:
    r"""Words that join answers as a separator, such as `\text{ and }` or the end of `\text{ goats and }`."""
    words = match["words"]
    if words is None:
        return " ; "
    rest, joins = _JOINING.subn("", words)
    kept = f"\x02{rest.strip()}\x03" if rest.strip() else ""
    before, after = _JOINING_BEFORE.match(words), _JOINING_AFTER.search(words)
    return (
        (" ; " if before else "") + kept + (" ; " if after and (kept or not before) else "") if joins else match.group()
    )


def _is_constant(text: str) -> bool:
    return text.strip() in ("\\pi", "\\infty", "e", "i")


def _signs(item: Reading) -> list[Reading]:
    r"""`1 \pm \sqrt{5}` as the two that it stands for; with \mp, the signs go together."""
    if item[0] != "expr" or "\\pm" not in item[1]:
        return [item]
    text = item[1]
    if "\\mp" in text:
        pairs = [("+", "-"), ("-", "+")]
        return [["expr", _plus(text.replace("\\pm", plus).replace("\\mp", minus)), item[2]] for plus, minus in pairs]
    pieces = text.split("\\pm")
    if len(pieces) > 4:
        return [item]
    return [
        [
            "expr",
            _plus(pieces[0] + "".join(sign + piece for sign, piece in zip(signs, pieces[1:], strict=True))),
            item[2],
        ]
        for signs in product("+-", repeat=len(pieces) - 1)
    ]


def _variants(reading: Reading, text: str) -> list[Reading]:
    r"""What one place of a tuple may hold: both values of a \pm, otherwise what is there."""
    return list(reading[1]) if reading[0] == "list" and "\\pm" in text else [reading]


def _plus(text: str) -> str:
    return text.strip().removeprefix("+").strip()


def _unlabelled(parts: list[str]) -> list[str]:
    """`Minimum: 1` and `Maximum: 3` without the words. Names as in `a = 2` are left to the expressions themselves."""
    cut = []
    for part in parts:
        match = None if _LABEL.match(part) else _WORD_LABEL.match(part)
        cut.append(part[match.end() :] if match and not _NEGATION.search(match["words"]) else part)
    return cut if all(part.strip() for part in cut) else parts


def _take_label(text: str) -> tuple[str | None, str]:
    match = _LABEL.match(text)
    if match is None or _is_constant(match["name"]) or not text[match.end() :].strip():
        return None, text
    return match["name"], text[match.end() :]


def _strip_quantifier(text: str, trusted: bool) -> str:
    """Without what a variable ranges over. Conditions of an answer stay: `42 \\text{ if even, 41 otherwise}` is two."""
    match = _QUANTIFIED.search(text)
    if match is None or not text[: match.start()].strip():
        return text
    conditional = re.search(r"\x02\s*,?\s*(?:if|when|as long as|otherwise)\b", match.group())
    ranged = re.search(r"\x02\s*,?\s*for\b|\\mathbb|\\in(?![A-Za-z])", match.group())
    if not trusted and (conditional or (not ranged and re.search(r"\d", match.group()))):
        return text
    return text[: match.start()]


def _bracketed(text: str) -> bool:
    """Whether one pair of brackets spans all of the text."""
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        return _closing(text, 1) == len(text) - 1
    if text.startswith("{"):
        return text.endswith("}") and not text.endswith("\\}") and _closing(text, 0) == len(text) - 1
    return len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _closing(text, 0) == len(text) - 1


def _inside(text: str) -> str:
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


def _split(text: str, separator: str) -> list[str]:
    """At separators outside all brackets and words."""
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
            if not (separator[0] == "\\" and follows.isalpha()):
                parts.append(text[start:place])
                place += len(separator)
                start = place
                continue
        place += 1
    return [*parts, text[start:]]


def _collapse(reading: Reading) -> Reading:
    """A list of one is that one; the members of a set within a union are members of the union."""
    kind = reading[0]
    if kind == "expr":
        return reading
    if kind == "tuple":
        return ["tuple", reading[1], reading[2], [_collapse(item) for item in reading[3]], reading[4]]
    items = [_collapse(item) for item in reading[1]]
    if kind == "union":
        items = [inner for item in items for inner in (item[1] if item[0] in ("union", "set", "list") else [item])]
    return items[0] if len(items) == 1 and kind not in ("set", "without") else [kind, items, *reading[2:]]
