r"""Majority votes: which answers of a problem's samples count as the same.

A class of answers is, in this order,

1. all that the grader calls equal to the gold, and every other one with the same text as one of these;
2. all that are the same exact number (`0.5`, `1/2`, `\frac12`), or the same text in normal spelling;
3. what the grader calls equal when it compares wrong answers with each other: where the result depends on it, and for
   the `COMPARED` classes with the most votes. The others can only be smaller than they would be.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from dgpo.grading import Completion, Grader
from dgpo.grading.mathematics import normal_form

COMPARED = 6
"""Classes of wrong answers that are compared in pairs, at most: 15 comparisons for a problem."""

Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
"""Pairs of answers -> whether each is equal."""


def majority(answers: Sequence[str | None], grades: Sequence[float], same: Same | None = None) -> float:
    """Probability that the class with the most votes, with random tie-breaking, is correct; 0 without votes.

    Args:
        answers: [k] the extracted answers; None and a blank do not vote.
        grades: [k] 1 for right ones.
        same: compares wrong answers with each other, for rule 3; None leaves it out.
    """
    given = [(answer or "").strip() for answer in answers]
    right = {answer for answer, grade in zip(given, grades, strict=True) if answer and grade == 1}
    votes = [answer for answer in given if answer]
    gold = sum(answer in right for answer in votes)
    wrong: dict[Hashable, list[str]] = {}
    for answer in votes:
        if answer not in right:
            wrong.setdefault(normal_form(answer), []).append(answer)
    classes = sorted(wrong.values(), key=len, reverse=True)
    most = len(classes[0]) if classes else 0
    # otherwise merging changes nothing: a wrong class has more votes already, or all of them together have fewer
    if same is not None and len(classes) > 1 and most <= gold <= len(votes) - gold:
        classes = _merged(classes, same)
        most = max(map(len, classes))
    if gold == 0 or gold < most:
        return 0.0
    # the right class and the wrong ones that tie with it have the same chance
    return 1 / (1 + sum(len(one) == gold for one in classes))


def same_by(grader: Grader) -> Same:
    """Compares two answers as this grader compares an answer with a gold."""

    def same(pairs: Sequence[tuple[str, str]]) -> list[bool]:
        responses: list[Completion] = [rf"\boxed{{{answer}}}" for answer, _ in pairs]
        return [verdict.score == 1.0 for verdict in grader.grade_many(responses, [other for _, other in pairs])]

    return same


def _merged(classes: list[list[str]], same: Same) -> list[list[str]]:
    """Classes of which the first answers are equal become one; by one representative each, the larger one first."""
    compared, others = classes[:COMPARED], classes[COMPARED:]
    pairs = [(later, earlier) for later in range(len(compared)) for earlier in range(later)]
    equal = dict(zip(pairs, same([(compared[a][0], compared[b][0]) for a, b in pairs]), strict=True))
    belongs: list[int] = []
    for later in range(len(compared)):
        belongs.append(next((belongs[earlier] for earlier in range(later) if equal[later, earlier]), later))
    found: dict[int, list[str]] = {}
    for place, to in enumerate(belongs):
        found.setdefault(to, []).extend(compared[place])
    return [*found.values(), *others]
