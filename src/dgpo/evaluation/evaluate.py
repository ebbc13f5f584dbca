"""evaluate: generate, grade, summarise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import dgpo
from dgpo.evaluation.estimates import Estimate, summarise
from dgpo.evaluation.sampling import Completion, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        estimates: "greedy", "avg@n", "pass@1", "pass@2", ... -> fraction, with its 95 % interval over problems.
        problems: P.
        generations: one dict per completion, by problem, the greedy one first: `index` of the problem, `prompt`,
            `answer`, `kind` ("greedy" or "sample"), `sample` (its number; None for greedy), `completion`, `score`,
            `tokens`, `truncated`.
        rates: over all completions: "truncated", the fraction without end token, and "mean_tokens" per completion.
        settings: samples, temperature, top_p, max_new_tokens, batch_size, seed and the versions of dgpo, torch and
            transformers: what it takes to get the same figures again.
        seconds: wall-clock time of generating and grading.
    """

    estimates: dict[str, Estimate]
    problems: int
    generations: list[dict[str, Any]]
    rates: dict[str, float]
    settings: dict[str, Any]
    seconds: float


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Mapping[str, Any]],
    grade: Callable[[str, Any], float],
    *,
    samples: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int,
    batch_size: int = 256,
    seed: int = 0,
    greedy: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Greedy accuracy, avg@n and pass@k of a model on P problems, each with an interval over problems.

    A completion is correct when its score is exactly 1. Truncated completions are graded like all others; their rate
    is reported, because a small `max_new_tokens` reads like a bad model.

    Args:
        model: a causal language model, on the device to use.
        tokenizer: its tokenizer.
        problems: [P] mappings with "prompt" (text or chat messages) and "answer"; rows of a `datasets.Dataset` will do.
        grade: (completion text, answer) -> score in [0, 1].
        samples: n sampled completions per problem; 0 for greedy accuracy alone.
        temperature: of the samples, > 0.
        top_p: of the samples.
        max_new_tokens: budget of one completion.
        batch_size: completions generated side by side.
        seed: of the samples.
        greedy: generate one greedy completion per problem, too.
        progress: show progress bars.

    Raises:
        ValueError: no problems, a problem without prompt or answer, a score outside [0, 1], a setting out of range.
    """
    for index, problem in enumerate(problems):
        if missing := [key for key in ("prompt", "answer") if key not in problem]:
            raise ValueError(f"problems[{index}] has no {' and no '.join(missing)}; its keys: {', '.join(problem)}")
    if len(problems) == 0:
        raise ValueError("problems is empty; expected at least one mapping with 'prompt' and 'answer'")
    if samples < 0 or (samples == 0 and not greedy):
        raise ValueError(f"samples = {samples} with greedy = {greedy}; expected samples >= 1, or 0 with greedy = True")
    if samples and temperature == 0:
        raise ValueError(f"temperature = 0 makes {samples} equal samples; pass samples=0 for greedy accuracy alone")

    import transformers

    started = time.perf_counter()
    prompts = [problem["prompt"] for problem in problems]
    budget: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
    sampling: dict[str, Any] = {"samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    first = generate(model, tokenizer, prompts, samples=None, **budget) if greedy else [[] for _ in prompts]
    drawn = generate(model, tokenizer, prompts, **sampling, **budget) if samples else [[] for _ in prompts]

    generations = []
    for index, problem in enumerate(problems):
        for number, completion in [(None, one) for one in first[index]] + list(enumerate(drawn[index])):
            generations.append(_graded(index, problem, number, completion, grade))
    correct = np.array([row["score"] == 1.0 for row in generations]).reshape(len(problems), -1)
    return Evaluation(
        estimates=summarise(correct[:, 1:] if greedy else correct, correct[:, 0] if greedy else None),
        problems=len(problems),
        generations=generations,
        rates={
            "truncated": fmean(row["truncated"] for row in generations),
            "mean_tokens": fmean(row["tokens"] for row in generations),
        },
        settings={
            **sampling,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "versions": {
                "dgpo": dgpo.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        },
        seconds=time.perf_counter() - started,
    )


def _graded(
    index: int,
    problem: Mapping[str, Any],
    number: int | None,
    completion: Completion,
    grade: Callable[[str, Any], float],
) -> dict[str, Any]:
    score = float(grade(completion.text, problem["answer"]))
    if not 0 <= score <= 1:
        raise ValueError(f"grade gave {score} for a completion of problems[{index}]; expected a score in [0, 1]")
    return {
        "index": index,
        "prompt": problem["prompt"],
        "answer": problem["answer"],
        "kind": "greedy" if number is None else "sample",
        "sample": number,
        "completion": completion.text,
        "score": score,
        "tokens": completion.tokens,
        "truncated": completion.truncated,
    }
