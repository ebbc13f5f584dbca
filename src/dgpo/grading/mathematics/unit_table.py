"""What may follow a number: units, currencies, times of day and things that are counted.

Sources: the SI brochure (BIPM, 9th edition, tables 2 to 8) for symbols and prefixes; NIST SP 811, appendix B.8, for
units outside the SI; ISO 4217 for codes of currencies; and the nouns that GSM8K and MATH count.

Excluded, because they change the number: number words and fractions (`million`, `dozen`, `pair`, `thirds`), `percent`,
ppm; `k`, `M` and `B`, which also abbreviate thousand, million and billion; letters that are usually variables.
"""

from __future__ import annotations

import re

_PREFIXES = {"G": "giga", "M": "mega", "k": "kilo", "h": "hecto", "d": "deci", "c": "centi", "m": "milli", "u": "micro",
             "n": "nano", "p": "pico", "T": "tera", "f": "femto"}  # fmt: skip
# symbol, name, prefixes that it is used with
_PREFIXED = (
    ("m", "meter", "kdcmunpf"), ("g", "gram", "kmun"), ("s", "second", "munpf"), ("A", "ampere", "kmun"),
    ("mol", "mole", "kmun"), ("Hz", "hertz", "TGMk"), ("N", "newton", "kMm"), ("Pa", "pascal", "GMkh"),
    ("J", "joule", "GMkmun"), ("W", "watt", "TGMkmu"), ("C", "coulomb", "mun"), ("V", "volt", "Mkmu"),
    ("F", "farad", "munp"), ("ohm", "ohm", "Mkm"), ("Wb", "weber", ""), ("T", "tesla", "mu"), ("H", "henry", "mu"),
    ("L", "liter", "hdcmu"), ("l", "liter", "hdcmu"), ("eV", "electronvolt", "TGMkm"), ("cal", "calorie", "k"),
    ("B", "byte", "TGMk"), ("bit", "bit", "GMk"), ("pc", "parsec", "GMk"), ("Bq", "becquerel", "GMk"),
    ("Gy", "gray", "m"), ("Sv", "sievert", "mu"), ("lm", "lumen", ""), ("lx", "lux", ""), ("cd", "candela", ""),
    ("K", "kelvin", "m"), ("bar", "bar", "km"), ("Wh", "watt-hour", "GMk"), ("kat", "katal", ""),
)  # fmt: skip

# our name of a unit, and its other names and symbols
_OTHERS = {
    "inch": "inches in", "foot": "feet ft", "yard": "yd yds", "mile": "mi", "furlong": "", "fathom": "",
    "micron": "", "angstrom": "AA", "pound": "lb lbs gbp GBP", "ounce": "oz", "ton": "tonne t", "stone": "",
    "carat": "", "slug": "", "dalton": "amu Da", "minute": "min mins", "hour": "h hr hrs", "day": "",
    "week": "wk wks", "fortnight": "", "month": "", "year": "yr yrs", "decade": "", "century": "centuries",
    "gallon": "gal", "quart": "qt", "pint": "pt", "cup": "", "tablespoon": "tbsp", "teaspoon": "tsp", "bushel": "",
    "barrel": "bbl", "acre": "", "hectare": "ha", "radian": "rad rads", "steradian": "sr", "degree": "deg",
    "arcminute": "arcmin", "arcsecond": "arcsec", "revolution": "rev revs", "celsius": "", "fahrenheit": "",
    "psi": "", "atmosphere": "atm", "torr": "", "mmhg": "mmHg", "dyne": "dyn", "erg": "", "gauss": "",
    "horsepower": "hp", "btu": "BTU", "decibel": "dB", "hertz": "", "siemens": "", "au": "AU",
    "light-year": "lightyear ly lyr", "knot": "kn", "unit": "", "molar": "", "am": "AM", "pm": "PM", "noon": "",
    "midnight": "", "o'clock": "oclock", "dollar": "usd USD buck", "cent": "", "euro": "eur EUR",
    "penny": "pence pennies", "yen": "jpy JPY", "yuan": "cny CNY rmb RMB", "rupee": "inr INR Rs", "won": "krw KRW",
    "ruble": "rub RUB rouble", "peso": "mxn MXN", "franc": "chf CHF", "krona": "sek SEK",
    "krone": "nok NOK dkk DKK", "real": "brl BRL", "canadian-dollar": "cad CAD", "australian-dollar": "aud AUD",
    "shilling": "", "dime": "", "nickel": "",
}  # fmt: skip
_SPELLINGS = {
    "metre": "meter", "litre": "liter", "gramme": "gram", "kilos": "kilogram", "kmph": "km/h", "kph": "km/h",
    "kmh": "km/h", "mph": "mile/h", "rpm": "rev/min", "bps": "bit/s", "kcals": "kcal", "sec": "s", "secs": "s",
    "mhz": "MHz", "khz": "kHz", "hz": "Hz", "kbps": "kbit/s", "mbps": "Mbit/s", "ml": "mL", "fps": "frame/s",
    "kms": "km", "cc": "cm^3", "sqft": "ft^2", "sqm": "m^2",
}  # fmt: skip

_COUNTED = (
    "acorn adult airplane album animal ant apartment apple apricot arrangement arrow atom attendee avocado baby "
    "bacterium bag bale ball balloon banana band bar basket basketball bat battery bead bear bed bedroom bee bell "
    "berry bicycle bike bill bird biscuit block blouse blueberry board boat bolt bone book bottle bouquet bowl box "
    "boy bracelet branch bread brick bridge brother brownie bucket bug bulb bun bundle burger bus bush butterfly "
    "button cake calf call camera can candle candy car card carnation carrot carton case cat cell chair channel "
    "chapter cherry chicken child chip chocolate choice circle class classmate classroom coconut code coffee coin "
    "color coloring colour colouring combination comic committee computer container cookie copy corner cost cow crab "
    "cracker crate crayon cube cucumber cupcake customer cycle daisy deer desk device diagonal digit dish divisor "
    "doctor dog doll donut door doughnut drawing dress drink driver drop duck duckling ear edge egg electron element "
    "elephant email employee engine envelope episode eraser event exam eye face factor family fan feather figure file "
    "finger fish flag flower flyer follower frame friend frog fruit function game gate gift girl glass glove goal "
    "goat goldfish goose grade grader grain grape graph group guest gun guppy hamburger hand handshake hat head "
    "helicopter hen hexagon hole home horse hotdog house insect integer intersection ion item jacket jar jellybean "
    "jewel journey kangaroo key kid kitten knife lamb lap laptop lawn leaf leg lemon lesson letter light line lion "
    "loaf lollipop machine magazine mango map marble mark marker mass match matrix meal meatball melon member message "
    "milkshake minnow mistake molecule mouse move movie muffin mug mushroom nail napkin necklace neighbor nest "
    "neutron newspaper night note notebook novel nucleus nut object olive onion option orange order ordering outcome "
    "outfit ox oyster pack package packet page painting pancake panel papaya paper parent part participant particle "
    "partition party passenger path patient peach peanut pear pebble pen pencil people pepper permutation person pet "
    "petal phone photo photograph photon pickle picture pie piece pig pill pin pineapple pizza place plane planet "
    "plant plate player plum point pole polygon pool possibility post potato present prime prize problem proton pupil "
    "puppy puzzle quail question rabbit racer raisin rat report response ribbon ring road robot rock roll room "
    "rooster root rope rose round route row ruler run runner sack salad salmon sandwich scarf school scoop screw "
    "season seat section seed segment sentence serving session set shark sheep sheet shelf shell ship shirt shoe shop "
    "shot sibling side sister situp skirt slice snack snail snake snowball sock soda soldier solution song space "
    "spider spoon spot square staff stair stamp star state statue step stick sticker stone store story strawberry "
    "stripe student subset sundae sweater swimmer symbol table tail tape task taxi teacher team teddy tent term test "
    "text texture ticket tie tile time tin tire token tomato tool toothpick topping touchdown towel town toy track "
    "tractor trail train trashcan tray tree triangle trip triplet trout truck tulip turkey turn turtle tv type "
    "uniform value vase vector vegetable vehicle vertex video village visit visitor vote wagon walk wall watermelon "
    "way wheel widget wife win window winner wolf woman word worker worm zebra"
)
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "leaves": "leaf", "loaves": "loaf", "knives": "knife", "shelves": "shelf", "scarves": "scarf", "wives": "wife",
    "wolves": "wolf", "calves": "calf", "vertices": "vertex", "matrices": "matrix", "oxen": "ox", "teeth": "tooth",
    "buses": "bus", "bacteria": "bacterium", "nuclei": "nucleus", "inches": "inch", "feet": "foot", "henries": "henry",
    "tomatoes": "tomato", "potatoes": "potato", "mangoes": "mango", "hertz": "hertz", "series": "series",
}  # fmt: skip
_COUNTED_TOO = ("number", "dot", "man", "tooth", "slug")

# before or after what is counted
_ADJECTIVES = (
    "metric stuffed different distinct possible total unique whole such real red blue green yellow orange purple pink "
    "white black brown big small large little long short new old full complete ordered unordered regular fluid "
    "nautical solar us school chocolate "
)
ADJECTIVES = frozenset(_ADJECTIVES.split())
_BEHIND = "old long tall wide high deep away total altogether each left remaining ago later apart of in all"
BEHIND = frozenset(_BEHIND.split())


def _names() -> dict[str, str]:
    found: dict[str, str] = {}
    for symbol, name, prefixes in _PREFIXED:
        found[name] = found.setdefault(symbol, name)
        for prefix in prefixes:
            found[prefix + symbol] = found[_PREFIXES[prefix] + name] = _PREFIXES[prefix] + name
    for name, others in _OTHERS.items():
        found |= dict.fromkeys((name, *others.split()), name)
    found |= {spelling: found.get(name, name) for spelling, name in _SPELLINGS.items()}
    for prefix in ("kilo", "centi", "milli", "micro", "nano"):
        found[f"{prefix}metre"] = f"{prefix}meter"
    for prefix in ("milli", "centi", "deci"):
        found[f"{prefix}litre"] = f"{prefix}liter"
    return found


UNITS = _names()
"""Names and symbols as written -> our name; values with `/` or `^` combine several units."""

COUNTED = frozenset((*_COUNTED.split(), *_COUNTED_TOO))

SINGLE = frozenset(["m", "g", "s", "h", "L", "N", "J", "W", "V", "K"])
"""One-letter symbols that are units without upright type, and then only after `10 `."""


# two different units of one kind are never multiplied: 5 cm mm, 5 am pm and 5 dollars euros are two answers
_ALTERNATIVES = (
    "meter inch foot yard mile furlong fathom micron angstrom light-year parsec au",
    "gram pound ounce ton stone carat slug",
    "second minute hour day week month year decade century fortnight",
    "liter gallon quart pint cup tablespoon teaspoon bushel barrel",
    "celsius fahrenheit kelvin coulomb farad",
    "degree radian arcminute arcsecond revolution",
    "am pm noon midnight o'clock",
    "dollar cent euro penny yen yuan rupee won ruble peso franc krona krone real canadian-dollar australian-dollar "
    "shilling dime nickel GBP",
)
# places in `_ALTERNATIVES`
UNMULTIPLIED = frozenset((6, 7))
"""Kinds that are not multiplied with any other: times of day and money."""
_LONGEST_PREFIX = re.compile(f"(?:{'|'.join(_PREFIXES.values())})(?=.)")
_KINDS = {name: kind for kind, names in enumerate(_ALTERNATIVES) for name in names.split()}


def kind_of(name: str) -> int | None:
    """The kind of quantity that a unit measures, for kinds of which two units are never multiplied; None for others."""
    return _KINDS.get(name, _KINDS.get(_LONGEST_PREFIX.sub("", name, count=1)))


def is_plural(word: str) -> bool:
    """Whether a word counts several of something, such as `cats` and `women`."""
    lower = word.casefold()
    return lower not in COUNTED and any(form in COUNTED for form in _singulars(lower))


# 5 squares, but "5 square" is 25
_PLURAL_ONLY = frozenset(("square", "cube", "prime", "time", "root", "number", "dot"))


def named(word: str) -> str | None:
    """Our name of a unit or of something counted, in the singular; None for any other word."""
    if word in UNITS:
        return UNITS[word]
    lower = word.casefold()
    for form in (lower, *_singulars(lower)):
        if len(form) > 2 and (form in UNITS or (form in COUNTED and not (form == lower and form in _PLURAL_ONLY))):
            return UNITS.get(form, form)
    return None


def _singulars(word: str) -> list[str]:
    if word in _IRREGULAR:
        return [_IRREGULAR[word]]
    forms = []
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    return forms
