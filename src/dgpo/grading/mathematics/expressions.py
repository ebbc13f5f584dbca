"""Whether two expressions are equal: units, labels, chains of equalities, then numbers, words and formulas.

For worker processes only: there is no time limit here.
"""

from __future__ import annotations

import re
from fractions import Fraction

# relative: a worker loads this folder without the package around it, which would import torch
from .formulas import equal_equations, equal_formulas, parses, value_of
from .labels import compatible, label_of, renamed
from .numbers import equal as equal_numbers
from .numbers import number, squeeze
from .plain import is_word
from .structure import Expression
from .unit_table import COUNTED
from .units import same_unit

_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)")
_CLOCK = re.compile(r"\d{1,2}:\d\d")
_DEGREE = r"^{\circ}"
_PERCENT = re.compile(r"\\?%")
_SIGN_LAST = re.compile(r"(?:%|\^\{\\circ\})$")
_SIGNS_TOGETHER = re.compile(r"(?:%|\^\{\\circ\})\s*(?:\\?%|\^\{\\circ\})")
_BEHIND_SIGNS = COUNTED | {"newton", "watt", "celsius", "fahrenheit"}  # 30^\circ N is a latitude
_CHAIN = re.compile(r"(?<![<>!:\\])=(?!=)")
_APPROXIMATE = re.compile(r"\\approx|\\doteq")
_ANGLE_OF = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_CUT_OFF = re.compile(r"[\d.]\s*\\ldots")
_RUN = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]*\}|\\[A-Za-z]+|(?P<letters>[A-Za-z]+)")
_SMALL = "no on or is if in of to it at as by be do go he me my so up us we an am"
_SMALL_WORDS = frozenset(_SMALL.split())


def same_expressions(gold: Expression, answer: Expression) -> bool:
    """Whether two expressions are equal, with their units."""
    if not same_unit(gold.unit, answer.unit):  # 10 cm and 10 mm
        return False
    if (gold.unit and _PERCENT.search(answer.latex)) or (answer.unit and _PERCENT.search(gold.latex)):
        return False
    if answer.unit and answer.unit not in _BEHIND_SIGNS and _SIGN_LAST.search(answer.latex):  # 42 % cm
        return False
    # 2 radians and 2 degrees are different angles
    if "radian" in (gold.unit, answer.unit) and _DEGREE in gold.latex + answer.latex:
        return False
    return equal_latex(gold.latex, answer.latex)


def is_readable(latex: str) -> bool:
    """Whether every side of an expression can be compared: mathematics, words, dots, numbers in a base."""
    chain = _CHAIN.split(latex)
    sides = [side for part in (chain[1:] if label_of(chain) else chain) for side in _APPROXIMATE.split(part)]
    return all(_is_readable(side.strip()) for side in sides)


def name_of(latex: str) -> str:
    """The name on the left of an equation, such as `x` of `x = 1`; "" without one."""
    label = label_of(_CHAIN.split(latex))
    return squeeze(label["name"] + (label["call"] or "")) if label is not None else ""


def _is_readable(side: str) -> bool:
    if number(side) is not None or _based(side) is not None or '"' in side:
        return True
    if "\x02" in side or not _is_mathematics(side):
        return bool(_words(side))
    like = _like_units(side, side)[0]
    return number(like) is not None or parses(like)


def equal_latex(gold: str, answer: str) -> bool:
    """Whether two formulas are equal: sides of equations first, then the rest as numbers, words or mathematics."""
    if squeeze(gold) == squeeze(answer):
        return True
    gold_sides, answer_sides = _CHAIN.split(gold), _CHAIN.split(answer)
    gold_label, answer_label = (label_of(sides) for sides in (gold_sides, answer_sides))
    if gold_label and answer_label and not compatible(gold_label, answer_label):
        # y = 2 and x = 2: as equations, not as two values
        return _equal_equations(gold_sides, answer_sides)
    # with their labels: compared as equations where the values differ
    equations = [list(gold_sides), list(answer_sides)]
    if gold_label:
        gold_sides = gold_sides[1:]
    if answer_label:
        answer_sides = answer_sides[1:]
        if gold_label:
            gold_sides, answer_sides = renamed(gold_sides, gold_label, answer_sides, answer_label)
    if len(gold_sides) > 1:  # an equation, or a gold that says the same twice
        return _equal_equations(*equations)
    target, *rounded = _APPROXIMATE.split(gold_sides[0])
    # every side of a chain has to be the answer: 41 = 42 is not
    for side in answer_sides:
        exact, *approximate = _APPROXIMATE.split(side)
        if not _equal_values(target, exact) and not any(_equal_values(value, exact) for value in rounded):
            return _equal_equations(*equations)
        if any(not _near(target, value) for value in approximate):
            return False
    return True


def _equal_equations(gold: list[str], answer: list[str]) -> bool:
    """Sides with words are not mathematics: the parser would read `0 minus one` as a product."""
    return all(_is_mathematics(side) for side in answer) and equal_equations(gold, answer)


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
    if _SIGNS_TOGETHER.search(answer):  # 5 % % has no meaning
        return False
    # ratios, bases and words before the parser, which would drop or misread their signs
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
        # != "": two texts of nothing but signs are not equal
        return _words(gold) == _words(answer) != ""
    return equal_formulas(gold, answer)


def _proportional(gold: list[str], answer: list[str]) -> bool:
    """Ratios of three or more terms: 1:2:3 is 2:4:6, and not 1:3:2, though the quotient is the same."""
    if len(gold) != len(answer) or any("\x02" in term or not _is_mathematics(term) for term in gold + answer):
        return False
    # the same terms have to be 0: otherwise 0:0:0 would be proportional to everything
    zeros = [equal_formulas(term, "0") for term in gold]
    if zeros != [equal_formulas("0", term) for term in answer]:
        return False
    base = zeros.index(False) if False in zeros else 0
    # crosswise, so that no term is divided by
    return all(
        equal_formulas(f"({ours})({answer[base]})", f"({theirs})({gold[base]})")
        for ours, theirs in zip(gold, answer, strict=True)
    )


def _like_units(gold: str, answer: str) -> tuple[str, str]:
    """Both without degrees, percent and ratios, where only one of them is written with these."""
    if _DEGREE in gold + answer:
        gold, answer = _degrees(gold, answer), _degrees(answer, gold)
    if bool(_PERCENT.search(gold)) != bool(_PERCENT.search(answer)):
        bare = [_PERCENT.sub("", text).strip() for text in (gold, answer)]
        values = [number(text) for text in bare]
        if _PERCENT.search(gold):  # 10 and 0.1 are both 10 %
            same = values[0] is not None and values[0] == values[1]
            gold, answer = (bare[0], bare[1]) if same else (rf"\frac{{{bare[0]}}}{{100}}", bare[1])
        elif values[0] is not None and values[0].denominator == 1:  # 50 % matches 50, a gold in whole percents
            gold, answer = bare[0], bare[1]
        else:
            gold, answer = bare[0], rf"\frac{{{bare[1]}}}{{100}}"
    else:
        gold, answer = _PERCENT.sub("", gold).strip(), _PERCENT.sub("", answer).strip()
    return _ratio(gold), _ratio(answer)


def _degrees(text: str, other: str) -> str:
    r"""Without degrees at the end, unless the other one is in radians; those inside a formula as \pi/180."""
    radians = r"\cdot\frac{\pi}{180}"
    number_or_command = re.search(r"\d|\\[A-Za-z]", text.replace(_DEGREE, ""))  # C^\circ is not C
    if text.endswith(_DEGREE) and number_or_command and not _ANGLE_OF.search(text):
        text = text.removesuffix(_DEGREE)
        if r"\pi" in other and _DEGREE not in other:
            text = f"({text}){radians}"
    return text.replace(_DEGREE, radians)


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
    r"""Words without case, spaces and \text{}; signs and digits count."""
    return re.sub(r"[\s\x02\x03{}$]+|(?<!\d)[().]|[().](?!\d)", "", text).casefold()


def _based(text: str) -> tuple[str, int] | None:
    """`2516_8` as digits and base; None if a digit is not below the base."""
    match = re.fullmatch(r"([0-9A-Fa-f]+)_\{?\s*(\d{1,2})\s*\}?", squeeze(text))
    if match is None or not any(character.isdigit() for character in match[1]) or not 2 <= int(match[2]) <= 36:
        return None
    fits = all(int(digit, 36) < int(match[2]) for digit in match[1])
    return (match[1].casefold(), int(match[2])) if fits else None


def _equal_based(gold: str, answer: str) -> bool | None:
    """Numbers with a base; None if neither has one. An answer may omit the base of the gold, and add none but 10."""
    ours, theirs = _based(gold), _based(answer)
    if ours is None and theirs is None:
        return None
    if ours is None:
        return theirs is not None and theirs[1] == 10 and theirs[0] == squeeze(gold).casefold()
    return theirs == ours if theirs is not None else squeeze(answer).casefold() == ours[0]
