r"""What is refused before it is read: answers that are too large, too costly to compare, or that hide something.

A model under optimisation finds every one of these. A guard reads the text alone, in time linear in its length, and
allows what the gold itself contains: a gold with a binomial may be answered with a binomial.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dgpo.grading.mathematics.spelling import clean

MAX_CHARACTERS = 512
MAX_DEPTH = 24
MAX_DIGITS = 59

# operators that state a problem rather than answer it, or that join several answers
_OPERATORS = (
    r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf|max|min|sup|inf|det|gcd|lcm|binom|dbinom|tbinom|choose|bmod|pmod|"
    r"pod|mod|lfloor|lceil|operatorname|deg|arg|ne|neq|not|sim|simeq|equiv|cong|to|rightarrow|Rightarrow|implies|iff|"
    r"because|therefore|lor|vee|land|wedge|forall|exists)(?![A-Za-z])"
)
_HIDDEN = (
    r"\\(?:phantom|hphantom|vphantom|color|textcolor|colorbox|cancel|bcancel|xcancel|sout|llap|rlap|smash|hspace|vspace|"
    r"tiny|scriptsize)(?![A-Za-z])"
)
_TEX = (
    r"\\(?:write|input|include|immediate|openin|openout|read|def|edef|gdef|let|newcommand|csname|catcode|loop|special|"
    r"usepackage|href|url)(?![A-Za-z])"
)
_FEATURES = {
    "operator": re.compile(_OPERATORS),
    "hidden": re.compile(_HIDDEN),
    "tex": re.compile(_TEX),
    "rows": re.compile(r"^(?!.*\\begin).*?\\\\(?![A-Za-z])", re.DOTALL),  # outside of matrices
    "approximation": re.compile(r"\\(?:approx|doteq)(?![A-Za-z])|[≈≅]"),
    # 9^{9^9}, 9**9**9, x^{2^{100}}: a power of numbers inside an exponent
    "tower": re.compile(r"(?:\^|\*\*)\s*[{(]*\s*-?\d+\s*[})]*\s*(?:\^|\*\*)"),
    "exponent": re.compile(r"(?:\^|\*\*)\s*[{(]*\s*-?\s*\d{5}|\d[eE][+-]?\d{4}"),
    "factorial": re.compile(r"\d{4}\s*!|[)\]}!]\s*!"),
    "bidi": re.compile("[\u202a-\u202e\u2066-\u2069]"),
}
_DEPTH = re.compile(r"[{(\[]|[})\]]")
_DIGITS = re.compile(r"\d+")


def guard(answer: str, gold: str) -> str | None:
    """The name of the feature for which `answer` is refused; None if it is not.

    Limits: 512 characters, 24 nested brackets and 59 consecutive digits, or the values of the gold if larger.
    """
    if len(answer) > max(MAX_CHARACTERS, len(gold)):
        return "size"
    if _deepest(answer) > max(MAX_DEPTH, _deepest(gold)):
        return "depth"
    if _longest_number(answer) > max(MAX_DIGITS, _longest_number(gold)):
        return "digits"
    answer, gold = clean(answer), _clean(gold)
    for name, pattern in _FEATURES.items():
        permitted = {match.group() for match in pattern.finditer(gold)}
        if any(match.group() not in permitted for match in pattern.finditer(answer)) and not (
            # of these, one in the gold permits any; of commands, only the gold's own are permitted
            permitted and name in ("tower", "exponent", "factorial", "rows", "approximation")
        ):
            return name
    return None


_clean = lru_cache(maxsize=4096)(clean)  # a group of responses has one gold


def _deepest(text: str) -> int:
    deepest = depth = 0
    for match in _DEPTH.finditer(text):
        depth = depth + 1 if match.group() in "{([" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _longest_number(text: str) -> int:
    return max((len(match.group()) for match in _DIGITS.finditer(text)), default=0)
