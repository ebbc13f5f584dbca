r"""What LaTeX leaves to the reader, written out for the parser: arguments, mixed numbers, products.

The parser of math-verify adds numbers that stand side by side (3(2) is 5, and so is `2\frac{3}{1}`), whatever is
around them. Here every product of two numbers gets its sign, and a mixed number becomes one fraction.
"""

from __future__ import annotations

import re

_SIGN = r"\cdot "
_FRAC_SECOND = re.compile(r"\\frac(\{[^{}]*\})\s*(\d)")
_FRAC_FIRST = re.compile(r"\\frac\s*(\d)\s*(\{|\d)")
# in braces only where something follows that it could be confused with: each brace costs the parser time
_ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]{}]*\])?\s*(\d)(?=\s*(?:\\frac|[\d(]))")
_SCRIPT = re.compile(r"([\^_])\s*(-?\d+)(?=\s*(?:\\frac|\s\d|\())")
_MIXED = re.compile(r"(?<![\d.,^_])(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}")
_PLAIN_MIXED = re.compile(r"(?<![\d.,/])(?<!\d\s)(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
# 3/4 pi is three quarters of pi; 1/2x without the space stays as the parser takes it
_PLAIN_FRACTION = re.compile(
    r"(?<![\w.,/}^)])(\d+)\s*/\s*(\d+)(?=\s+(?:\\(?!cdot|times|div|leq|geq|pm|text|cup|cap|in[^f])[A-Za-z]|[A-Za-z(]))"
)
_GROUP = re.compile(r"(?<![A-Za-z\]}^_\s])\{\s*(\d+(?:\.\d+)?)\s*\}")
_NUMBER_BRACKET = re.compile(r"(?<=\d)\s*(?=\()")
_BRACKET_NUMBER = re.compile(r"(?<=\))\s*(?=\d|\{|\(\s*[\d.]+\s*\))")
_NUMBER_IN_BRACKETS = re.compile(r"(\(\s*[\d.]+\s*\))\s*(?=[({\d])")
# not behind the base of a logarithm or the power of a function: \log_{2} 8 is no product
_GROUP_NUMBER = re.compile(r"(\\[A-Za-z]+\s*[\^_]\{[^{}]*\}|\})\s*(?=\d)")
_NAMED_PRODUCT = re.compile(r"(?<![A-Za-z\\])([ie])\s*(?=\()")


_NEGATIVE_POWER = re.compile(r"\^\s*-\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))")


def explicit(latex: str) -> str:
    """The formula with nothing left to guess between its numbers."""
    latex = _FRAC_FIRST.sub(_braced_first, latex)
    latex = _FRAC_SECOND.sub(r"\\frac\1{\2}", latex)
    latex = _ROOT.sub(lambda match: rf"\sqrt{match[1] or ''}{{{match[2]}}}", latex)
    latex = _NEGATIVE_POWER.sub(r"^{-\1}", latex)
    latex = _SCRIPT.sub(r"\1{\2}", latex)
    if r"\begin" in latex:
        return latex
    latex = _PLAIN_MIXED.sub(_mixed, _MIXED.sub(_mixed, latex))
    latex = _PLAIN_FRACTION.sub(r"\\frac{\1}{\2}", latex)
    latex = _GROUP.sub(r"\1", latex)  # {42}1 is set as 421
    latex = _NUMBER_IN_BRACKETS.sub(lambda match: match[1] + _SIGN, latex)
    for pattern in (_NUMBER_BRACKET, _BRACKET_NUMBER):
        latex = pattern.sub(lambda match: _SIGN, latex)
    latex = _GROUP_NUMBER.sub(lambda match: match[1] + (_SIGN if match[1] == "}" else " "), latex)
    return _NAMED_PRODUCT.sub(lambda match: match[1] + _SIGN, latex)


def _braced_first(match: re.Match[str]) -> str:
    return rf"\frac{{{match[1]}}}" + (match[2] if match[2] == "{" else f"{{{match[2]}}}")


def _mixed(match: re.Match[str]) -> str:
    whole, over, under = (int(part) for part in match.groups())
    if not 0 < over < under:  # 2 3/2 is no mixed number, but a product
        return rf"{whole}{_SIGN}\frac{{{over}}}{{{under}}}" if "\\frac" in match.group() else match.group()
    return rf"\frac{{{whole * under + over}}}{{{under}}}"
