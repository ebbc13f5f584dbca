"""Generate, grade and summarise."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dgpo.evaluation.backends.backend import Backend, Sampling
from dgpo.evaluation.folder import RunFolder, recorded_timing, write_results
from dgpo.evaluation.grading import graded_rows
from dgpo.evaluation.suite import Slot, Suite, plan
from dgpo.evaluation.summary import require_ks, summary
from dgpo.runs.results import Evaluation
from dgpo.warning import warn

if TYPE_CHECKING:
    from tqdm import tqdm  # type: ignore[import-untyped]

MANY = 8
"""Problems from which on equal samples of all are no chance."""


def evaluate(
    suites: Suite | Sequence[Suite],
    backend: Backend,
    sampling: Sampling,
    *,
    out: str | os.PathLike[str] | None = None,
    greedy: bool = True,
    ks: Iterable[int] | None = None,
    prompt: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Greedy accuracy, avg@n, pass@k and more of a model on some benchmarks, each with an interval over problems.

    A completion is correct when its score is exactly 1. Truncated completions are graded like all others; their rate
    is reported, because a small `max_new_tokens` makes a good model look bad. Problems whose reference answer the
    grader cannot use are excluded and listed in the result.

    With `out`, rows are written as soon as they are graded. Repeat the same call to resume after an interruption: no
    completion is repeated or lost. If the run is complete, it reads the files. `results.json` is written last.

    Args:
        suites: what to evaluate on.
        backend: generates the completions; it is not closed.
        sampling: the sampling settings.
        out: folder for `run.json`, `generations.jsonl`, `results.json` and `results.md`; None writes nothing.
        greedy: also generate one greedy completion per problem.
        ks: the k of pass@k; None takes the powers of two up to n, and n.
        prompt: the prompt template, recorded in the results.
        progress: show a progress bar: completions, tokens per second, time left.

    Raises:
        ValueError: if a setting is out of range, suites do not fit together, a prompt has no tokens, or the folder has
            another run or is in use by another process.
        OSError: if the folder cannot be written to, or an endpoint cannot be reached.
    """
    started = time.perf_counter()
    suites = [suites] if isinstance(suites, Suite) else list(suites)
    slots = plan(suites, sampling, greedy)
    ks = require_ks(ks, sampling.samples)
    settings = backend.settings()
    run = {
        "model": backend.model,
        "backend": settings,
        "sampling": {**asdict(sampling), "greedy": greedy},
        "prompt": dict(prompt or {}),
        "benchmarks": {suite.name: {"grader": suite.grader.version, "data": suite.data()} for suite in suites},
    }
    with RunFolder(out, run, slots) if out is not None else nullcontext() as folder:
        rows = dict(folder.rows) if folder is not None else {}
        seconds = 0.0
        if fresh := len(slots) - len(rows):
            with _bar(slots, rows, progress) as bar:
                for found in _generate(slots, backend, sampling, rows, bar):
                    if folder is not None:
                        folder.append(found)
                    rows.update(found)
            seconds = time.perf_counter() - started
        generations = [rows[position] for position in range(len(slots))] if folder is None else folder.finish()
        # where nothing was left to generate, keep the timing of the session that generated
        timing = {"completions": fresh, "seconds": seconds} if fresh else recorded_timing(out)
        if settings.get("kind") == "openai":
            _warn_of_equal_samples(sampling, generations)
        evaluation = summary(suites, run, generations, ks, timing)
        if out is not None:
            write_results(evaluation, out)
    return evaluation


def _warn_of_equal_samples(sampling: Sampling, rows: Iterable[Mapping[str, Any]]) -> None:
    """Say so if every problem has one text in all its samples, which a server that ignores the temperature gives."""
    texts: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["kind"] == "sample":
            texts.setdefault((row["benchmark"], row["id"]), set()).add(row["completion"])
    # of few problems the samples may well be equal
    if sampling.samples > 1 and len(texts) >= MANY and all(len(found) == 1 for found in texts.values()):
        warn(
            f"the {sampling.samples} samples of each problem are equal, although temperature = {sampling.temperature}: "
            "the server seems to decode greedily, and avg@k and pass@k are then the greedy accuracy (`transformers "
            "serve` samples only if the model's generation_config.json has do_sample: true)"
        )


def _generate(
    slots: Sequence[Slot], backend: Backend, sampling: Sampling, rows: Mapping[int, Any], bar: tqdm
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Graded rows with their positions, as they finish."""
    requests = [slot.request(sampling.seed) for slot in slots]
    started, tokens = time.perf_counter(), 0
    for group in backend.complete(requests, sampling, frozenset(rows)):
        graded = graded_rows([(slots[position], completion) for position, completion in group])
        yield [(position, row) for (position, _), row in zip(group, graded, strict=True)]
        # behind the yield, so that the bar counts only rows that are on the disk
        tokens += sum(completion.tokens or 0 for _, completion in group)
        bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):.0f} tokens/s", refresh=False)
        bar.update(len(group))


def _bar(slots: Sequence[Slot], rows: Mapping[int, Any], progress: bool) -> tqdm:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    label = ", ".join(dict.fromkeys(slot.suite.name for slot in slots))
    return tqdm(
        total=len(slots), initial=len(rows), desc=label, unit="completion", disable=not progress, smoothing=0.05
    )
