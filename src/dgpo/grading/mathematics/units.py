r"""What may follow a number without being part of the answer: `10 \text{ cm}`, `10 m/s`, `15 weeks`, `18 apples`.

After an answer these are known words (`unit_table.py`) and those of the gold; after a gold, all words except those that
change the number, count or hedge: a gold does not try to be accepted. Nothing is taken from words: `C \text{ D}` is not
C. If both have a unit, the units have to be the same.
"""

from __future__ import annotations

import re

from .unit_table import ADJECTIVES, BEHIND, COUNTED, SINGLE, UNITS, UNMULTIPLIED, is_plural, kind_of, named

MAX_WORDS = 6

_CHANGING = (
    # numbers
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy "
    "eighty ninety dozen dozens half halfs halves quarter quarters score gross pair pairs couple couples twice thrice "
    "double triple percent pct lakh lakhs crore crores fold mille permille ppm ppb infinity inf pi googol bn mln mil "
    "tens ones myriad triples twins trios etc alpha beta gamma delta epsilon zeta eta iota kappa lambda mu nu xi "
    "omicron rho sigma tau upsilon phi chi omega "
    # operations and bases
    "square cube cubic prime complement above below ish plus minus times over divided multiplied by squared cubed "
    "factorial mod modulo root power base binary octal decimal hex hexadecimal negative positive reciprocal inverse "
    "sum difference product sqrt sin cos tan cot csc log ln exp max gcd lcm abs det lim arg dim theta choose "
    # hedges and conditions
    "not no none neither nor never or and but also if unless else otherwise except without maybe perhaps possibly "
    "either between versus vs than more less least most approximately approx about around nearly roughly almost "
    "unknown undefined wrong incorrect false true right correct is are was be isn aren when where while for to from "
    "until instead rather alternatively should could might may what which"
)
_CHANGES = frozenset(_CHANGING.split())
_COUNTS = re.compile(
    r"[a-z]*(?:teen|illion|hundred|thousand|illiard)(?:th)?s?|[a-z]*(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|"
    r"eleventh|twelfth|teenth|tieth)s?"
)
_TOKEN = re.compile(
    r"\x02[^\x03]*\x03|\^\{\\circ\}\s*(?:\x02\s*[CF]\s*\x03|[CF](?![A-Za-z]))|\\[A-Za-z]+|"
    r"\^\s*(?:\{\s*-?\s*\d\s*\}|-?\d)|[A-Za-z]+(?:-[A-Za-z]+)*|\s+|.",
    re.DOTALL,
)
_ATOM = re.compile(
    r"\^\{\\circ\}\s*[CF](?![A-Za-z])|[A-Za-z]+(?:['-][A-Za-z]+)*[23]?(?![A-Za-z\d])|\\[A-Za-z]+|\^\s*\{?\s*-?\s*\d\s*\}?|\S"
)
_GREEK = {r"\mu": "micro", r"\Omega": "ohm", r"\AA": "angstrom"}
_PREFIX_OF_OHM = {"k": "kilo", "M": "mega", "m": "milli", "G": "giga"}
_FRACTION = re.compile(
    r"\\frac\s*\{\s*(\x02[^\x03]*\x03(?:\s*\^\s*\{?-?\d\}?)?)\s*\}\s*\{\s*(\x02[^\x03]*\x03(?:\s*\^\s*\{?-?\d\}?)?)\s*\}\s*$"
)
_NUMBER = re.compile(
    r"[-+]?(?:[\d.,]*\d\.?(?:\s*/\s*\d+|\s*\\(?:times|cdot)\s*10\s*\^\s*\{?-?\d+\}?)?|\\frac\{[-\d.]+\}\{[\d.]+\}|\\frac\d\d)"
)
_CHOICE = re.compile(r"\(\s*[A-Z]\s*\)")
_WORD_INSIDE = re.compile(r"\x02|(?<![\\A-Za-z])[A-Za-z]{2,}")
_CONSTANT = re.compile(r"(?:\\(?:pi|sqrt|frac|cdot|times)(?![A-Za-z])|[^A-Za-z\\\x02])*")
_VARIABLE = re.compile(r"(?<![\\A-Za-z])(?!e(?![A-Za-z]))[A-Za-z]")
# read directly after a digit: 10cm, but 10ms is a product
_WITHOUT_SPACE = (
    "cm mm km kg mg ml mL ft lb lbs oz hr hrs min mins sec mph kph rpm Hz kHz MHz GHz kW MW kWh GB MB KB TB eV keV "
    "MeV GeV kJ nm dB psi yd gal usd USD kPa MPa pm am PM AM"
)
_JOINED = frozenset(_WITHOUT_SPACE.split())
_POWERS = ("square", "sq", "squared", "cubic", "cubed", "cu")


def take_unit(text: str, *, trusted: bool, known: frozenset[str] = frozenset()) -> tuple[str, str]:
    r"""The text without a unit at its end, and the unit in one spelling; "" if there is none.

    Args:
        text: with words between \x02 and \x03.
        trusted: whether it is a gold.
        known: words of the gold, which an answer may repeat.
    """
    text = _FRACTION.sub(r"\1/\2", text)
    tokens = _TOKEN.findall(text)
    start = _start(tokens, trusted, known)
    if start is None:
        return text, ""
    head = "".join(tokens[:start]).strip().removesuffix(r"\cdot").strip()
    tail = tokens[start:]
    if trusted and _VARIABLE.search(head):  # x \text{ odd} is not x
        trusted = False
    # behind an operator, the words are an operand
    if not head or head[-1] in "/^_=<>+-*,;:(" or not _fits(head, tokens[start - 1], tail):
        return text, ""
    unit = _unit(tail, trusted, known)
    return (text, "") if unit is None else (head, unit)


def words_of(text: str) -> frozenset[str]:
    """The words of a gold that do not change a number."""
    words = {word.casefold() for word in re.findall(r"(?<!\\)\b[A-Za-z]{2,}", text)}
    return frozenset(word for word in words if not changes(word))


def changes(word: str) -> bool:
    """Whether a word counts, calculates, denies or conditions."""
    return any(part in _CHANGES or _COUNTS.fullmatch(part) is not None for part in word.casefold().split("-"))


def same_unit(gold: str, answer: str) -> bool:
    """Whether two units agree: one is missing, or they are the same; for things counted, one may have more words."""
    if not gold or not answer or gold == answer:
        return True
    ours, theirs = (set(unit.split()) for unit in (gold, answer))
    return all(word in COUNTED | ADJECTIVES for word in ours | theirs) and (ours <= theirs or theirs <= ours)


def _start(tokens: list[str], trusted: bool, known: frozenset[str]) -> int | None:
    """Index of the first token that may be part of a unit at the end; it is a word. None without one."""
    first, place = None, len(tokens) - 1
    while place >= 0:
        token = tokens[place]
        if token[0] == "\x02" or token in _GREEK or token.startswith(r"^{\circ}"):
            first = place
        elif token[0].isalpha():
            if not (_allowed(token, trusted, known) or token in ("per", "a", "an")):
                break
            first = place
        elif not (token.isspace() or token in ("/", r"\cdot", "*", ".") or token[0] == "^"):
            break
        place -= 1
    # a unit at index 0 has no number in front
    return first if first else None


def _allowed(word: str, trusted: bool, known: frozenset[str]) -> bool:
    """Whether a plain word can be (part of) a unit."""
    lower = word.casefold()
    if lower in BEHIND or lower in ADJECTIVES or lower in _POWERS or named(word) is not None:
        return True
    return len(word) > 2 and (trusted or lower in known) and not changes(word)


def _fits(head: str, before: str, tail: list[str]) -> bool:
    r"""Whether the text before can have a unit: mathematics, and for plain words a constant."""
    if _WORD_INSIDE.search(head):
        return False
    word = tail[0]
    if word == "\x02K\x03" and not before.isspace():  # 5K is also short for 5000
        return False
    if word[0] == "\x02":
        return len(head) > 1 or head.isdigit() or len(word.strip("\x02\x03 .")) > 1
    if word.startswith(r"^{\circ}"):
        return True
    # the unit belongs to the last side of a chain
    head = re.split(r"=|\\approx", head)[-1].strip()
    if not _CONSTANT.fullmatch(head):
        return False
    number = _NUMBER.fullmatch(head) is not None
    if before.isspace():
        single = len(word) == 1
        return number and word in SINGLE if single else number or named(word) is not None or word in _GREEK
    plain = [token for token in tail if token[0].isalpha()]
    joined = word in _JOINED or (len(word) > 3 and named(word) is not None) or word in _GREEK
    return joined or (number and plain == ["m", "s"] and "/" in tail)


def _unit(tail: list[str], trusted: bool, known: frozenset[str]) -> str | None:
    """The unit in one spelling; None if the text is more than a unit."""
    upright = any(token[0] == "\x02" for token in tail)
    text = "".join(tail)
    # apart from powers, a digit among the words is a second number
    if upright and re.search(r"\d", re.sub(r"\^\s*\{?\s*-?\s*\d\s*\}?|[A-Za-z][23](?!\d)", "", text)):
        return None
    text = text.replace("\x02", " ").replace("\x03", " ").replace("light year", "light-year")
    if _CHOICE.search(text):  # 10 \text{ (C)}
        return None
    atoms = [atom for atom in _ATOM.findall(text) if atom not in (r"\cdot", "*", ".")]
    if len(atoms) > 4 * MAX_WORDS:
        return None
    powers: dict[str, int] = {}
    # sign: -1 behind a slash; square: power of the next unit; last: what an exponent applies to; micro: a prefix alone
    sign, square, last, micro = 1, 0, "", ""
    for place, atom in enumerate(atoms):
        lower = atom.casefold()
        if atom[0] == "^" and r"\circ" not in atom:
            if not last:
                return None
            # multiplied: the sign of a unit behind a slash is in its power already
            powers[last] *= int(re.sub(r"[^-\d]", "", atom))
        elif lower in ("/", "per") or (lower in ("a", "an") and place):
            sign = -1
        elif atom in "()" or (place and atoms[place - 1].casefold() == "of" and last and not changes(atom)):
            continue  # gallons of water
        elif atom in _PREFIX_OF_OHM and atoms[place + 1 : place + 2] == [r"\Omega"]:
            micro = _PREFIX_OF_OHM[atom]
        elif lower in ("square", "sq", "cubic", "cu") and place + 1 < len(atoms):
            square = 2 if lower[0] == "s" else 3
        elif lower in ("squared", "cubed"):
            if not last:
                return None
            powers[last] *= 2 if lower == "squared" else 3
        elif lower in BEHIND and (last or lower == "of"):
            continue
        elif atom == r"\mu":
            micro = "micro"
        else:
            # cm2 is cm^2
            exponent = int(atom[-1]) if atom[-1] in "23" else 1
            name = _name(atom.rstrip("23"), trusted, known)
            if name is None:
                return None
            if sign > 0 and _is_second_answer(micro + name, powers, atoms[place - 1] if place else ""):
                return None
            for part, power in _parts(micro + name):
                powers[part] = powers.get(part, 0) + sign * power * exponent * (square or 1)
                last = part
            # a slash applies to one unit
            sign, square, micro = 1, 0, ""
    if micro or (atoms and not powers):
        return None
    if powers.keys() & {"celsius", "fahrenheit"}:
        powers.pop("degree", None)
    return " ".join(f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items()) if power)


def _name(word: str, trusted: bool, known: frozenset[str]) -> str | None:
    if word in _GREEK:
        return _GREEK[word]
    if word.startswith(r"^{\circ}"):
        return "celsius" if word.rstrip().endswith("C") else "fahrenheit"
    if (found := named(word)) is not None:
        return found
    lower = word.casefold()
    harmless = len(word) > 1 and word[0].isalpha() and not changes(word)
    return lower if lower in ADJECTIVES or (harmless and (trusted or lower in known)) else None


def _is_second_answer(name: str, powers: dict[str, int], before: str) -> bool:
    """Whether a unit cannot be multiplied by those before it: `cm mm`, `am pm`, `cats dogs`."""
    kind = kind_of(name)
    if is_plural(before) and (name in COUNTED or kind is not None):
        return True
    others = [other for other, power in powers.items() if power > 0 and other not in COUNTED | ADJECTIVES]
    if name in COUNTED | ADJECTIVES or not others:
        return False
    if kind in UNMULTIPLIED or any(kind_of(other) in UNMULTIPLIED for other in others):
        return True
    return kind is not None and any(kind_of(other) == kind for other in others)


def _parts(name: str) -> list[tuple[str, int]]:
    """`km/h` as kilometer and hour^-1."""
    over, _, under = name.partition("/")
    parts = []
    for sign, part in ((1, over), (-1, under)):
        base, _, power = part.partition("^")
        if base:
            parts.append((UNITS.get(base, base), sign * int(power or 1)))
    return parts
