"""Whether two readings are the same: structure first, then labels, chains of equalities, units, numbers and formulas.

Runs in a worker process. It is never called on text from a model in the process that trains: no time limit holds there.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

# relative: a worker loads this room by its folder, without the package around it, which would import torch
from .formulas import Unreadable, equal_equations, equal_formulas, parses, value_of
from .numbers import equal as equal_numbers
from .numbers import number, squeeze
from .plain import is_word
from .reading import CALL, NAME, read, split_names
from .unit_table import COUNTED
from .units import same_unit, words_of

_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)")
_CLOCK = re.compile(r"\d{1,2}:\d\d")
_DEGREE = r"^{\circ}"
_PERCENT = re.compile(r"\\?%")
_SIGN_LAST = re.compile(r"(?:%|\^\{\\circ\})$")
_SIGNS_TOGETHER = re.compile(r"(?:%|\^\{\\circ\})\s*(?:\\?%|\^\{\\circ\})")
_BEHIND_SIGNS = COUNTED | {"newton", "watt", "celsius", "fahrenheit"}  # 30^\circ N is a latitude
_CHAIN = re.compile(r"(?<![<>!:\\])=(?!=)")
_LABEL = re.compile(rf"\s*(?P<name>{NAME})(?P<call>{CALL})?\s*$")
_DOTS = "\\ldots"
_ANGLE_OF = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_CUT_OFF = re.compile(r"[\d.]\s*\\ldots")
_RUN = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]*\}|\\[A-Za-z]+|(?P<letters>[A-Za-z]+)")
_SMALL = "no on or is if in of to it at as by be do go he me my so up us we an am"
_SMALL_WORDS = frozenset(_SMALL.split())
_LETTER = re.compile(r"\x02[^\x03]*\x03|\\[A-Za-z]+|[A-Za-z](?!\s*_)")


def warm_up() -> None:
    """Import the parser and build its tables, so that the first answer does not pay for them."""
    logging.disable(logging.CRITICAL)  # math-verify warns about every timeout that is off; it is ours that counts
    _equal_expressions(r"x+\frac{1}{2}", r"\frac{1}{2}+x")


def judge(gold: str, answer: str | None = None) -> str:
    """`match`, `mismatch`, `unparsed` (the answer) or `bad_gold`, of two texts of LaTeX; or the word on a gold alone.

    A gold alone is `readable` or `bad_gold`: with every part of it, so that what is compared first plays no role.
    """
    expected = read(gold, trusted=True)
    if answer is None:
        return "readable" if _readable(expected) else "bad_gold"
    try:
        verdict = "match" if _same(expected, read(answer, known=words_of(gold))) else "mismatch"
    except Unreadable as unreadable:
        verdict = "bad_gold" if unreadable.gold else "unparsed"
    return verdict if verdict == "match" or _readable(expected) else "bad_gold"


def _readable(reading: Any) -> bool:
    if reading[0] != "expr":
        return all(_readable(item) for item in (reading[3] if reading[0] == "tuple" else reading[1]))
    chain = _CHAIN.split(reading[1])
    sides = [side for part in (chain[1:] if _label(chain) else chain) for side in re.split(r"\\approx|\\doteq", part)]
    return all(_is_readable(side.strip()) for side in sides)


def _is_readable(side: str) -> bool:
    """Words, dots and numbers in a base are compared as they are; everything else has to be mathematics."""
    if number(side) is not None or _based(side) is not None or '"' in side:
        return True
    if "\x02" in side or not _is_mathematics(side):
        return bool(_words(side))
    like = _like_units(side, side)[0]
    return number(like) is not None or parses(like)


def _same(gold: Any, answer: Any) -> bool:
    kinds = (gold[0], answer[0])
    if kinds == ("expr", "expr"):
        if not same_unit(gold[2], answer[2]):  # 10 cm and 10 mm
            return False
        if (gold[2] and _PERCENT.search(answer[1])) or (answer[2] and _PERCENT.search(gold[1])):
            return False
        if answer[2] and answer[2] not in _BEHIND_SIGNS and _SIGN_LAST.search(answer[1]):  # 42 % cm
            return False
        if "radian" in (gold[2], answer[2]) and _DEGREE in gold[1] + answer[1]:
            return False
        return _equal_expressions(gold[1], answer[1])
    if kinds == ("tuple", "tuple"):
        squares = [(reading[1] == "[", reading[2] == "]") for reading in (gold, answer)]
        (gold_names, golds), (answer_names, answers) = _by_name(gold), _by_name(answer)
        if gold_names and answer_names and gold_names != answer_names:
            return False
        return squares[0] == squares[1] and _in_order(golds, answers)
    if set(kinds) == {"list", "tuple"}:
        return _listed(gold, answer)
    if "without" in kinds and kinds[0] != kinds[1]:
        gold, answer = (_pieces(reading) if reading[0] == "without" else reading for reading in (gold, answer))
        return gold[0] == answer[0] == "union" and _in_any_order(gold[1], answer[1])
    if "expr" not in kinds and "tuple" not in kinds:  # lists, sets, unions
        if any(item[0] == "expr" and _DOTS in item[1] for item in gold[1] + answer[1]):  # 1, 2, 3, ...
            return _in_order(gold[1], answer[1])
        labelled = [_distinct_labels(reading) for reading in (gold, answer)]
        if "set" in kinds and any(map(_several_variables, (gold, answer))):  # {1, 2} is not x = 1, y = 2
            return False
        if labelled[0] != labelled[1]:  # x = 1, y = 2 is not 2, 1
            return _in_order(gold[1], answer[1])
        return _in_any_order(gold[1], answer[1])
    if kinds == ("set", "expr") or kinds == ("expr", "set"):  # {5} and 5
        one, other = (gold, answer) if gold[0] == "set" else (answer, gold)
        return len(one[1]) == 1 and (_same(one[1][0], other) if gold[0] == "set" else _same(other, one[1][0]))
    if "expr" in kinds:
        expression, structure = (gold, answer) if gold[0] == "expr" else (answer, gold)
        column = _column(expression[1])
        if column is not None and structure[0] == "tuple":
            items = [["expr", item, ""] for item in column]
            return _in_order(items, answer[3]) if gold[0] == "expr" else _in_order(gold[3], items)
    return False


def _listed(gold: Any, answer: Any) -> bool:
    """1, 2, 3 and (x, y, z) = (1, 2, 3); x = 5, y = 6 and (5, 6), in the order of the names; x = 5 or y = 6 is none."""
    tuple_first = gold[0] == "tuple"
    pair, items = (gold, answer) if tuple_first else (answer, gold)
    if pair[1] + pair[2] != "()" or (tuple_first and "or" in items[2:]):
        return False
    parts, members = list(pair[3]), list(items[1])
    if _distinct_labels(items):
        if "or" in items[2:]:
            return False
        names = [_name_of(item) for item in members]
        places = sorted(range(len(members)), key=lambda place: names[place].strip("\\").casefold())
        members = [members[place] for place in places]
        if pair[4]:
            own = split_names(pair[4])
            if sorted(own) != sorted(names):
                return False
            parts = [parts[own.index(names[place])] for place in places]
    elif tuple_first or any(map(_name_of, items[1])):
        return False
    else:
        parts = _by_name(pair)[1]
    return _in_order(parts, members) if tuple_first else _in_order(members, parts)


def _name_of(item: Any) -> str:
    label = _label(_CHAIN.split(item[1])) if item[0] == "expr" else None
    return squeeze(label["name"] + (label["call"] or "")) if label is not None else ""


def _pieces(without: Any) -> Any:
    """The real line without some points, as the intervals between them; itself where they have no values."""
    values = [value for item in without[1] if item[0] == "expr" and (value := value_of(item[1])) is not None]
    if len(values) < len(without[1]):
        return without
    ordered = [without[1][place] for place in sorted(range(len(values)), key=values.__getitem__)]
    ends = [["expr", "-\\infty", ""], *ordered, ["expr", "\\infty", ""]]
    return ["union", [["tuple", "(", ")", [low, high], ""] for low, high in pairwise(ends)]]


def _by_name(reading: Any) -> tuple[list[str], list[Any]]:
    """The names of a tuple and its members, both in the order of the names: (y, x) = (1, 2) is (2, 1)."""
    names, items = split_names(reading[4]) if reading[4] else [], reading[3]
    if len(names) != len(items):
        return names, items
    places = sorted(range(len(names)), key=lambda place: names[place].strip("\\").casefold())
    return [names[place] for place in places], [items[place] for place in places]


def _distinct_labels(reading: Any) -> bool:
    """Whether every item has a name of its own, as in x = 1, y = 2."""
    names = [name for item in reading[1] if (name := _name_of(item))]
    return len(names) == len(reading[1]) > 1 and len(set(names)) == len(names)


def _several_variables(reading: Any) -> bool:
    """Whether names differ in more than their subscripts: x_1 = 1, x_2 = 2 are two solutions for one x."""
    return _distinct_labels(reading) and len({_name_of(item).partition("_")[0] for item in reading[1]}) > 1


def _in_order(golds: list[Any], answers: list[Any]) -> bool:
    return len(golds) == len(answers) and all(_same(g, a) for g, a in zip(golds, answers, strict=True))


def _in_any_order(golds: list[Any], answers: list[Any]) -> bool:
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        place = next((i for i, answer in enumerate(left) if _same(gold, answer)), None)
        if place is None:
            return False
        del left[place]
    return True


def _column(latex: str) -> list[str] | None:
    """The entries of a matrix of one column or one row."""
    match = re.fullmatch(r"\s*\\begin\{([pbvBV]?matrix)\}(.*)\\end\{\1\}\s*", latex, re.DOTALL)
    if match is None or "\\begin" in match[2]:
        return None
    rows = [row.strip() for row in re.split(r"\\\\", match[2]) if row.strip()]
    if len(rows) == 1 and "&" in rows[0]:
        return [entry.strip() for entry in rows[0].split("&")]
    return rows if len(rows) > 1 and not any("&" in row for row in rows) else None


def _equal_expressions(gold: str, answer: str) -> bool:
    """Two formulas: sides of equations first, then what is left as numbers, words or mathematics."""
    if squeeze(gold) == squeeze(answer):
        return True
    gold_sides, answer_sides = _CHAIN.split(gold), _CHAIN.split(answer)
    gold_label, answer_label = (_label(sides) for sides in (gold_sides, answer_sides))
    if gold_label and answer_label and not _compatible(gold_label, answer_label):
        return _equal_equations(gold_sides, answer_sides)
    equations = [list(gold_sides), list(answer_sides)]
    if gold_label:
        gold_sides = gold_sides[1:]
    if answer_label:
        answer_sides = answer_sides[1:]
        if gold_label:
            gold_sides, answer_sides = _renamed(gold_sides, gold_label, answer_sides, answer_label)
    if len(gold_sides) > 1:  # an equation, or a gold that says the same twice
        return _equal_equations(*equations)
    target, *rounded = re.split(r"\\approx|\\doteq", gold_sides[0])
    # every side of a chain has to be the answer: 41 = 42 is none
    for side in answer_sides:
        exact, *approximate = re.split(r"\\approx|\\doteq", side)
        if not _equal_values(target, exact) and not any(_equal_values(value, exact) for value in rounded):
            return _equal_equations(*equations)
        if any(not _near(target, value) for value in approximate):
            return False
    return True


def _equal_equations(gold: list[str], answer: list[str]) -> bool:
    """Sides with words in them are no mathematics: the parser would take `0 minus one` for a product."""
    return all(_is_mathematics(side) for side in answer) and equal_equations(gold, answer)


def _label(sides: list[str]) -> re.Match[str] | None:
    return _LABEL.match(sides[0]) if len(sides) > 1 else None


def _compatible(gold: re.Match[str], answer: re.Match[str]) -> bool:
    """`y = 2` and `x = 2` are two lines; `f(x) = x`, `g(t) = t` and `y = x` are one function."""
    if gold["name"].count("'") != answer["name"].count("'"):  # f' is not f
        return False
    if gold["call"] or answer["call"]:
        one = answer if gold["call"] else gold
        return (
            bool(one["call"])
            or squeeze(one["name"]).rstrip("'") == "y"
            or squeeze(gold["name"]) == squeeze(answer["name"])
        )
    return squeeze(gold["name"]) == squeeze(answer["name"])


def _renamed(
    gold_sides: list[str], gold: re.Match[str], answer_sides: list[str], answer: re.Match[str]
) -> tuple[list[str], list[str]]:
    """Both right-hand sides with new letters for the arguments: f(x) = x is f(t) = t, but f(x) = n is not f(n) = n."""
    if not (answer["call"] and gold["call"]):
        return gold_sides, answer_sides
    arguments = [[squeeze(name) for name in label["arguments"].split(",")] for label in (gold, answer)]
    if arguments[0] == arguments[1] or len(arguments[0]) != len(arguments[1]):
        return gold_sides, answer_sides
    if any("_" in name or "'" in name for name in arguments[0] + arguments[1]):
        return gold_sides, answer_sides
    used = {match.group() for side in gold_sides + answer_sides for match in _LETTER.finditer(side)}
    fresh = [letter for letter in "uvwpqrsxyzabcdhjklmnt" if letter not in used.union(*arguments)]
    if len(fresh) < len(arguments[0]):
        return gold_sides, answer_sides

    def with_new(sides: list[str], names: list[str]) -> list[str]:
        new = dict(zip(names, fresh, strict=False))
        return [_LETTER.sub(lambda match: f" {new[match.group()]} " if match.group() in new else match.group(), side)
                for side in sides]  # fmt: skip

    return with_new(gold_sides, arguments[0]), with_new(answer_sides, arguments[1])


def _equal_values(gold: str, answer: str) -> bool:
    gold, answer = gold.strip(), answer.strip()
    if squeeze(gold) == squeeze(answer):
        return True
    if not gold or not answer:
        return False
    if any(answer.count(mark) != gold.count(mark) for mark in "'\""):  # 30' is not 30, and 5' is not 5''
        return False
    if _CUT_OFF.search(gold) or _CUT_OFF.search(answer):  # 588... is not 588
        return False
    if _SIGNS_TOGETHER.search(answer):  # 5 % % is nothing
        return False
    terms = gold.split(":"), answer.split(":")
    if len(terms[0]) > 2 or len(terms[1]) > 2:
        return _proportional(*terms)
    based = _equal_based(gold, answer)
    if based is not None:
        return based
    gold, answer = _like_units(gold, answer)
    numbers = number(gold), number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return equal_numbers(gold, numbers[0], answer, numbers[1])
    if "\x02" in gold + answer or not (_is_mathematics(gold) and _is_mathematics(answer)):
        return _words(gold) == _words(answer) != ""
    return equal_formulas(gold, answer)


def _proportional(gold: list[str], answer: list[str]) -> bool:
    """Ratios of three or more terms: 1:2:3 is 2:4:6, and not 1:3:2, though the quotient is the same."""
    if len(gold) != len(answer) or any("\x02" in term or not _is_mathematics(term) for term in gold + answer):
        return False
    return all(
        equal_formulas(f"({ours})({answer[0]})", f"({theirs})({gold[0]})")
        for ours, theirs in zip(gold[1:], answer[1:], strict=True)
    )


def _like_units(gold: str, answer: str) -> tuple[str, str]:
    """Degrees, percent and ratios, where only one of the two is written with them."""
    if _DEGREE in gold + answer:
        gold, answer = _degrees(gold, answer), _degrees(answer, gold)
    if bool(_PERCENT.search(gold)) != bool(_PERCENT.search(answer)):
        bare = [_PERCENT.sub("", text).strip() for text in (gold, answer)]
        values = [number(text) for text in bare]
        if _PERCENT.search(gold):  # 10 and 0.1 are both 10 %
            same = values[0] is not None and values[0] == values[1]
            gold, answer = (bare[0], bare[1]) if same else (rf"\frac{{{bare[0]}}}{{100}}", bare[1])
        elif values[0] is not None and values[0].denominator == 1:  # 50 % is 50 where whole percents are asked for
            gold, answer = bare[0], bare[1]
        else:
            gold, answer = bare[0], rf"\frac{{{bare[1]}}}{{100}}"
    else:
        gold, answer = _PERCENT.sub("", gold).strip(), _PERCENT.sub("", answer).strip()
    return _ratio(gold), _ratio(answer)


def _degrees(text: str, other: str) -> str:
    r"""Degrees at the end set aside, unless the other one is in radians; those inside a formula as \pi/180."""
    if _ANGLE_OF.search(text):
        return text.replace(_DEGREE, r"\cdot\frac{\pi}{180}")
    if not re.search(r"\d|\\[A-Za-z]", text.replace(_DEGREE, "")):  # C^\circ is not C
        return text.replace(_DEGREE, r"\cdot\frac{\pi}{180}")
    if text.endswith(_DEGREE) and not (r"\pi" in other and _DEGREE not in other):
        text = text.removesuffix(_DEGREE)
    elif text.endswith(_DEGREE):
        text = rf"({text.removesuffix(_DEGREE)})\cdot\frac{{\pi}}{{180}}"
    return text.replace(_DEGREE, r"\cdot\frac{\pi}{180}")


def _ratio(text: str) -> str:
    """`5:8` as a fraction; `12:00` is a time of day, and words."""
    ratio = _RATIO.fullmatch(text)
    return (
        rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio and Fraction(ratio[2]) and not _CLOCK.fullmatch(text) else text
    )


def _near(target: str, value: str) -> bool:
    exact, approximate = value_of(target), value_of(value)
    return exact is not None and approximate is not None and abs(exact - approximate) <= abs(exact) / 200


def _is_mathematics(text: str) -> bool:
    if _CLOCK.fullmatch(text) or text.casefold() in _SMALL_WORDS:
        return False
    return not any(match["letters"] and is_word(match["letters"]) for match in _RUN.finditer(text))


def _words(text: str) -> str:
    r"""Words with nothing but case, space and \text{} taken away; signs and digits count."""
    return re.sub(r"[\s\x02\x03{}$]+|(?<!\d)[().]|[().](?!\d)", "", text).casefold()


def _based(text: str) -> tuple[str, int] | None:
    """`2516_8`: digits that the base has, and the base."""
    match = re.fullmatch(r"([0-9A-Fa-f]+)_\{?\s*(\d{1,2})\s*\}?", squeeze(text))
    if match is None or not any(character.isdigit() for character in match[1]) or not 2 <= int(match[2]) <= 36:
        return None
    fits = all(int(digit, 36) < int(match[2]) for digit in match[1])
    return (match[1].casefold(), int(match[2])) if fits else None


def _equal_based(gold: str, answer: str) -> bool | None:
    """Numbers with their base; None if neither has one. The base of the gold may be left out, no other may be added."""
    ours, theirs = _based(gold), _based(answer)
    if ours is None and theirs is None:
        return None
    if ours is None:
        return theirs is not None and theirs[1] == 10 and theirs[0] == squeeze(gold).casefold()
    return theirs == ours if theirs is not None else squeeze(answer).casefold() == ours[0]
