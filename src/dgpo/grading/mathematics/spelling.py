r"""One spelling for mathematics in LaTeX, Unicode, HTML and Python. Text in, text out."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from .numbers import MAX_CHARACTERS, number, squeeze
from .plain import FUNCTIONS, latex_of
from .rewriting import Rule, rewrite

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ",
    "·": r"\cdot ", "⋅": r"\cdot ", "•": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": r"\div ", "⁄": "/", "∕": "/",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ",
    "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ",
    "˚": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "∅": r"\emptyset ", "∀": r"\forall ", "∖": r"\setminus ",
    "√": " sqrt ", "∛": " cbrt ", "∜": " qdrt ", "ℯ": "e", "ⅇ": "e", "ⅈ": "i", "ℓ": r"\ell ", "ℏ": r"\hbar ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "│": "|", "∠": r"\angle ",
    "，": ",", "、": ",", "。": ".", "…": r"\ldots ", "⋯": r"\ldots ",
    "’": "'", "′": "'", "″": "''", "”": '"', "“": '"',
    "\u212b": r"\AA ", "\u00c5": r"\AA ", "→": r"\to ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "\u00a0": " ", "\u2002": " ", "\u2003": " ", "\u2004": " ", "\u2005": " ", "\u2006": " ", "\u2007": " ",
    "\u2008": " ", "\u2009": " ", "\u200a": " ", "\u202f": " ", "\u205f": " ", "\u3000": " ",
    "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ε": r"\varepsilon ", "ϑ": r"\vartheta ", "ϱ": r"\rho ", "µ": r"\mu ",
    "φ": r"\phi ", "Ω": r"\Omega ",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "υ": "upsilon", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "∆": "Delta", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_UNICODE |= {letter: rf"\{name} " for letter, name in _GREEK.items()}
_UNICODE |= {chr(0x2460 + n): f"{n + 1}," for n in range(20)}  # ①② is the list 1, 2
for _character in map(chr, (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800))):  # full-width; 𝑥, 𝐱, 𝟏, 𝜋
    _plain = unicodedata.normalize("NFKC", _character)
    # through the entries above: 𝜋 becomes π and then \pi
    _UNICODE.setdefault(_character, _UNICODE.get(_plain, _plain))
for _character in map(chr, (*range(0xBC, 0xBF), *range(0x2150, 0x215F))):  # ½, ⅓
    # NFKC writes ½ as 1⁄2, with U+2044
    _over, _under = unicodedata.normalize("NFKC", _character).split("⁄")
    _UNICODE[_character] = rf"\frac{{{_over}}}{{{_under}}}"
_UNICODE["％"] = r"\%"
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0e\ufe0f"
_TABLE = str.maketrans(_UNICODE | dict.fromkeys(_INVISIBLE, ""))
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₖⱼₘₐₑₓ", "0123456789+-=()nikjmaex")
_SMALL_FRACTION = re.compile("([⁰¹²³⁴-⁹]+)[⁄∕/]([₀-₉]+)")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻⁼⁽⁾ⁿⁱˣ]+")
_SUBSCRIPT = re.compile("[₀-₉₊₋₌₍₎ₙᵢₖⱼₘₐₑₓ]+")

# a backslash that a JSON or Python string read as an escape
_DAMAGED = {"\x0crac": r"\frac", "\text": r"\text", "\times": r"\times", "\theta": r"\theta", "\tan": r"\tan",
            "\x08oxed": r"\boxed", "\x08inom": r"\binom", "\x07lpha": r"\alpha", "\rho": r"\rho"}  # fmt: skip

_IN_MATRICES: list[Rule] = [
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|strut|mathstrut)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:c|h|l|)dots[cbmio]?(?![A-Za-z])|\.{2,}"), r"\\ldots "),
    (re.compile(r"\$|(?<=\})\s*\.\s*$"), ""),
]
_DEGREES_OF, _END_OF_WORDS = (
    r"\s*(?:\\text\s*\{\s*)?(?<![A-Za-z])(?:degrees?|deg\.?)\s+",
    r"(?![A-Za-z])(?:\s*\})?",
)
_REWRITES: list[Rule] = _IN_MATRICES[:4] + [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[A-Za-z])", r"\\"),  # commands with their backslash doubled; rows are handled before
        (r"<sup>([^<]*)</sup>", r"^{\1}"),
        (r"<sub>([^<]*)</sub>", r"_{\1}"),
        (r"\\(?:leqslant|le|lte)(?![A-Za-z])", r"\\leq "),
        (r"\\(?:geqslant|ge|gte)(?![A-Za-z])", r"\\geq "),
        (r"\\lt(?![A-Za-z])|&lt;", "<"),
        (r"\\gt(?![A-Za-z])|&gt;", ">"),
        (r"<=", r"\\leq "),
        (r">=", r"\\geq "),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:vert|mid|lvert|rvert)(?![A-Za-z])", "|"),
        (r"\\(?:colon)(?![A-Za-z])", ":"),
        (r"\\(?:degree|textdegree)(?![A-Za-z])", r"^{\\circ}"),
        (r"\^\s*\{?\s*\\circ\s*\}?", r"^{\\circ}"),
        (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset"),
        (
            r"\\(?:Bbb|mathbf)\s*\{\s*([RZNQC])\s*\}|\\(?:mathbb|Bbb)\s*([RZNQC])(?![A-Za-z])|\\([RZNQC])(?![A-Za-z])",
            r"\\mathbb{\1\2\3}",
        ),
        (r"\\backslash(?![A-Za-z])|(?<=\\mathbb\{R\})\s*-(?=\s*\\?\{)", r"\\setminus "),
        # behind a number it may be a unit: 10\,\mathrm{m}, \frac{\mathrm{m}}{\mathrm{s}}
        (r"(?<=[\d}{)\x03/,;~ ])\s*\\mathrm\s*\{\s*([mgshLlNJWVAKCFTH])\s*\}", r"\\text{\1}"),
        (r"\\mathrm\s*\{\s*([a-zA-Z])\s*\}|\\mathrm\s+([a-zA-Z])(?![a-zA-Z])", r" \1\2 "),
        (r"\\arc\s+", r"\\arc"),
        (r"(?<![a-z])(sin|cos|tan|cot)\s*\^\s*(?:\{\s*-\s*1\s*\}|\(\s*-\s*1\s*\)|-\s*1(?!\d))", r"arc\1 "),
        (r"(?<![a-zA-Z\\])(?:np|numpy|math|sympy)\.(?=[a-z])", ""),
        (r"(?<=\d)\s*[eE]\s*([+-]?\d{1,3})(?!\d|\.\d)", r" \\times 10^{\1}"),
        (r"\*\*\s*\(([^()]*)\)", r"^{\1}"),
        (r"\*\*\s*(-?\d+(?:\.\d+)?|[a-z])", r"^{\1}"),
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w(\\-])", "^"),
        (r"(?<=\d)\.(?=\s*[/*+)-])", ""),  # Python's 1./3
        (r"\.\s*(?=[\])}]$)", ""),
        (
            r"(?<=[\d}])\s*\\q?quad\s*(?=\\(?:text|mathrm|mbox|textrm)\s*\{[\s~]*"
            r"(?!(?:and|or|but|if|when|for|not|where|with)\b)[A-Za-z])",
            " ",
        ),
        (r"\\(?:quad|qquad)(?![A-Za-z])", " ; "),
        (r"(?<=[)\]}])\s*U\s*(?=[(\[{\\])", r"\\cup "),
        (r"\\[,;:!> ]|~|\\(?:thinspace|medspace|enspace)(?![A-Za-z])", " "),
        (_DEGREES_OF + r"(?:C|[Cc]elsius)" + _END_OF_WORDS, r"^{\\circ}C"),
        (_DEGREES_OF + r"(?:F|[Ff]ahrenheit)" + _END_OF_WORDS, r"^{\\circ}F"),
        (r"\\text\s*\{\s*(?:degrees?|deg\.?)\s*\}|(?<=\d)\s*degrees?(?![A-Za-z])", r"^{\\circ}"),
        (r"(?<=[\d})])\s*(?:\\text\s*\{\s*(?:per ?cent|pct)\.?\s*\}|(?:per ?cent|pct)(?![A-Za-z]))", r"\\%"),
        (r"\{\s*\\(?:bf|rm|it|sf|tt)\s([^{}]*)\}", r"{\1}"),
        (r"\\(?:bf|rm|it|sf|large|Large|LARGE|huge|Huge|normalsize)(?![A-Za-z])", ""),
        (r"\$", " "),
        (r"\\\[|\\\]|\\\(|\\\)", " "),
        (r"\\(?:textbf|mathbf|boldsymbol|mathit|textit|bm|ensuremath|underline|mathsf|emph|mathcal)\s*(?=\{)", ""),
        (r"\\(?:boxed|fbox)\s*(?=\{)", ""),
        (r"(?<=\d)\s*(?:\\text\s*\{\s*)?\b([ap])\.\s?m\.?(?:\s*\})?(?![A-Za-z])", r" \1m"),
        (r"\*\*|__", ""),  # Markdown
        (r"\+\s*\\infty", r"\\infty"),
        (r"\+\s*/\s*-", r"\\pm "),
    )
]
_WORDS = re.compile(
    r"\\(text|mbox|textrm|mathrm|hbox|textnormal|operatorname)\s*\{((?:[^{}]|\^\s*\{\s*(?:-?\d|\\circ)\s*\})*)\}"
)
_SPACES = re.compile(r"\s+")
_ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:\x02\s*(?:st|nd|rd|th)\s*\x03|(?:st|nd|rd|th)(?![A-Za-z]))\s*\}?")
_LEADING_EQUALS = re.compile(r"^\s*=(?!=)|\\\s*$")
_BOLD_NUMBER = re.compile(r"^\s*\*\*\s*([^*\s]+)\s*\*\*(?!\*)")
_WORDED_LIST = re.compile(r"\x02\s*([A-Z](?:(?:\s*,\s*|\s*,?\s+and\s+)[A-Z])+)\s*\x03")
_WORDED_NUMBER = re.compile(r"^\s*\x02\s*([-+]?\d[\d.,]*)\s*\x03")
_WORDED_COMMA = re.compile(r"\x02\s*([,;])\s*\x03")
_TIGHT_COMMA = re.compile(r"(?<=\d)(?:\{,\}|,\\!\s*)(?=\d)")
# 10\,000 and 10 000, but not the mixed number 2 100/300 or the product 2^6 343
_GROUPED = re.compile(r"(?<![\d.,^_])(\d{1,3})((?:(?:\\[,;:! ]|\s|~)\d{3})+)(?!\d|\s*/\s*\d{3})")
_HALF_BRACKET = re.compile(r"^\s*\x02?\s*([A-Z])\s*\)\s*\x03?\s*$")  # C)
_ONLY_WORDS = re.compile(r"\x02\s*([-+]?\d[\d.,/]*)(?:\s+([A-Za-z][^\x03]*))?\x03")

_CURRENCIES = {
    r"\$": "dollars", r"\textdollar": "dollars", "€": "euros", r"\euro": "euros", r"\texteuro": "euros",
    "£": "GBP", r"\pounds": "GBP", r"\textsterling": "GBP", "¥": "yen",
    "₹": "rupees", "₩": "won", "₽": "rubles", "¢": "cents", r"\textcent": "cents",
}  # fmt: skip
_SIGN = r"(?P<sign>\\\$|[€£¥₹₩₽¢]|\\(?:textdollar|euro|texteuro|pounds|textsterling|textcent)(?![A-Za-z]))"
# before a fraction or a number word, the unit would come after that, so the sign is dropped
_AMOUNT = (
    r"(?P<amount>[-+]?\d[\d.,]*(?<![.,])|[-+]?\.\d+)"
    r"(?![\d.,]*\d|\s*(?:\\[dtc]?frac|/(?!\s*(?:\\text|\\mathrm|[A-Za-z]{2}))|(?:\\text\s*\{\s*)?(?:hundred|thousand|million|billion|trillion)))"
)
_MONEY_FIRST = re.compile(rf"(?<![A-Za-z\\\d])(?:US|AU|CA|NZ|HK|A|C)?{_SIGN}\s*{_AMOUNT}")
_WORDED_MONEY = re.compile(r"\\text\s*\{\s*(\\\$\s*[\d.,]+)\s*\}")
_CODE_FIRST = re.compile(
    rf"^\s*(?P<code>USD|EUR|GBP|JPY|INR|CNY|AUD|CAD|CHF|KRW|RUB|MXN|BRL|SEK|NOK|DKK|Rs\.?)\s*{_AMOUNT}(?!\w)"
)
_MONEY_LAST = re.compile(rf"(?<=[\d}})])\s*(?:\\text\s*\{{\s*)?{_SIGN}(?:\s*\}})?")
_MONEY_ALONE = re.compile(rf"(?<![\d}}%])(?:\\text\s*\{{\s*)?{_SIGN}(?:\s*\}})?")

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "quadrillion": 15}
_SCALED = re.compile(
    r"(?<![\w.,/^_{])(?P<amount>\d{1,3}(?:,\d{3})+|\d{1,9}(?:\.\d{1,9})?)\s*"
    rf"(?:\x02\s*(?P<worded>{'|'.join(_SCALES)})\b\s*(?P<rest>[^\x03]*)\x03|(?P<scale>{'|'.join(_SCALES)})(?![A-Za-z]))"
)
_REPEATING = re.compile(
    r"(?<![\d.^_])(?<!\d,(?=\d{3}\.))(?P<whole>\d{0,20})\.(?P<lead>\d{0,20})(?:\((?P<bracketed>\d{1,20})\)|"
    r"\\(?:overline|bar|dot|overset\{\\cdot\})\s*(?:\{\s*(?P<over>\d{1,20})\s*\}|(?P<digit>\d)))"
    r"(?:(?P<middle>\d{0,20})\\dot\s*\{?(?P<last>\d)\}?)?(?!\d|\.\d|\()"
)
_AND_SO_ON = re.compile(r"(?<![\d.,^_])(?P<whole>\d{1,20})\.(?P<digits>\d{3,40})\s*\\ldots(?![A-Za-z]|\s*\d)")


def clean(text: str) -> str:
    """The text in one spelling. Words are between \\x02 and \\x03 afterwards."""
    # a text must not bring marks of its own
    text = text.replace("\x02", "").replace("\x03", "")
    for damaged, meant in _DAMAGED.items():
        text = text.replace(damaged, meant)
    text = _unwrapped(_LEADING_EQUALS.sub("", text))
    # before the powers: the digits of ²⁄₃ are neither exponent nor index
    text = _SMALL_FRACTION.sub(
        lambda match: rf"\frac{{{match[1].translate(_SUPERSCRIPTS)}}}{{{match[2].translate(_SUBSCRIPTS)}}}", text
    )
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match.group().translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match.group().translate(_SUBSCRIPTS)}}}", text)
    text = text.translate(_TABLE)
    if r"\begin" in text:  # rows and columns keep their meaning inside
        return _SPACES.sub(" ", latex_of(rewrite(text, _IN_MATRICES))).strip()
    text = _TIGHT_COMMA.sub(",", text)
    # before the rewrites, which drop every dollar sign
    text = _WORDED_MONEY.sub(r"\1", text)
    text = _MONEY_FIRST.sub(lambda match: rf"{match['amount']} \text{{{_CURRENCIES[match['sign']]}}}", text)
    text = _CODE_FIRST.sub(lambda match: rf"{match['amount']} \text{{{match['code'].rstrip('.')}}}", text)
    text = _MONEY_LAST.sub(lambda match: rf" \text{{{_CURRENCIES[match['sign']]}}}", text)
    text = _MONEY_ALONE.sub("", text)
    text = _GROUPED.sub(_digits, rewrite(text, _REWRITES))
    text = _WORDS.sub(_words, text)
    for pattern in (_WORDED_LIST, _WORDED_COMMA, _WORDED_NUMBER):
        text = pattern.sub(r" \1 ", text)
    text = _ORDINAL.sub(" ", text)
    whole = _ONLY_WORDS.fullmatch(text.strip())
    if whole is not None:  # \text{73 cm}
        text = whole[1] + (f" \x02{whole[2]}\x03" if whole[2] else "")
    text = _HALF_BRACKET.sub(r"\1", text)
    # dots are \ldots by now, and a bar or brackets say more than dots
    text = _AND_SO_ON.sub(_repeated, _REPEATING.sub(_fraction, text))
    text = _SCALED.sub(_scaled, text)
    # names last: words are marked, and no longer taken for functions or letters
    return _SPACES.sub(" ", latex_of(text)).strip().rstrip(".;, ").lstrip(";, ")


def normal_form(text: str) -> Fraction | str:
    """What answers with the same text share: their exact number, or else their text in one spelling, without spaces."""
    if len(text) > MAX_CHARACTERS:
        return text
    spelled = clean(text)
    value = number(spelled)
    return squeeze(spelled) if value is None else value


def _unwrapped(text: str) -> str:
    """Without the Markdown or the dollars around all of it: `**73**`, `$**73**$`, a code span."""
    for _ in range(4):
        text = text.strip()
        for mark in ("***", "**", "*", "__", "_", "```", "`", "$$", "$"):
            inside = text[len(mark) : -len(mark)]
            if inside and text == mark + inside + mark and mark not in inside:
                text = inside
                break
        else:
            break
    return _BOLD_NUMBER.sub(r"\1 ", text)


def _words(match: re.Match[str]) -> str:
    """Words between their marks; the name of a function in \\text is that function."""
    words = re.sub(r"\^\s*\{\s*(-?\d)\s*\}", r"^\1", match[2])
    return f" {words} " if words.strip() in FUNCTIONS else f"\x02{words}\x03"


def _digits(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"\D", "", match[2])


def _scaled(match: re.Match[str]) -> str:
    r"""`2.5 million` as 2500000, followed by the remaining words."""
    value = Fraction(match["amount"].replace(",", "")) * 10 ** _SCALES[match["worded"] or match["scale"]]
    return str(value) + (f" \x02{match['rest']}\x03" if match["rest"] else "")


def _fraction(match: re.Match[str]) -> str:
    r"""`0.1(6)`, `0.1\overline{6}` and `0.1\dot{6}` as 1/6."""
    period = match["bracketed"] or match["over"] or match["digit"]
    if match["last"]:
        period += match["middle"] + match["last"]
    return _periodic(match["whole"], match["lead"], period)


def _repeated(match: re.Match[str]) -> str:
    r"""`0.1666\ldots` as 1/6: a digit at least three times, or a group at least twice. Others stay as they are."""
    digits = match["digits"]
    for length in range(1, len(digits) // 2 + 1):
        period, times = digits[-length:], 3 if length == 1 else 2
        if digits.endswith(period * times):
            return _periodic(match["whole"], digits.removesuffix(period * times), period)
    return match.group()


def _periodic(whole: str, lead: str, period: str) -> str:
    # 0.1(6) = (16 - 1) / (10 · 9): the digits up to the end of one period, less those before it
    value = Fraction(
        int((whole + lead or "0") + period) - int(whole + lead or "0"), 10 ** len(lead) * (10 ** len(period) - 1)
    )
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
