r"""Mathematics typed without LaTeX, as LaTeX: `2*pi*r`, `sqrt(x+1)/2`, `exp(-x)`, `abs(x)`, `sinx`.

Gold and answer are read alike: a name is a function or a Greek letter on both sides, never a product of its letters.
Text in, text out, in one pass over the tokens, so in time linear in the text.
"""

from __future__ import annotations

import re

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
)
_NAMES = {name: rf"\{name} " for name in _GREEK.split()}
_NAMES |= dict.fromkeys(("Pi", "PI"), r"\pi ")
_NAMES |= dict.fromkeys(("inf", "infinity", "Infinity", "oo", "infty"), r"\infty ")
_LETTERS = frozenset(_GREEK.split())

_SAME_NAME = "sin cos tan cot sec csc sinh cosh tanh ln log exp"
_TAKING = {name: rf"\{name} " for name in _SAME_NAME.split()}
for _plain, _latex in (("sin", "arcsin"), ("cos", "arccos"), ("tan", "arctan"), ("cot", "arccot"), ("sec", "arcsec"),
                       ("csc", "arccsc"), ("sinh", "arcsinh"), ("cosh", "arccosh"), ("tanh", "arctanh")):  # fmt: skip
    _TAKING |= dict.fromkeys((f"arc{_plain}", f"a{_plain}", f"ar{_plain}"), rf"\{_latex} ")
_TAKING["tg"], _TAKING["arctg"] = r"\tan ", r"\arctan "
"""Functions that need an argument: without one, the name is a word (`10 sec`)."""

# what goes around the content of round brackets
_AROUND = {
    "sqrt": (r"\sqrt{", "}"),
    "cbrt": (r"\sqrt[3]{", "}"),
    "qdrt": (r"\sqrt[4]{", "}"),
    "abs": (r"\left|", r"\right|"),
    "Abs": (r"\left|", r"\right|"),
    "floor": (r"\lfloor ", r"\rfloor "),
    "ceil": (r"\lceil ", r"\rceil "),
}
FUNCTIONS = frozenset((*_TAKING, *_AROUND))
_BEHIND_A_LETTER = frozenset(("sin", "cos", "tan", "ln", "log", "exp", "sqrt"))
_PAIRS = frozenset(("binom", "binomial", "comb"))
_COMMANDS = {rf"\{name}": name for name in ("sqrt", "abs")}
_BACKSLASH_LOST = frozenset(("frac", "dfrac", "tfrac"))

_RUN_TOGETHER = re.compile(
    r"(?P<function>(?:arc|a)?(?:sin|cos|tan)|cot|sec|csc|ln|log)(?P<argument>[xyznABC]|[a-z]{2,7})"
)
_PI_TOGETHER = re.compile(r"(?P<before>[nkmri]?)pi(?P<after>[rhnkxti]?)")

_TOKEN = re.compile(
    r"\\(?:begin|end|text|mbox|textrm|mathrm|mathbb|operatorname|mathcal)\s*\{[^{}]*\}|\\[A-Za-z]+|\\.|\x02[^\x03]*\x03|"
    r"[A-Za-z]+|\d+(?:\.\d+)?|\s+|.",
    re.DOTALL,
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def is_word(run: str) -> bool:
    """Whether consecutive letters are a word. Up to two, or more without a vowel (`xyz`, `mgh`), are a product."""
    return len(run) > 2 and run not in ("abc", "abcd") and re.search("[aeiou]", run.casefold()) is not None


def latex_of(text: str) -> str:
    """The text with its plain names and functions as LaTeX; words are unchanged."""
    tokens = _TOKEN.findall(text)
    partner = _partners(tokens)
    # tokens are read, `out` is written: a translation never sees what another one wrote
    out = list(tokens)
    for place, token in enumerate(tokens):
        if token == "^" and tokens[place + 1 : place + 2] == ["("] and place + 1 in partner:  # x^(n+1)
            out[place + 1], out[partner[place + 1]] = "{", "}"
        elif token in _COMMANDS or (token[0].isalpha() and token.isascii() and not _is_subscript(tokens, place)):
            _translate(tokens, partner, out, place)
    return "".join(out)


def _translate(tokens: list[str], partner: dict[int, int], out: list[str], place: int) -> None:
    name = _COMMANDS.get(tokens[place], tokens[place])
    after = place + 1
    while after < len(tokens) and tokens[after].isspace():
        after += 1
    following = tokens[after] if after < len(tokens) else ""
    if name in _AROUND:
        _wrap(tokens, partner, out, place, after, name)
    elif name in _PAIRS and following == "(" and after in partner:
        commas = _commas(tokens, partner, after)
        if len(commas) == 1:
            out[place], out[after], out[commas[0]], out[partner[after]] = r"\binom", "{", "}{", "}"
    elif name == "factorial" and following == "(" and partner.get(after) == after + 2:
        out[place] = out[after] = ""
        out[after + 2] = "!"
    elif name in _BACKSLASH_LOST and following == "{":
        out[place] = r"\frac"
    elif name == "log" and following in ("2", "10") and after == place + 1 and tokens[after + 1 : after + 2] == ["("]:
        out[place], out[after] = r"\log", f"_{{{following}}}"
    elif name in _TAKING and _starts_argument(following):
        # `10 sec^2` is in seconds
        if not (name == "sec" and following == "^" and place and tokens[place - 1].strip().isdigit()):
            out[place] = " " + _TAKING[name]
    elif name in _NAMES:
        out[place] = " " + _NAMES[name]
    elif following == "(" and name[1:] in _BEHIND_A_LETTER:  # rcos(x)
        tokens[place] = name[1:]
        _translate(tokens, partner, out, place)
        out[place] = name[0] + out[place]
    else:
        out[place] = _taken_apart(tokens[place])


def _wrap(tokens: list[str], partner: dict[int, int], out: list[str], place: int, after: int, name: str) -> None:
    r"""`sqrt(...)`, `sqrt{...}`, `sqrt 2` and `sqrt[3](2)`; `abs` and the others only with brackets."""
    opening, closing = _AROUND[name]
    command = tokens[place] in _COMMANDS
    if name == "sqrt" and after < len(tokens) and tokens[after] == "[" and after in partner:
        index = "".join(tokens[after : partner[after] + 1])
        bracket = partner[after] + 1
        if bracket < len(tokens) and tokens[bracket] in ("(", "{") and bracket in partner and not command:
            out[place] = rf" \sqrt{index}"
            out[after : partner[after] + 1] = [""] * (partner[after] + 1 - after)
            out[bracket], out[partner[bracket]] = "{", "}"
        elif command and tokens[bracket : bracket + 1] == ["("] and bracket in partner:
            out[bracket], out[partner[bracket]] = "{", "}"
        return
    if after >= len(tokens):
        return
    if tokens[after] in ("(", "{") and after in partner:
        if tokens[after] == "(" or not command or name == "abs":
            out[place], out[after], out[partner[after]] = " " if not command else "", opening, closing
    elif not command and name in ("sqrt", "cbrt", "qdrt"):
        argument = tokens[after]
        greek = argument[1:] if argument.startswith("\\") else argument
        if argument[0].isdigit() or (argument.isalpha() and len(argument) == 1) or greek in _LETTERS:
            letter = rf"\{greek}" if greek in _LETTERS else argument
            out[place] = ""
            tokens[after] = ";"  # consumed
            out[after] = f" {opening}{letter}{closing}"


def _starts_argument(token: str) -> bool:
    if token[:1].isalpha() and token.isascii():
        return not is_word(token) or token in _NAMES or token in _AROUND or token in _TAKING
    return (
        token[:1].isdigit()
        or token in ("(", "{", "[", "|", "^", "_")
        or (token[:1] == "\\" and token[1:2].isalpha() and not token.startswith((r"\text", r"\cdot", r"\times")))
    )


def _taken_apart(run: str) -> str:
    """`sinx` and `npi` as LaTeX; anything else unchanged."""
    together = _RUN_TOGETHER.fullmatch(run)
    if together is not None and together["function"] in _TAKING:
        argument = together["argument"]
        if len(argument) == 1 or argument in _LETTERS:
            return f" {_TAKING[together['function']]}{_NAMES.get(argument, argument)}"
    pi = _PI_TOGETHER.fullmatch(run)
    return rf"{pi['before']}\pi {pi['after']}" if pi is not None else run


def _partners(tokens: list[str]) -> dict[int, int]:
    """Index of each opening bracket -> index of its closing one; those without a partner are left out."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token in _CLOSING:
            opened.append(place)
        elif token in (")", "]", "}") and opened:
            if _CLOSING[tokens[opened[-1]]] == token:
                found[opened.pop()] = place
            else:  # a half-open interval, or no brackets at all
                opened.pop()
    return found


def _commas(tokens: list[str], partner: dict[int, int], opening: int) -> list[int]:
    """Indices of the commas directly within a pair of brackets."""
    found, place = [], opening + 1
    while place < partner[opening]:
        if tokens[place] == ",":
            found.append(place)
        place = partner.get(place, place) + 1
    return found


def _is_subscript(tokens: list[str], place: int) -> bool:
    """Whether a name is (the start of) a subscript, such as `max` of `v_{max}`."""
    before = place - 1
    while before >= 0 and (tokens[before].isspace() or tokens[before] == "{"):
        before -= 1
    return before >= 0 and tokens[before] == "_"
