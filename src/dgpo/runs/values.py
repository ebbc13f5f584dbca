"""Values of a log: numbers in every spelling that frameworks and loggers use."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo.files import printable

Line = dict[str, Any]
"""One line of a log: name -> value."""

_WORDS = {
    "nan": math.nan,
    "inf": math.inf,
    "infinity": math.inf,
    "true": True,
    "false": False,
    "none": None,
    "null": None,
}
_SIGNED = re.compile(r"([+-]?)([a-z]+)")
_WRAPPED = re.compile(
    r"\b(?:(?:np|numpy|torch)\.\w+|tensor|array|Array|(?:float|int|bfloat)\d+)\(\s*([^(),]+?)\s*(?:,[^()]*)?\)"
)
"""`np.float64(0.5)`, `tensor(0.5, device='cuda:0')`: the first argument."""

_BARE = re.compile(r"([:\[,]\s*)([+-]?)(nan|inf|None|True|False)\b")
_JSON_WORDS = {"nan": "NaN", "inf": "Infinity", "None": "null", "True": "true", "False": "false"}


def value(found: Any) -> Any:
    """A value as a number where it is one in any spelling; everything else as it is.

    Strings ("0.2", "1e-05", "NaN", "-inf", "np.float64(0.5)", "tensor(0.5)"), lists of one element, and integers beyond
    the range of a float become numbers.
    """
    if isinstance(found, float) or found is None or isinstance(found, bool):
        return found
    if isinstance(found, int):
        return found if abs(found) < 1 << 1023 else math.copysign(math.inf, found)
    if isinstance(found, str):
        return _number(found)
    if isinstance(found, list | tuple) and len(found) == 1:
        return value(found[0])
    return found


def _number(text: str) -> Any:
    stripped = text.strip()
    if len(stripped) > 100:
        return printable(text)
    if stripped.isdecimal() and len(stripped) < 16:
        return int(stripped)
    try:
        return float(stripped) if "_" not in stripped else text
    except ValueError:
        pass
    word = _SIGNED.fullmatch(stripped.lower())
    if word and word[2] in _WORDS:
        known = _WORDS[word[2]]
        return -known if word[1] == "-" and isinstance(known, float) else known
    wrapped = _WRAPPED.fullmatch(stripped)
    if wrapped:
        inner = _number(wrapped[1].strip("[] "))
        return inner if not isinstance(inner, str) else printable(text)
    return printable(text)


def flat(line: Mapping[str, Any], keep: frozenset[str] = frozenset({"data"})) -> Line:
    """A line with its values as numbers, and nested objects as `outer/inner`; names in `keep` stay nested."""
    found: Line = {}
    for name, inner in line.items():
        key = name if name.isprintable() else printable(name)
        if isinstance(inner, float):  # most of a log
            found[key] = inner
        elif isinstance(inner, Mapping):
            nested = flat(inner)
            if key in keep:
                found[key] = nested
            elif key in _WRAPPERS:
                found.update(nested)
            else:
                found.update({f"{key}/{name}": inner for name, inner in nested.items()})
        else:
            found[key] = value(inner)
    return found


_WRAPPERS = frozenset({"metrics", "scalars", "logs", "log", "stats"})
"""Objects that hold the metrics of a line, and are no part of their names."""


def unwrapped(text: str) -> str:
    """The text with `np.float64(0.5)`, `tensor(0.5, device='cuda:0')` and the like as `0.5`."""
    return _WRAPPED.sub(r"\1", text) if "(" in text else text


def python_dict(text: str) -> dict[str, Any] | None:
    """The dict that `text` begins with, as Python or JSON prints it; None if it is none, or not complete."""
    if text.startswith('{"'):
        try:
            found, _ = json.JSONDecoder().raw_decode(text)
            return found if isinstance(found, dict) else None
        except (ValueError, RecursionError):
            pass
    if '"' not in text and "\\" not in text:
        # the usual case: names in single quotes, numbers; JSON's parser is many times faster than Python's
        plain = _BARE.sub(lambda word: word[1] + word[2] + _JSON_WORDS[word[3]], unwrapped(text)).replace("'", '"')
        try:
            found, _ = json.JSONDecoder().raw_decode(plain)
            return found if isinstance(found, dict) else None
        except (ValueError, RecursionError):
            pass
    end = text.rfind("}") + 1
    if not end:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # escapes in the texts of others
            tree = ast.parse(text[:end], mode="eval")
        found = _literal(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, dict) else None


def _literal(node: ast.expr) -> Any:
    """The value of a printed expression; text for everything but numbers, strings and containers of them."""
    match node:
        case ast.Constant():
            return node.value if isinstance(node.value, int | float | str | None) else str(node.value)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {str(_literal(key)): _literal(inner) for key, inner in pairs if key is not None}
        case ast.List() | ast.Tuple() | ast.Set():
            return [_literal(inner) for inner in node.elts]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _literal(operand)
            return -inner if isinstance(inner, int | float) else inner
        case ast.Call(args=[first, *_]):
            return _literal(first)
        case ast.Name(id=name):
            return _WORDS.get(name.lower(), name)
    return ast.unparse(node)


def json_values(text: str, start: int = 0) -> Iterator[tuple[Any, int]]:
    """(value, where it ends) of JSON values that stand one after another, with or without commas and a bracket around.

    Raises:
        ValueError: what follows is no JSON; its `args` are the position and what is wrong.
    """
    decoder = json.JSONDecoder()
    at = start
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == ","):
            at += 1
        if at >= len(text) or text[at] == "]":
            return
        try:
            found, at = decoder.raw_decode(text, at)
        except ValueError as error:
            raise ValueError(at, str(error)) from error
        except RecursionError:
            raise ValueError(at, "it is nested too deeply") from None
        yield found, at
