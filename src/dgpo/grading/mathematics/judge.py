"""Whether an answer is the gold: both are read, then compared by structure and, where that agrees, by mathematics.

Runs in a worker process. It is never called on model text in the training process, where nothing would stop it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import pairwise

# relative: a worker loads this folder without the package around it, which would import torch
from .expressions import equal_latex, is_readable, name_of, same_expressions
from .formulas import Unreadable, value_of
from .labels import in_order_of_names
from .reading import read
from .structure import LINE, Collection, Expression, Ordered, Reading
from .units import words_of

_DOTS = "\\ldots"


def warm_up() -> None:
    """Import the parser and build its tables, so that the first answer is not delayed."""
    # math-verify warns that its timeouts are off; the deadline of the pool replaces them
    logging.disable(logging.CRITICAL)
    equal_latex(r"x+\frac{1}{2}", r"\frac{1}{2}+x")


def judge(gold: str, answer: str | None = None) -> str:
    """`match`, `mismatch`, `unparsed` (the answer) or `bad_gold` for two LaTeX texts.

    A gold alone is `readable` or `bad_gold`. Every part of it counts, so that the order of comparison plays no role.
    """
    expected = read(gold, trusted=True)
    if answer is None:
        return "readable" if _readable(expected) else "bad_gold"
    try:
        verdict = "match" if _same(expected, read(answer, known=words_of(gold))) else "mismatch"
    except Unreadable as unreadable:
        verdict = "bad_gold" if unreadable.gold else "unparsed"
    # a mismatch with a gold of which a part cannot be read says nothing
    return verdict if verdict == "match" or _readable(expected) else "bad_gold"


def _readable(reading: Reading) -> bool:
    return is_readable(reading.latex) if isinstance(reading, Expression) else all(map(_readable, reading.items))


def _same(gold: Reading, answer: Reading) -> bool:
    match gold, answer:
        case Expression(), Expression():
            return same_expressions(gold, answer)
        case Ordered(), Ordered():
            return _same_tuples(gold, answer)
        case Collection(), Collection():
            return _same_collections(gold, answer)
        case Ordered(), Collection(kind="list"):
            return not answer.alternatives and _listed(gold, answer, flip=False)
        case Collection(kind="list"), Ordered():
            return _listed(answer, gold, flip=True)
        case Collection(kind="set", items=(only,)), Expression():  # {5} and 5
            return _same(only, answer)
        case Expression(), Collection(kind="set", items=(only,)):
            return _same(gold, only)
        case Ordered(), Expression():
            column = _column(answer.latex)
            return column is not None and _in_order(gold.items, column)
        case Expression(), Ordered():
            column = _column(gold.latex)
            return column is not None and _in_order(column, answer.items)
    return False


def _same_tuples(gold: Ordered, answer: Ordered) -> bool:
    (gold_names, golds), (answer_names, answers) = _by_name(gold), _by_name(answer)
    if gold_names and answer_names and gold_names != answer_names:
        return False
    squares = [(one.opening == "[", one.closing == "]") for one in (gold, answer)]
    return squares[0] == squares[1] and _in_order(golds, answers)


def _same_collections(gold: Collection, answer: Collection) -> bool:
    kinds = {gold.kind, answer.kind}
    if "without" in kinds and len(kinds) == 2:
        gold, answer = _intervals(gold), _intervals(answer)
        return gold.kind == answer.kind == "union" and _in_any_order(gold.items, answer.items)
    items = (*gold.items, *answer.items)
    if any(isinstance(item, Expression) and _DOTS in item.latex for item in items):  # 1, 2, 3, ...
        return _in_order(gold.items, answer.items)
    if "set" in kinds and any(map(_several_variables, (gold, answer))):  # {1, 2} is not x = 1, y = 2
        return False
    if _distinct_labels(gold) != _distinct_labels(answer):  # x = 1, y = 2 is not 2, 1
        return _in_order(gold.items, answer.items)
    return _in_any_order(gold.items, answer.items)


def _listed(pair: Ordered, listed: Collection, *, flip: bool) -> bool:
    """1, 2, 3 and (x, y, z) = (1, 2, 3); x = 5, y = 6 and (5, 6), in the order of the names; x = 5 or y = 6 is not.

    Args:
        pair: the tuple.
        listed: the list.
        flip: whether the list is the gold.
    """
    if pair.opening + pair.closing != "()":
        return False
    parts: Sequence[Reading] = pair.items
    items: Sequence[Reading] = listed.items
    names = [_name(item) for item in items]
    if _distinct_labels(listed):
        if listed.alternatives:
            return False
        places = in_order_of_names(names)
        items = [items[place] for place in places]
        if pair.names:
            if sorted(pair.names) != sorted(names):
                return False
            parts = [parts[pair.names.index(names[place])] for place in places]
    elif not flip or any(names):
        return False
    else:
        parts = _by_name(pair)[1]
    return _in_order(items, parts) if flip else _in_order(parts, items)


def _name(item: Reading) -> str:
    return name_of(item.latex) if isinstance(item, Expression) else ""


def _intervals(reading: Collection) -> Collection:
    """The real line without some points, as the intervals between them; unchanged if a point has no value."""
    if reading.kind != "without":
        return reading
    found = [(value_of(item.latex), item) for item in reading.items if isinstance(item, Expression)]
    valued = [(value, item) for value, item in found if value is not None]
    if len(valued) < len(reading.items):
        return reading
    points = [item for _, item in sorted(valued, key=lambda pair: pair[0])]
    low, high = LINE.items
    return Collection("union", tuple(Ordered("(", ")", ends) for ends in pairwise((low, *points, high))))


def _by_name(reading: Ordered) -> tuple[Sequence[str], Sequence[Reading]]:
    """The names of a tuple and its items, both in the order of the names: (y, x) = (1, 2) is (2, 1)."""
    names, items = reading.names, reading.items
    if len(names) != len(items):
        return names, items
    places = in_order_of_names(names)
    return [names[place] for place in places], [items[place] for place in places]


def _distinct_labels(reading: Collection) -> bool:
    """Whether every item has a name of its own, as in x = 1, y = 2."""
    names = [name for item in reading.items if (name := _name(item))]
    return len(names) == len(reading.items) > 1 and len(set(names)) == len(names)


def _several_variables(reading: Collection) -> bool:
    """Whether names differ in more than their subscripts: x_1 = 1, x_2 = 2 are two solutions for one x."""
    return _distinct_labels(reading) and len({_name(item).partition("_")[0] for item in reading.items}) > 1


def _in_order(golds: Sequence[Reading], answers: Sequence[Reading]) -> bool:
    return len(golds) == len(answers) and all(_same(g, a) for g, a in zip(golds, answers, strict=True))


def _in_any_order(golds: Sequence[Reading], answers: Sequence[Reading]) -> bool:
    if len(golds) != len(answers):
        return False
    # greedy matching suffices because equality is transitive, up to tolerances
    left = list(answers)
    for gold in golds:
        place = next((i for i, answer in enumerate(left) if _same(gold, answer)), None)
        if place is None:
            return False
        del left[place]
    return True


def _column(latex: str) -> list[Expression] | None:
    """The entries of a matrix of one column or one row."""
    match = re.fullmatch(r"\s*\\begin\{([pbvBV]?matrix)\}(.*)\\end\{\1\}\s*", latex, re.DOTALL)
    if match is None or "\\begin" in match[2]:
        return None
    rows = [row.strip() for row in re.split(r"\\\\", match[2]) if row.strip()]
    if len(rows) == 1 and "&" in rows[0]:
        return [Expression(entry.strip()) for entry in rows[0].split("&")]
    return [Expression(row) for row in rows] if len(rows) > 1 and not any("&" in row for row in rows) else None
