"""Reads a `summary.json` back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo.comparison.summary import SCHEMA, Against, Curve, Method, Summary, Tuned
from dgpo.comparison.tables import JSON
from dgpo.files import one_line, read_json, shortened
from dgpo.runs.results import Estimate


def read_summary(path: str | os.PathLike[str]) -> Summary:
    """The summary in a file of `dgpo.comparison.tables.write`.

    Args:
        path: the file, or its folder.

    Raises:
        ValueError: it does not exist, is of another kind, or is damaged.
    """
    file = Path(path) / JSON if Path(path).is_dir() else Path(path)
    expected = f"expected a {JSON} of `dgpo compare`, or its folder"
    try:
        document = read_json(file)
    except OSError as error:
        raise ValueError(f"{str(file)!r}: {error.strerror}; {expected}") from error
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, Mapping) else document
        raise ValueError(f"{str(file)!r}: schema = {shortened(found)}; {expected}")
    try:
        return _summary({name: value for name, value in document.items() if name != "schema"})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is damaged: {type(error).__name__}, {one_line(error)}; {expected}") from error


def _summary(given: dict[str, Any]) -> Summary:
    given["methods"] = tuple(map(_method, given["methods"]))
    given["curves"] = tuple(map(_curve, given["curves"]))
    given["incomplete"] = tuple((str(arm), str(task), int(seed)) for arm, task, seed in given["incomplete"])
    for name in ("tasks", "seeds", "warnings"):
        given[name] = tuple(given[name])
    return Summary(**given)


def _method(given: dict[str, Any]) -> Method:
    for name in ("final", "final_middle", "area", "area_middle"):
        given[name] = _estimate(given[name])
    given["by_task"] = {task: _estimate(value) for task, value in given["by_task"].items()}
    if (against := given["against"]) is not None:
        for name in ("final", "area"):
            # an infinite one is written as null
            least = against[name]["detectable"]
            against[name] = _estimate({**against[name], "detectable": math.inf if least is None else least})
        for name in ("over_problems", "improvement"):
            against[name] = None if against[name] is None else _estimate(against[name])
        given["against"] = Against(**against)
    given["tuned"] = None if given["tuned"] is None else Tuned(**given["tuned"])
    return Method(**given)


def _estimate(given: Mapping[str, Any]) -> Estimate:
    found = Estimate(**given)
    for name in ("value", "low", "high", "se"):
        if not isinstance(value := getattr(found, name), int | float) or not math.isfinite(value):
            raise ValueError(f"{name} = {shortened(value)}; expected a finite number")
    return found


def _curve(given: dict[str, Any]) -> Curve:
    steps = tuple(map(int, given["steps"]))
    lines = {name: tuple(map(float, given[name])) for name in ("mean", "low", "high")}
    runs = {int(seed): tuple(map(float, scores)) for seed, scores in given["runs"].items()}
    if {len(steps)} != {len(line) for line in (*lines.values(), *runs.values())}:
        raise ValueError(f"the curve of {shortened(given['arm'])} has lines that differ in length from its steps")
    return Curve(arm=str(given["arm"]), task=str(given["task"]), steps=steps, runs=runs, **lines)
