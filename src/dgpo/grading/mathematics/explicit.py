r"""What LaTeX leaves implicit, written out for the parser: arguments, mixed numbers, products.

The parser of math-verify adds adjacent numbers (3(2) is 5, and so is `2\frac{3}{1}`). Here every product of two numbers
gets its sign, and a mixed number becomes one fraction.
"""

from __future__ import annotations

import re

from .rewriting import Rule, rewrite

_SIGN = r"\cdot "


def _braced_first(match: re.Match[str]) -> str:
    return rf"\frac{{{match[1]}}}" + (match[2] if match[2] == "{" else f"{{{match[2]}}}")


def _mixed(match: re.Match[str]) -> str:
    whole, over, under = (int(part) for part in match.groups())
    if not 0 < over < under:  # 2 3/2 is not a mixed number but a product
        return rf"{whole}{_SIGN}\frac{{{over}}}{{{under}}}" if "\\frac" in match.group() else match.group()
    return rf"\frac{{{whole * under + over}}}{{{under}}}"


def _behind_group(match: re.Match[str]) -> str:
    return match[1] + (_SIGN if match[1] == "}" else " ")


# the parser raises at x^-2, for example
_ARGUMENTS: list[Rule] = [
    (re.compile(r"\\frac\s*(\d)\s*(\{|\d)"), _braced_first),
    (re.compile(r"\\frac(\{[^{}]*\})\s*(\d)"), r"\\frac\1{\2}"),
    # in braces only before something that it could be confused with: each brace costs the parser time
    (re.compile(r"\\sqrt\s*(\[[^\[\]{}]*\])?\s*(\d)(?=\s*(?:\\frac|[\d(]))"), r"\\sqrt\1{\2}"),
    (re.compile(r"\^\s*-\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))"), r"^{-\1}"),
    (re.compile(r"([\^_])\s*(-?\d+)(?=\s*(?:\\frac|\s\d|\())"), r"\1{\2}"),
]
_PRODUCTS: list[Rule] = [
    (re.compile(r"(?<![\d.,^_])(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}"), _mixed),
    (re.compile(r"(?<![\d.,/])(?<!\d\s)(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])"), _mixed),
    # 3/4 pi is three quarters of pi; 1/2x without the space stays as the parser reads it
    (
        re.compile(
            r"(?<![\w.,/}^)])(\d+)\s*/\s*(\d+)"
            r"(?=\s+(?:\\(?!cdot|times|div|leq|geq|pm|text|cup|cap|in[^f])[A-Za-z]|[A-Za-z(]))"
        ),
        r"\\frac{\1}{\2}",
    ),
    (re.compile(r"(?<![A-Za-z\]}^_\s])\{\s*(\d+(?:\.\d+)?)\s*\}"), r"\1"),  # {42}1 is set as 421
    (re.compile(r"(\(\s*[\d.]+\s*\))\s*(?=[({\d])"), r"\1\\cdot "),
    (re.compile(r"(?<=\d)\s*(?=\()"), r"\\cdot "),
    (re.compile(r"(?<=\))\s*(?=\d|\{|\(\s*[\d.]+\s*\))"), r"\\cdot "),
    # not after the base of a logarithm or the power of a function: \log_{2} 8 is not a product
    (re.compile(r"(\\[A-Za-z]+\s*[\^_]\{[^{}]*\}|\})\s*(?=\d)"), _behind_group),
    (re.compile(r"(?<![A-Za-z\\])([ie])\s*(?=\()"), r"\1\\cdot "),
]


def explicit(latex: str) -> str:
    """The formula with explicit arguments and products."""
    latex = rewrite(latex, _ARGUMENTS)
    # the entries of a matrix are not factors: `\begin{pmatrix} 1` would get a sign
    return latex if r"\begin" in latex else rewrite(latex, _PRODUCTS)
