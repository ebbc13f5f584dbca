"""Answers per second through `MathGrader`, beside math-verify called as it is, on GSM8K-like answers.

    python benchmarks/grader.py [--answers 20000] [--out FILE.json] [--cases FILE.jsonl]

One process and one worker, so that a number is per core. Three sets of answers, each graded by both in one run:

    numbers      what a model writes for GSM8K: a number in a box, right or wrong; decided without a worker
    formulas     fractions, roots and polynomials in many spellings; each goes through a worker
    kills        one answer in a hundred never ends: what a kill and a new worker cost the others

`--cases` takes labelled pairs ({"gold", "prediction", "expected"}, e.g. HardVerify-Math) and prints the recall and the
false positives of both in place of the times.

Ratios to math-verify are what counts: the seconds belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from dgpo.rewards import MathGrader

DEADLINE = 0.5


def numbers(count: int) -> tuple[list[str], list[str]]:
    """Responses and golds, half of them right."""
    dice = random.Random(0)
    golds = [str(dice.randint(1, 5000)) for _ in range(count)]
    said = [gold if dice.random() < 0.5 else str(dice.randint(1, 5000)) for gold in golds]
    spelt = [dice.choice(["{}", "{:,}", "{}.0", r"\${}", "{} "]).format(int(answer)) for answer in said]
    return [rf"She has 3 * 4 of them, so \boxed{{{answer}}} in all." for answer in spelt], golds


def formulas(count: int) -> tuple[list[str], list[str]]:
    """Responses and golds that need a worker."""
    dice = random.Random(0)
    answers, golds = [], []
    for _ in range(count):
        a, b, c = (dice.randint(2, 60) for _ in range(3))
        gold, answer = dice.choice(
            [
                (rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}", rf"\frac{{{a}}}{{{c}}}\sqrt{{{b}}}"),
                (f"(x-{a})(x+{b})", f"x^2 + {b}x - {a}x - {a * b}"),
                (rf"\frac{{\pi}}{{{a}}}", rf"\pi/{a if dice.random() < 0.5 else b}"),
                (f"[{a}, {a + b})", rf"{a} \le x < {a + b}"),
                (f"({a}, {b}, {c})", f"({a}, {b}, {c if dice.random() < 0.5 else c + 1})"),
            ]
        )
        answers.append(rf"Hence $\boxed{{{answer}}}$.")
        golds.append(gold)
    return answers, golds


def rate(grade: Callable[[], object], count: int) -> float:
    """Answers per second."""
    started = time.perf_counter()
    grade()
    return count / (time.perf_counter() - started)


def by_math_verify(answers: list[str], golds: list[str]) -> list[bool]:
    """math-verify on the whole response, with its time limits off, as they have to be outside of the main thread."""
    from math_verify import parse, verify

    return [
        verify(parse(f"${gold}$", parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None)
        for answer, gold in zip(answers, golds, strict=True)
    ]


def agreement(file: Path) -> None:
    """Recall and false positives on labelled pairs; both graders get the prediction in a box."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row for row in rows if "contested" not in row]
    answers = [rf"\boxed{{{row['prediction']}}}" for row in rows]
    golds = [row.get("gold_bare") or row["gold"] for row in rows]
    with MathGrader(workers=2, deadline=5.0) as grader:
        ours = [verdict.score == 1.0 for verdict in grader.grade_many(answers, golds)]
    for name, accepted in (("dgpo", ours), ("math-verify", by_math_verify(answers, golds))):
        right = sum(row["expected"] and match for row, match in zip(rows, accepted, strict=True))
        wrong = sum(not row["expected"] and match for row, match in zip(rows, accepted, strict=True))
        expected = sum(row["expected"] for row in rows)
        print(
            f"{name:<12} recall {right}/{expected} = {right / expected:.1%}, "
            f"false positives {wrong} of {len(rows) - expected}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cases", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # math-verify's, about timeouts that are off
    if arguments.cases:
        agreement(arguments.cases)
        return
    rows = {}
    with MathGrader(workers=1, deadline=DEADLINE) as grader:
        grader.grade(r"\boxed{x}", "y")
        by_math_verify([r"\boxed{x}"], ["y"])
        for name, make, count in (
            ("numbers", numbers, arguments.answers),
            ("formulas", formulas, arguments.answers // 10),
        ):
            answers, golds = make(count)
            theirs = rate(lambda a=answers, g=golds: by_math_verify(a, g), count)
            ours = rate(lambda a=answers, g=golds: grader.grade_many(a, g), count)
            rows[name] = {"answers": count, "dgpo": ours, "math_verify": theirs, "ratio": ours / theirs}
            print(f"{name:<10}{ours:>12,.0f} /s   math-verify {theirs:>10,.0f} /s   {ours / theirs:.2f} times")
        # a continued fraction that the parser takes forever for
        answers, golds = formulas(1000)
        for place in range(50, 1000, 100):
            fraction = r"\frac{1}{1+" * 20 + f"x+{place}" + "}" * 20
            answers[place], golds[place] = rf"\boxed{{{fraction}}}", "x"
        kills = grader.reasons["timeout"]
        started = time.perf_counter()
        grader.grade_many(answers, golds)
        seconds, kills = time.perf_counter() - started, grader.reasons["timeout"] - kills
        beside = (seconds - kills * DEADLINE - 1000 / rows["formulas"]["dgpo"]) / max(kills, 1)
        rows["kills"] = {
            "answers": 1000,
            "kills": kills,
            "seconds": seconds,
            "seconds_per_kill_beside_deadline": beside,
        }
        print(f"kills      {kills} of 1000 answers: {1000 * beside:.0f} ms each beside the deadline of {DEADLINE:g} s")
    if arguments.out:
        versions = {name: metadata.version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy")}
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        arguments.out.write_text(json.dumps({"rows": rows, "versions": versions, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
