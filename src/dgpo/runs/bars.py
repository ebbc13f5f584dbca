"""Steps from the progress bar of a console log, whose lines of metrics have none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from dgpo.runs.names import STEPS
from dgpo.runs.raw import only_evaluation, summary
from dgpo.runs.values import Line

_BAR = re.compile(r"(?<![\d/])(\d+)/(\d+|\?+)\s*\[")
"""The count of a progress bar: ` 20%|##  | 10/50 [01:04<04:17,  6.4s/it]`, in notebooks ` 20% 10/50 [...]`."""

_DESCRIBED = re.compile(r"([A-Za-z]\w*):\s*(?:\d{1,3}%(?:\|[^|]*\|)?\s*)?$")
"""The description of a bar, in the text before its count."""

_INTERVALS = {1, 2, 3, 4, 5, 8, 10, 15, 16, 20, 25, 30, 32, 40, 50, 64, 100, 128, 200, 250, 256, 500, 1000}
"""What people set `logging_steps` to."""


def bars_in(line: str) -> list[tuple[int, str]]:
    """(count, total) of each bar in a line: many may stand in one. Bars with a description count other things
    (examples, weights, responses), but for `Train`."""
    if "/" not in line or "[" not in line:
        return []
    found = []
    for bar in _BAR.finditer(line):
        described = _DESCRIBED.search(line[max(0, bar.start() - 80) : bar.start()])
        if described is None or described[1] in ("Train", "Training"):
            found.append((int(bar[1]), bar[2]))
    return found


def steps_of_bars(
    printed: Sequence[tuple[int, Line]], kept: Sequence[tuple[int, Line]], bars: Sequence[tuple[int, int, str]]
) -> Iterator[str]:
    """Set the steps of lines without any from the progress bar, if it tells how many steps there are to a line."""
    training = [line for _, line in kept if not summary(line) and not only_evaluation(line)]
    if not training or any(name in line for _, line in kept for name in STEPS):
        return
    of = {id(line): index for index, line in enumerate(training)}
    place = {number: of[id(line)] for number, (_, line) in enumerate(printed) if id(line) in of}
    for total, _ in Counter(total for _, _, total in bars).most_common():
        points = [(before, count) for before, count, whole in bars if whole == total]
        counts = [count for _, count in points]
        every, begin = _by_place([(place[before], count) for before, count in points if before in place])
        if every is None and (len(training) > 1 or str(max(counts)) == total):
            every, begin = _by_total(len(training), max(counts) - min(counts)), min(counts)
        if every is None:
            continue
        # a bar that begins at 0 is that of a run that does, wherever it stands
        begin = begin if min(counts) else 0
        step = begin
        for _, line in kept:
            step += every * (id(line) in of)
            line["step"] = step
        first = training[0]["step"]
        yield f"the lines have no step: the progress bar counts {every} per line, the first is taken as step {first}"
        return


def _by_total(lines: int, steps: int) -> int | None:
    """Steps per line where a bar went over `steps`: output and bar may be buffered apart, so that no place tells."""
    return max((every for every in _INTERVALS if steps // every == lines), default=None)


def _by_place(points: Sequence[tuple[int, int]]) -> tuple[int | None, int]:
    """Steps per line, and the step before the first, from the count that stands before each line."""
    seen = sorted(dict(points).items())  # the last before a line
    if len(seen) < 2:
        return None, 0
    every = round((seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]))
    offsets = sorted(count - every * (index + 1) for index, count in seen)
    offset = offsets[len(offsets) // 2]
    if every < 1 or sum(abs(one - offset) <= every for one in offsets) < 0.9 * len(offsets):
        return None, 0
    # a bar lags behind by less than one interval
    return every, every * max(0, round(offset / every))
