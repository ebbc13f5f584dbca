"""Logs as a terminal shows them: the lines of `dgpo train`, dicts between progress bars (TRL, ms-swift, OpenRLHF,
slime), verl's and prime-rl's lines, and pairs of names and numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dgpo.counts import counted
from dgpo.runs.bars import bars_in, steps_of_bars
from dgpo.runs.names import PRINTED, STEPS, evaluation, find
from dgpo.runs.progress_line import read_progress_line
from dgpo.runs.raw import Raw
from dgpo.runs.settings import merged, of_mapping, of_text
from dgpo.runs.values import Line, flat, python_dict, value

LONGEST = 4000
"""Lines of a dict that is printed over several of them (a configuration); one that goes on longer is none."""

HEADER = 20
"""Lines of the log up to which the text around them may tell settings; later it is what the model wrote."""

FEWEST = 3
"""Lines of one form that make a text a log where no name is known."""

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|\[\d{1,2}(?:;\d{1,3})*m|\[0?m")
_PREFIX = re.compile(r"^\s*(?:\([^()]*pid=[^()]*\)|\[(?:rank|default)\s?\d+\]:?)\s?")
"""Of Ray's and of torchrun's workers."""

_VERL = re.compile(r"\bstep:\s*(\d+)\s+-\s+(?=\S+:)")
_STEP = re.compile(r"\b(?:global[_ ])?(?:step|rollout|iteration|iter)[\s:=#\[(]*(\d+)\b", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf)"
_EPOCH = re.compile(r"\bepoch\W{0,3}(\d+)/\d+\W+(\d+)/(\d+)", re.IGNORECASE)
"""A count of steps within an epoch: `Epoch:[1/3](20/4292), loss: 0.66`."""

_ROUND = re.compile(r"\b(?:epoch|episode|update|cycle|round)[\s:=#\[(]*(\d+)\b", re.IGNORECASE)

_SEGMENT = re.compile(rf"\s*([A-Za-z][\w/.@ -]*?)\s*[=:]\s*({_NUMBER})(?![\w.])", re.IGNORECASE)
_PAIR = re.compile(rf"([A-Za-z_][\w/.@-]*)\s*[=:]\s*({_NUMBER})(?![\w.])", re.IGNORECASE)
_CELL = re.compile(rf"^\s*([A-Za-z][\w. /-]*?):?\s+({_NUMBER})(%?)(?:\s|$)", re.IGNORECASE)


_OPENED = re.compile(r"\{\s*(?:$|['\"][^'\"]{1,80}['\"]\s*:)")
"""Where a printed dict begins."""

_GOES_ON = re.compile(r"\s*(?:['\"\]})\[{(]|[-+]?[\d.]|None|True|False|nan|inf)")
"""A line in the middle of one."""


@dataclass
class _Text:
    """What was found so far; lists of (number of the line, what it holds).

    Attributes:
        printed: dicts with metrics.
        others: dicts with numbers under names that are not known.
        verl, cells, pairs: lines of these forms.
        bars: (number of dicts with metrics before it, count, total) of progress bars.
        settings: of configurations, banners and commands.
        cut: numbers of lines that begin with metrics and break off.
    """

    printed: list[tuple[int, Line]] = field(default_factory=list)
    others: list[tuple[int, Line]] = field(default_factory=list)
    verl: list[tuple[int, Line]] = field(default_factory=list)
    cells: list[tuple[int, Line]] = field(default_factory=list)
    pairs: list[tuple[int, Line]] = field(default_factory=list)
    bars: list[tuple[int, int, str]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)


def read_console(text: str) -> Raw | None:
    """The metrics in the output of a training run; None if there are none."""
    found = _Text()
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        at += _read_line(lines, at, found)
    remarks: list[str] = []
    if len(found.verl) >= max(1, len(found.printed)):
        kept = _whole(found.verl, text)
    elif found.printed:
        kept = _of_training(found.printed)
        remarks += steps_of_bars(found.printed, kept, found.bars)
    else:
        kept = _whole(_usual(found), text)
    if not kept:
        return None
    found.cut += [number for number in {one[0] for one in found.verl[-1:]} if number not in {one[0] for one in kept}]
    if found.cut:
        one = len(found.cut) == 1
        where = f"line {found.cut[0]}, which breaks" if one else f"{counted(len(found.cut), 'line')} that break"
        remarks.append(f"left out {where} off")
    return Raw(lines=[line for _, line in kept], remarks=remarks, settings=merged(found.settings))


def _read_line(lines: Sequence[str], at: int, found: _Text) -> int:
    """Read the line `at`, and those that belong to it; returns their number."""
    line = lines[at]
    if "\x1b" in line or "[0m" in line:
        line = _COLOURS.sub("", line)
    if not line or line.isspace():
        return 1
    if "step:" in line and (verl := _VERL.search(line)):
        found.verl.append((at + 1, _verl(line, verl)))
        return 1
    if "/" in line[:HEADER] and (ours := read_progress_line(line)) is not None:
        found.printed.append((at + 1, ours))
        return 1
    bars = bars_in(line)
    found.bars += [(len(found.printed), count, total) for count, total in bars]
    if "{" in line and (opened := _OPENED.search(line)):
        used, inner = _dict(lines, at, line[opened.start() :])
        if inner is not None:
            before = line[: opened.start()]
            # SkyRL: "Step 3:" and the dict on the next line
            above = lines[at - 1] if at and not before.strip() and lines[at - 1].rstrip().endswith(":") else ""
            _keep_dict(found, at + 1, before if before.strip() else above, inner)
            return used
        names = tuple(re.findall(r"['\"]([^'\"]+)['\"]\s*:", line[opened.start() :]))
        if _metrics(names) or at == len(lines) - 1:
            found.cut.append(at + 1)
            return 1
    if not bars:
        _keep_text(found, at + 1, line)
    return 1


def _dict(lines: Sequence[str], at: int, text: str) -> tuple[int, dict[str, Any] | None]:
    """The dict that begins in line `at` with `text`, and the number of lines that it takes."""
    inner = python_dict(text) if "}" in text else None
    if inner is not None:
        return 1, inner
    depth = text.count("{") - text.count("}")
    parts = [text]
    for line in lines[at + 1 : at + LONGEST]:
        more = _PREFIX.sub("", _COLOURS.sub("", line))
        if depth <= 0 or not _GOES_ON.match(more):
            break
        depth += more.count("{") - more.count("}")
        parts.append(more)
    if depth > 0 or len(parts) == 1:
        return 1, None
    inner = python_dict(" ".join(parts))
    return (len(parts), inner) if inner is not None else (1, None)


def _keep_dict(found: _Text, number: int, before: str, inner: dict[str, Any]) -> None:
    line = flat(inner)
    numeric = tuple(name for name, one in line.items() if isinstance(one, int | float) and not isinstance(one, bool))
    if _metrics(numeric):
        counted = list(_STEP.finditer(before))
        if counted and not any(name in line for name in STEPS):
            line = {"step": int(counted[-1][1]), **line}
        found.printed.append((number, line))
    elif settings := of_mapping(inner):
        found.settings.append(settings)
    elif numeric:
        found.others.append((number, line))


def _keep_text(found: _Text, number: int, line: str) -> None:
    step, count = _counted(line)
    cells: Line = {}
    pairs: Line = {}
    if step is not None and line.count(" | ") >= 2 and "Micro Step" not in line:
        for cell in line[step.end() :].split("|"):
            if match := _CELL.match(cell):
                cells[PRINTED.get(match[1], match[1])] = float(match[2]) * (0.01 if match[3] else 1.0)
    if step is not None and not cells:
        rest = f"{line[: step.start()]} {line[step.end() :]}"
        matches = [match for segment in re.split(r"[,|;]\s", rest) if (match := _SEGMENT.match(segment))]
        if len(matches) < 2:
            matches = list(_PAIR.finditer(rest))
        pairs = {re.sub(r"\s+", "_", match[1].lower()): float(match[2]) for match in matches}
    if cells:
        found.cells.append((number, {"step": count, **cells}))
    elif pairs:
        found.pairs.append((number, {"step": count, **pairs}))
    elif max(len(found.printed), len(found.verl)) < HEADER and (settings := of_text(line)):
        found.settings.append(settings)


def _counted(line: str) -> tuple[re.Match[str] | None, int]:
    """Where a line of text says how far training is, and the number."""
    words = line.lower()  # most lines have none of the words: much faster than the patterns
    if not any(word in words for word in ("step", "iter", "rollout", "epoch", "episode", "update", "cycle", "round")):
        return None, 0
    if step := _STEP.search(line):
        return step, int(step[1])
    if within := _EPOCH.search(line):
        return within, (int(within[1]) - 1) * int(within[3]) + int(within[2])
    around = _ROUND.search(line)
    return around, int(around[1]) if around else 0


def _verl(line: str, match: re.Match[str]) -> Line:
    """`step:3 - actor/lr:1e-06 - ...`; numbers as `0.5`, `np.float64(0.5)`, `nan`."""
    pairs: Line = {"step": int(match[1])}
    for part in line[match.end() :].split(" - "):
        name, colon, number = part.rpartition(":")
        if colon and " " not in name:
            try:
                pairs[name] = float(number[11:-1] if number.startswith("np.float64(") else number)
            except ValueError:  # a text, or something after the last number of the line
                found = value(number.split(" [repeated")[0].strip())
                if not isinstance(found, str):
                    pairs[name] = found
    return pairs


_known: dict[tuple[str, ...], bool] = {}
_TELLING = ("grad_norm", "learning_rate", "kl_reference", "length", "entropy", "clipped", "reward_std")


def _metrics(names: tuple[str, ...]) -> bool:
    """Whether names are those of a log line; remembered, since a log has few forms of lines."""
    if names not in _known:
        if len(_known) > 10_000:
            _known.clear()
        bare = [name.removeprefix("eval_").removeprefix("eval/") for name in names]
        one = find("reward", bare) or find("loss", bare)
        _known[names] = bool(one) or sum(find(quantity, bare) is not None for quantity in _TELLING) > 1
    return _known[names]


def _of_training(printed: Sequence[tuple[int, Line]]) -> list[tuple[int, Line]]:
    """The log lines among dicts with metrics: a reward function may print dicts of its own for every response."""
    optimised = [_optimised(line) for _, line in printed]
    if not any(optimised):
        return list(printed)
    return [one for one, is_log in zip(printed, optimised, strict=True) if is_log or _kept_beside(one[1])]


def _optimised(line: Line) -> bool:
    return any(find(quantity, line) for quantity in ("loss", "grad_norm", "learning_rate"))


def _kept_beside(line: Line) -> bool:
    return any(name in line for name in STEPS) or any(map(evaluation, line))


def _usual(found: _Text) -> list[tuple[int, Line]]:
    """Where no known names are printed: the lines of the form that occurs most, if it occurs often."""
    best = max((found.cells, found.pairs, _same_names(found.others)), key=len)
    return best if len(best) >= FEWEST or any(_metrics(tuple(line)) for _, line in best) else []


def _same_names(lines: Sequence[tuple[int, Line]]) -> list[tuple[int, Line]]:
    counts = Counter(frozenset(line) for _, line in lines)
    if not counts:
        return []
    names, _ = counts.most_common(1)[0]
    return [(number, line) for number, line in lines if frozenset(line) == names]


def _whole(lines: list[tuple[int, Line]], text: str) -> list[tuple[int, Line]]:
    """Without a last line that has fewer names than the one before it, where the text ends without a line end."""
    if len(lines) > 1 and not text.endswith("\n") and not set(lines[-2][1]) <= set(lines[-1][1]):
        last = text.count("\n") + 1
        return lines[:-1] if lines[-1][0] == last else lines
    return lines
