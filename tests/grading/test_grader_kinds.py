"""What the grader accepts and refuses, by kind of fault, and that no changed gold of the benchmarks is accepted."""

import json
import random
import re
import time
from pathlib import Path

import pytest
from grader_kinds import ACCEPTED, DIFFERENT, FURTHER_DIFFERENT, FURTHER_SAME, REFUSED, SAME

from dgpo.grading.mathematics.plain import FUNCTIONS
from dgpo.grading.mathematics.unit_table import COUNTED, UNITS, named
from dgpo.grading.mathematics.units import changes

BENCHMARKS = Path(__file__).parents[2].parent / "shared" / "benchmarks"


def graded(grader, pairs):
    """The pairs with their verdicts."""
    verdicts = grader.grade_many([rf"\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs])
    return list(zip(pairs, verdicts, strict=True))


def both_ways(pairs):
    return [pair for gold, answer in pairs for pair in ((gold, answer), (answer, gold))]


@pytest.mark.parametrize("kind", SAME)
def test_what_is_the_same_is_accepted_both_ways(grader, kind):
    refused = [
        (pair, verdict.reason) for pair, verdict in graded(grader, both_ways(SAME[kind])) if verdict.score != 1.0
    ]
    assert refused == []


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_is_accepted_in_one_direction(grader, kind):
    refused = [(pair, verdict.reason) for pair, verdict in graded(grader, ACCEPTED[kind]) if verdict.score != 1.0]
    assert refused == []


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_is_different_is_refused_both_ways(grader, kind):
    pairs = both_ways(DIFFERENT[kind])
    assert [pair for pair, verdict in graded(grader, pairs) if verdict.score or verdict.reason == "timeout"] == []


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_in_one_direction(grader, kind):
    verdicts = graded(grader, REFUSED[kind])
    assert [pair for pair, verdict in verdicts if verdict.score or verdict.reason == "timeout"] == []


@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.soak)])
def test_further_pairs(grader, count):
    same, different = both_ways(FURTHER_SAME), both_ways(FURTHER_DIFFERENT)
    if count is not None:
        same, different = (random.Random(0).sample(pairs, count) for pairs in (same, different))
    assert [(pair, verdict.reason) for pair, verdict in graded(grader, same) if verdict.score != 1.0] == []
    assert [pair for pair, verdict in graded(grader, different) if verdict.score or verdict.reason == "timeout"] == []


@pytest.mark.parametrize("gold", ["nan", "NaN", "-nan", r"\text{nan}", "null", "<NA>", "NaT"])
def test_a_missing_value_that_became_text_is_no_gold(grader, gold):
    assert grader.usable([gold]) == [False]
    assert grader.grade(rf"\boxed{{{gold}}}", gold).reason == "bad_gold"


@pytest.mark.parametrize(
    "gold", [r"(\frac{\foo}{+}, 1)", r"1, 2, \frac{+}{", r"x = \frac{\foo}{+}", "2 3", r"\coth x", "+", "="]
)
def test_a_gold_of_which_a_part_cannot_be_read_is_not_usable(grader, gold):
    """Whichever part is compared first: no answer but its own letters gets a verdict."""
    assert grader.usable([gold]) == [False]
    assert {grader.grade(rf"\boxed{{{answer}}}", gold).reason for answer in ("7", "(1, 2)", "x+1", "1,2,3")} == {
        "bad_gold"
    }


def test_no_unit_is_a_function_or_a_number_word():
    for word in (*UNITS, *COUNTED):
        assert word not in FUNCTIONS - {"sec", "arcsec"}  # seconds: a function has an argument
        assert named(word) is None or not changes(word), word
    assert [
        word for word in ("i", "e", "x", "k", "M", "pi", "mod", "dozen", "pairs", "thirds", "or") if named(word)
    ] == []


def test_time_is_linear_in_hostile_text(grader):
    """The steps in the calling process, on texts that a quadratic pattern would take minutes for."""
    from dgpo.grading.mathematics.explicit import explicit
    from dgpo.grading.mathematics.reading import read
    from dgpo.grading.mathematics.spelling import clean

    pieces = (
        "sqrt(", "abs(", "sin", "pi", "1 ", "1,", "1.", "0.(", "0.1(6", "3...", "5 million ",
        r"\text{5 cm", "**", "*", "_",
        "$", "{", "}", "^{", "^2 ", r"\frac", r"\frac12", r"2\frac1", "1 1/2 ", "1/", "5 cm ", "per ",
        r"\text{ cm}", "²", "₂", "f(",
        r"\sqrt[", "€", r"\$", "USD 5", "\x02", " ", r"\,", "1 000 ", "a'", r"\setminus", "x=", "or ",
        r"\mathrm{m}", "5 p.m",
    )  # fmt: skip
    for piece in pieces:
        started = time.perf_counter()
        text = piece * (4000 // len(piece))
        read(text, trusted=True)
        explicit(clean(text))
        assert time.perf_counter() - started < 2, piece


SWAPPED = {"+": "-", "-": "+", "*": "+", "/": "*", "<": ">", ">": "<"}
COMMANDS = {r"\leq": r"\geq", r"\geq": r"\leq", r"\sin": r"\cos", r"\cos": r"\sin", r"\cdot": "+", r"\times": "+",
            r"\cup": r"\cap", r"\pi": r"\theta", "[": "(", "]": ")", "(": "["}  # fmt: skip


def mutations(gold):
    """Answers with one digit, sign, operator, command or bracket of a gold changed."""
    for match in re.finditer(r"\d", gold):
        yield gold[: match.start()] + str((int(match[0]) + 1) % 10) + gold[match.end() :]
    for match in re.finditer(r"[-+*/<>]", gold):
        yield gold[: match.start()] + SWAPPED[match[0]] + gold[match.end() :]
    for command, other in COMMANDS.items():
        for match in re.finditer(re.escape(command) + (r"(?![A-Za-z])" if command[0] == "\\" else ""), gold):
            yield gold[: match.start()] + other + gold[match.end() :]
    yield gold[1:] if gold.startswith("-") else "-" + gold


def mutated(files):
    found = [str(json.loads(line)["answer"]) for name in files for line in (BENCHMARKS / f"{name}.jsonl").open()]
    pairs = [(gold, answer) for gold in dict.fromkeys(found) for answer in mutations(gold)]
    return [pair for pair in pairs if not re.match(r"-?0(?:,|$)", pair[0])]  # -0 is 0


SETS = ("math500", "minerva", "olympiadbench", "amc23", "aime24", "aime25")


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not beside the project")
def test_no_mutation_of_a_gold_is_accepted(grader):
    """A seeded sample; all of them are in the soak."""
    pairs = random.Random(0).sample(mutated(SETS), 120)
    assert [pair for pair, verdict in graded(grader, pairs) if verdict.score] == []


@pytest.mark.soak
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not beside the project")
def test_no_mutation_of_any_gold_is_accepted(grader):
    pairs = mutated((*SETS, "gsm8k_test"))
    assert len(pairs) > 6000
    assert [pair for pair, verdict in graded(grader, pairs) if verdict.score] == []
