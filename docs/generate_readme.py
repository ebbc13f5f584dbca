"""Write the table of methods in README.md: what each does with a token whose probability has moved far.

What happens is measured on the classes with their defaults. Whose code a method equals follows from tests/golden/, the
values that were recorded from that code.

    python docs/generate_readme.py            write the table
    python docs/generate_readme.py --check    exit 1 if the committed table is not the one that would be written
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from dgpo.files import write_text_atomic
from dgpo.objectives import OBJECTIVES, Objective
from dgpo.objectives.curves import weight_curve

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GOLDEN = ROOT / "tests" / "golden"
BEGIN, END = "<!-- methods: written by docs/generate_readme.py -->", "<!-- end -->"

FAR_DOWN = (math.log(0.5), -4.0)
FAR_UP = (math.log(0.01), -math.log(0.01) - 1e-3)
"""log π_old and the log ratio at which a token has moved far: from one half to 1 %, and from 1 % to nearly 1."""

DOWN = {
    "dropped": "dropped",
    "decays": "decays faster than its probability",
    "gated": "falls with its probability, gated",
    "follows": "falls with its probability (no clipping)",
    "held": "keeps its weight",
}
UP = {
    "dropped": "dropped",
    "fades": "fades out",
    "slows": "rises ever more slowly",
    "held": "keeps its weight",
    "follows": "rises with its probability (no clipping)",
}
DROPPED_BY = {
    "batch": "dropped; the range adapts to the batch",
    "response": "dropped, in view of the whole response",
    "old_logprob": "dropped, by the change of its probability",
    "": "dropped, by its ratio",
}
"""What the weight reads -> words for a token that a clip on both sides drops; the first that applies."""


def down(objective: Objective) -> str:
    """What happens to a token of a wrong answer that is already far less likely: a key of `DOWN`."""
    weight, share, slope = _far(objective, -1.0, *FAR_DOWN)
    if weight == 0:
        return "dropped"
    if slope > 1.2:
        return "decays"
    if slope < 0.1:
        return "held"
    return "follows" if share > 0.999 else "gated"


def up(objective: Objective) -> str:
    """What happens to a token of a right answer that is already far more likely: a key of `UP`."""
    weight, _, slope = _far(objective, 1.0, *FAR_UP)
    if weight == 0:
        return "dropped"
    if slope < -0.1:
        return "fades"
    if slope < 0.1:
        return "held"
    return "follows" if slope > 0.999 else "slows"


def _far(objective: Objective, sign: float, old_logprob: float, log_ratio: float) -> tuple[float, float, float]:
    """w, w/r and d log w / d log r of a token on its own; the slope is 0 where w is 0."""
    step = 1e-4
    x = torch.tensor([log_ratio, log_ratio + step], dtype=torch.float64)
    one, other = weight_curve(objective, x, advantage=sign, old_logprob=old_logprob).weight.tolist()
    slope = (math.log(other) - math.log(one)) / step if one > 0 and other > 0 else 0.0
    return one, one / math.exp(log_ratio), slope


def recorded_from() -> dict[str, str]:
    """Name -> "authors" or "framework": whose code the values were recorded from, for the methods that have some."""
    repositories: dict[str, str] = {}
    for file in sorted(GOLDEN.glob("*.json")):
        cases = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(cases, list):
            name = cases[0].get("objective", file.stem)
            repositories.setdefault(name, str(cases[0]["source"]).partition("@")[0])
    return {
        name: "authors" if cls.papers[0].code == f"https://github.com/{repositories[name]}" else "framework"
        for name, cls in OBJECTIVES.items()
        if name in repositories
    }


def table() -> str:
    """The Markdown between the markers."""
    recorded = recorded_from()
    rows: dict[tuple[int, int, int], tuple[str, str, list[str]]] = {}
    for name, cls in OBJECTIVES.items():
        objective = cls()
        fallen, risen = down(objective), up(objective)
        words, order = DOWN[fallen], 0
        if fallen == risen == "dropped":
            order, words = next(
                (place, text)
                for place, (reads, text) in zip(range(0, -len(DROPPED_BY), -1), DROPPED_BY.items(), strict=True)
                if not reads or reads in objective.reads
            )
        place = (list(DOWN).index(fallen), list(UP).index(risen), order)
        rows.setdefault(place, (words, UP[risen], []))[2].append(_link(name, recorded.get(name, "")))
    lines = [
        "| Token of a wrong answer, already far less likely | of a right answer, already far likelier | Methods |",
        "|---|---|---|",
        *(f"| {fallen} | {risen} | {', '.join(links)} |" for _, (fallen, risen, links) in sorted(rows.items())),
    ]
    return "\n".join(lines)


def _link(name: str, whose: str) -> str:
    """The section of the method, whether it equals code, and the paper."""
    mark = {"authors": " ✓", "framework": " ○", "": ""}[whose]
    paper = OBJECTIVES[name].papers[0]
    return f"[`{name}`](docs/objectives.md#{name}){mark} <sup>[{paper.arxiv_id}]({paper.link})</sup>"


def written(text: str) -> str:
    """`text` of the README with the table as it should be.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main(argv: list[str]) -> int:
    """Write the table, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description="Write the table of methods in README.md from the classes.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is out of date")
    parser.add_argument("--out", type=Path, default=README, help="the README to rewrite (default: %(default)s)")
    arguments = parser.parse_args(argv)
    text = arguments.out.read_text(encoding="utf-8")
    fresh = written(text)
    if fresh == text:
        return 0
    if arguments.check:
        print(f"{arguments.out} has another table of methods; run: python docs/generate_readme.py", file=sys.stderr)
        return 1
    write_text_atomic(arguments.out, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
