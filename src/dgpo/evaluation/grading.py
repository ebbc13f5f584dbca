"""Completions with their grades: the rows of `generations.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgpo.evaluation.backends.backend import Completion
from dgpo.evaluation.suite import Slot


def graded_rows(found: Sequence[tuple[Slot, Completion]]) -> list[dict[str, Any]]:
    """One row per completion, in the order given.

    A row has `benchmark`, `id`, `index` (of the problem), `kind` ("greedy" or "sample"), `sample` (its number; None
    for greedy), `prompt`, `answer`, `completion`, `extracted` (the answer that the grader found in it, or None),
    `score` (1.0, 0.0, or None if the reference answer cannot be used), `reason` (of `dgpo.rewards.Verdict`),
    `tokens` and `truncated`.
    """
    rows: list[dict[str, Any]] = [{} for _ in found]
    for name in dict.fromkeys(slot.suite.name for slot, _ in found):
        places = [place for place, (slot, _) in enumerate(found) if slot.suite.name == name]
        answers = [str(found[place][0].problem["answer"]) for place in places]
        grader = found[places[0]][0].suite.grader
        verdicts = grader.grade_many([found[place][1].text for place in places], answers)
        for place, answer, verdict in zip(places, answers, verdicts, strict=True):
            slot, completion = found[place]
            # decided per problem, not per completion: otherwise the set of counted problems would depend on the model
            unusable = slot.id in slot.suite.unusable
            rows[place] = {
                "benchmark": name,
                "id": slot.id,
                "index": slot.index,
                "kind": "greedy" if slot.number is None else "sample",
                "sample": slot.number,
                "prompt": slot.problem["prompt"],
                "answer": answer,
                "completion": completion.text,
                "extracted": verdict.answer,
                "score": None if unusable else verdict.score,
                "reason": "bad_gold" if unusable else verdict.reason,
                "tokens": completion.tokens,
                "truncated": completion.truncated,
            }
    return rows
