"""Whether two formulas are equal: parsed by math-verify's parser, and compared by their values.

For worker processes only: there is no time limit here. Only what the parser made of LaTeX is evaluated.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

# relative: a worker loads this folder without the package around it, which would import torch
from .explicit import explicit
from .numbers import number, rounds_to, within_tolerance
from .rewriting import Rule, rewrite

# letters that the parser reads as a function or a power of ten, or does not read
# \gamma would be Euler's constant, f' would be f, and E_1 raises
_LETTERS: list[Rule] = [
    (re.compile(r"\\gamma(?![A-Za-z])"), r"\\psi_{\\gamma}"),
    (re.compile(r"\\hbar(?![A-Za-z])"), r"\\psi_{h}"),
    (re.compile(r"(?<![A-Za-z\\])E\s*_"), r"\\Psi_"),
    (re.compile(r"\\ldots(?![A-Za-z])"), r"\\psi_{d}"),  # it skips dots: they become a term of their own
    (re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*('+)(?!\s*_)"), lambda match: f"{match[1]}_{{q{len(match[2])}}}"),
]
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)")
_LOST = re.compile(r"[\d)\]}|]\s*_")  # the parser drops a subscript of anything but a letter
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_PARAMETERS = "knmlKN"
# it reads \coth x as \cot hx, and adds numbers with a space between them
_MISREAD = re.compile(r"\\(?:coth|sech|csch|sinc)(?![A-Za-z])|\d\s+[\d.]|(?<![\d_^{])\d+\s*\{\s*\d")


ATTEMPTS, AGREEMENTS = 20, 10
VANISHING = 1e-100
"""Points tried, and points that have to agree: half as many suffice if both can be evaluated at no more."""


class Unreadable(Exception):
    """The parser cannot read a formula: the gold if `gold`, otherwise the answer."""

    def __init__(self, *, gold: bool) -> None:
        self.gold = gold


def equal_formulas(gold: str, answer: str) -> bool:
    """Whether two LaTeX formulas are equal. Raises Unreadable."""
    first, second = _parse(gold), _parse(answer)
    if first is None:
        raise Unreadable(gold=True)
    if second is None:
        raise Unreadable(gold=False)
    from sympy import Expr, Float

    if not (isinstance(first, Expr) and isinstance(second, Expr)):
        return _verified(first, second)
    if first.free_symbols != second.free_symbols:
        renamed = _renamed_parameter(first, second, gold + answer)
        if renamed is None:
            return _agree(first, second)  # a symbol may drop out: x - x + 2
        second = renamed
    if not first.free_symbols and not second.free_symbols:
        if first.has(Float) or second.has(Float) or "." in gold or "." in answer:
            return _equal_decimals(gold, first, second)
        return _equal_constants(first, second)
    return _agree(first, second)


def parses(latex: str) -> bool:
    """Whether a formula can be read."""
    return _parse(latex) is not None


def _renamed_parameter(gold: Any, answer: Any, latex: str) -> Any:
    r"""`n\pi` with the letter of `k\pi`: only the letter of an integer multiple of pi may differ."""
    from sympy import expand, pi

    if r"\pi" not in latex or len(gold.free_symbols) != 1 or len(answer.free_symbols) != 1:
        return None
    (ours,), (theirs,) = gold.free_symbols, answer.free_symbols
    if not {str(ours), str(theirs)} <= set(_PARAMETERS):
        return None
    turns = expand(gold.doit())
    step = turns.coeff(ours, 1)
    # linear in the letter, with a rational number of turns per step
    if ours in (turns - step * ours).free_symbols or not (step / pi).is_Rational:
        return None
    return answer.subs(theirs, ours)


def _equal_constants(first: Any, second: Any) -> bool:
    """Exact constants: rationals exactly, others by their values to 60 digits."""
    from sympy import Rational

    # the parser leaves products and powers unevaluated
    first, second = first.doit(), second.doit()
    if isinstance(first, Rational) and isinstance(second, Rational):
        return bool(first == second)
    # ten of the 60 digits are left to rounding
    values = [value.evalf(60) for value in (first, second)]
    if not all(value.is_number and value.is_finite for value in values):
        return bool(first == second)
    return bool(abs(values[0] - values[1]) <= abs(values[0]) * 10**-50)


def _equal_decimals(gold: str, first: Any, second: Any) -> bool:
    values = [value.evalf(30) for value in (first, second)]
    if not all(value.is_real and value.is_finite for value in values):
        return bool(first == second)
    # from the 30 digits, so that the tolerance is that of numbers.py
    ours, theirs = (Fraction(str(value)) for value in values)
    plain = number(gold)
    if plain is None:
        return within_tolerance(ours, theirs)
    if plain.denominator == 1 and "." not in gold:
        return ours == theirs
    return within_tolerance(ours, theirs) or ("." in gold and rounds_to(gold, plain, theirs))


def _agree(first: Any, second: Any, *, proportional: bool = False) -> bool:
    """Whether two expressions have the same value, or the same ratio of values, at random points of both signs.

    Different formulas do not agree there by accident. Points are small and large, because of floors. Points with
    negative coordinates count only if both values are real, which avoids the branches of roots and logarithms.
    """
    if not proportional:
        difference = first - second
        if difference == 0:
            return True
        if not difference.free_symbols:
            return _equal_constants(difference, difference * 0)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    # a fixed seed: the same two formulas get the same verdict in every run
    dice, ratio, agreed = random.Random(0), None if proportional else 1, 0
    for attempt in range(ATTEMPTS):
        negative = attempt % 2 == 1
        signs = [-1 if negative and (place == 0 or dice.random() < 0.5) else 1 for place in range(len(symbols))]
        # at least one coordinate is negative, and not always the first
        dice.shuffle(signs)
        # a denominator of 97 gives coordinates below 4, one of 7 up to 30
        scale = 97 if attempt % 4 < 2 else 7
        # never integers, where different formulas often vanish or coincide
        point = {
            s: Fraction(sign * (scale * dice.randint(0, 199 // scale + 1) + dice.randint(1, scale - 1)), scale)
            for s, sign in zip(symbols, signs, strict=True)
        }
        values = [_at(expression, point) for expression in (first, second)]
        if values[0] is None or values[1] is None or (negative and not all(value.is_real for value in values)):
            continue
        if all(abs(value) < VANISHING for value in values):  # two zeros prove nothing
            continue
        if ratio is None:
            # a ratio of values near 0 would be noise
            if abs(values[0]) < 1e-9 or abs(values[1]) < 1e-9:
                continue
            ratio = values[1] / values[0]
        # of evalf's 20 digits, eight are left to cancellation; the last term allows noise beside an exact zero
        if abs(values[0] * ratio - values[1]) > 1e-12 * abs(values[1]) + 1e-15 * (values[0] == 0):
            return False
        agreed += 1
        if agreed == AGREEMENTS:
            return True
    return agreed >= AGREEMENTS // 2


def _at(expression: Any, point: dict[Any, Fraction]) -> Any:
    from sympy import Rational

    # exact coordinates: with floats, only 15 digits would be right
    value = expression.evalf(20, subs={symbol: Rational(x.numerator, x.denominator) for symbol, x in point.items()})
    return value if value.is_number and value.is_finite else None


def equal_equations(gold: list[str], answer: list[str]) -> bool:
    """Whether left - right of two equations is the same up to a constant factor."""
    if len(gold) != 2 or len(answer) != 2:
        return False
    from sympy import Expr

    sides = [_parse(side) for side in (*gold, *answer)]
    if not all(isinstance(side, Expr) for side in sides):
        return False
    first, second = sides[0] - sides[1], sides[2] - sides[3]
    return first.free_symbols == second.free_symbols != set() and _agree(first, second, proportional=True)


def value_of(latex: str) -> float | None:
    """The value of a real constant; None for anything else."""
    value = number(latex)
    if value is not None:
        return float(value)
    parsed = _parse(latex)
    return float(parsed) if parsed is not None and getattr(parsed, "is_real", False) and parsed.is_number else None


# a group of responses is compared with one gold
@lru_cache(maxsize=1024)
def _parsed(latex: str) -> Any:
    """The sympy object of a formula.

    Raises what the parser raises: failures may be transient, so the cache does not keep them.

    Uses the parser of math-verify, but not `math_verify.parse`, which normalises again (`E_1 + 2` becomes 2), lowers
    the case of symbols (N - n is 0) and limits its time with SIGALRM.
    """
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy
    from sympy import Basic, I, MatrixBase, Symbol, nan, zoo

    latex = rewrite(latex, _LETTERS)
    if _LOST.search(latex):
        raise ValueError(f"a subscript of something other than a letter in {latex!r}")
    latex = _DECIMAL.sub(_exactly, explicit(latex))
    if _MISREAD.search(latex):
        raise ValueError(f"{latex!r} would be misread")
    # the i of a sum or a product is its index
    imaginary = "i" in _COMMAND.sub("", latex) and r"\sum" not in latex and r"\prod" not in latex
    parsed = latex2sympy(
        latex,
        is_real=not imaginary,
        normalization_config=NormalizationConfig(malformed_operators=True, boxed="none"),
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    if not isinstance(parsed, Basic | MatrixBase) or parsed.has(nan, zoo):
        raise ValueError(f"no mathematics in {latex!r}")
    if imaginary and isinstance(parsed, Basic):  # its other letters are real, as in formulas without i
        letters = {
            symbol: Symbol(symbol.name, real=True) for symbol in parsed.free_symbols if isinstance(symbol, Symbol)
        }
        return parsed.xreplace(letters | {Symbol("i", real=False): I})
    return parsed


def _exactly(decimal: re.Match[str]) -> str:
    """1.2 as a fraction: a float would not be exact."""
    return rf"\frac{{{int(decimal[1] + decimal[2])}}}{{{10 ** len(decimal[2])}}}"


def _parse(latex: str) -> Any:
    """The sympy object of a formula; None if it cannot be read. Memory and recursion errors are raised."""
    try:
        return _parsed(latex)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - a generated parser on arbitrary text: no list of exceptions is complete
        return None


def _verified(gold: Any, answer: Any) -> bool:
    """math-verify's own verdict, for equations, matrices, sets and anything else that is not a plain expression."""
    from math_verify import verify

    symbols = [getattr(parsed, "free_symbols", None) for parsed in (gold, answer)]
    if None not in symbols and symbols[0] != symbols[1]:
        return False
    # without its timeout, which uses SIGALRM: the deadline of the pool applies
    return bool(verify([gold], [answer], timeout_seconds=None, allow_set_relation_comp=True))
