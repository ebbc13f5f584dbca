r"""Names in front of answers: `x = 5`, `f(x) = 2x`, `(x, y) = (1, 2)`, `\angle ABC = 60`, `Minimum: 1`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .brackets import split
from .numbers import squeeze

# names before "=" that are not part of the answer: x, x_1, a_{n}, f(x), m_{\max}, \alpha_p, (x, y), S
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
# `Minimum: 1`, `\text{Sequence 2: } 3`: only a colon or an equals sign marks words as a label
_WORD_LABEL = re.compile(r"\s*(?:\x02\s*)?(?P<words>[A-Za-z][A-Za-z .']*?(?:\s\d+)?)\s*(?:\x03\s*:|:\s*\x03|:|=)\s*")
_NEGATION = re.compile(
    r"\b(?:not|no|none|neither|nor|never|except|without|isn't|unknown|undefined|or|maybe|either|between)\b", re.I
)
# a side of an equation that is a name
_SIDE = re.compile(rf"\s*(?P<name>{NAME})(?P<call>{CALL})?\s*$")
_SYMBOL = re.compile(r"\x02[^\x03]*\x03|\\[A-Za-z]+|[A-Za-z](?!\s*_)")


def unlabelled(parts: list[str]) -> list[str]:
    """`Minimum: 1` and `Maximum: 3` without the words. Names as in `a = 2` stay in the expressions."""
    cut = []
    for part in parts:
        match = None if _LABEL.match(part) else _WORD_LABEL.match(part)
        cut.append(part[match.end() :] if match and not _NEGATION.search(match["words"]) else part)
    return cut if all(part.strip() for part in cut) else parts


def take_label(text: str) -> tuple[str | None, str]:
    """The name in front of a text, and the rest; None and all of the text if there is no name."""
    match = _LABEL.match(text)
    if match is None or is_constant(match["name"]) or not text[match.end() :].strip():
        return None, text
    return match["name"], text[match.end() :]


def is_constant(text: str) -> bool:
    """Whether a name stands for a number."""
    return text.strip() in ("\\pi", "\\infty", "e", "i")


def split_names(names: str) -> tuple[str, ...]:
    """`(x, y)` and `f(x,y), g` as the names in them."""
    names = squeeze(names)
    return tuple(split(names[1:-1] if names[0] == "(" else names, ","))


def in_order_of_names(names: Sequence[str]) -> list[int]:
    """Places of the names in alphabetical order."""
    return sorted(range(len(names)), key=lambda place: names[place].strip("\\").casefold())


def label_of(sides: list[str]) -> re.Match[str] | None:
    """The name on the left of an equation of these sides, with groups name, call, arguments; None without one."""
    return _SIDE.match(sides[0]) if len(sides) > 1 else None


def compatible(gold: re.Match[str], answer: re.Match[str]) -> bool:
    """`y = 2` and `x = 2` are two lines; `f(x) = x`, `g(t) = t` and `y = x` are one function."""
    if gold["name"].count("'") != answer["name"].count("'"):  # f' is not f
        return False
    if squeeze(gold["name"]) == squeeze(answer["name"]) or (gold["call"] and answer["call"]):
        return True
    plain = answer if gold["call"] else gold
    return bool(gold["call"] or answer["call"]) and squeeze(plain["name"]).rstrip("'") == "y"


def renamed(
    gold_sides: list[str], gold: re.Match[str], answer_sides: list[str], answer: re.Match[str]
) -> tuple[list[str], list[str]]:
    """Both right-hand sides with new letters for the arguments: f(x) = x is f(t) = t, but f(x) = n is not f(n) = n."""
    if not (answer["call"] and gold["call"]):
        return gold_sides, answer_sides
    arguments = [[squeeze(name) for name in label["arguments"].split(",")] for label in (gold, answer)]
    if arguments[0] == arguments[1] or len(arguments[0]) != len(arguments[1]):
        return gold_sides, answer_sides
    # `_SYMBOL` does not find x_1 or x' as one name
    if any("_" in name or "'" in name for name in arguments[0] + arguments[1]):
        return gold_sides, answer_sides
    used = {match.group() for side in gold_sides + answer_sides for match in _SYMBOL.finditer(side)}
    # without e and i, which are constants, and f and g, which are functions
    fresh = [letter for letter in "uvwpqrsxyzabcdhjklmnt" if letter not in used.union(*arguments)]
    if len(fresh) < len(arguments[0]):
        return gold_sides, answer_sides

    def with_new(sides: list[str], names: list[str]) -> list[str]:
        # spaces, because a command in front would swallow the letter
        new = {name: f" {letter} " for name, letter in zip(names, fresh, strict=False)}
        return [_SYMBOL.sub(lambda match: new.get(match.group(), match.group()), side) for side in sides]

    return with_new(gold_sides, arguments[0]), with_new(answer_sides, arguments[1])


def is_variable(text: str) -> bool:
    """Whether a text is the name of something unknown."""
    return _VARIABLE.fullmatch(text) is not None and not is_constant(text)
