"""Compare two results.json problem by problem, and check whether they are comparable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgpo.counts import counted
from dgpo.evaluation.paired import Paired, holm, paired
from dgpo.redaction import redacted
from dgpo.runs.results import checked, problems_of, read_results

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

COLUMNS = (
    *("benchmark", "metric", "problems", "+ / - / =", "A, %", "B, %", "B - A ± SE", "95 %, unadjusted"),
    *("p", "Holm p", "detects"),
)

MAY_DIFFER = (
    "sampling.seed",
    *(f"backend.{name}" for name in ("model", "weights", "base_url", "file", "sha256", "batch_size", "versions")),
)
"""Settings that naturally differ between two models, or change only the noise."""

Source = str | os.PathLike[str] | Mapping[str, Any]
Problems = Mapping[Any, Mapping[str, Any]]
"""id -> its row of per_problem"""
Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(successes [P], samples [P])"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: benchmark, metric ("avg@32" or "greedy"), result, and p corrected for all rows (Holm)."""

    benchmark: str
    metric: str
    paired: Paired
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        a: model of the first results.
        b: model of the second; differences are B - A.
        rows: one per comparison, by benchmark, samples before greedy.
        warnings: one line for each setting that differs, and for everything that was left out.
    """

    a: str
    b: str
    rows: list[Row]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: fractions, including what the tables omit (`two_level`, `generation_se`)."""
        rows = [asdict(row) for row in self.rows]
        flat = [{**row, **row.pop("paired")} for row in rows]
        return {
            "schema": "dgpo.comparison/1",
            "a": self.a,
            "b": self.b,
            "comparisons": len(self.rows),
            "warnings": self.warnings,
            "rows": flat,
        }

    def as_table(self) -> Table:
        """For a terminal."""
        from rich.table import Table
        from rich.text import Text

        # Text: brackets in a name are not markup
        table = Table(title=Text(f"A = {self.a}\nB = {self.b}"), caption=self._caption(), min_width=64, show_lines=True)
        # two lines per row: ten columns do not fit into a terminal of 80 characters
        for place, header in enumerate(_two_by_two(COLUMNS)):
            table.add_column(header, justify="right" if place else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*_two_by_two(_cells(row)))
        return table

    def as_markdown(self) -> str:
        """The same table as Markdown, followed by the warnings."""
        alignment = [":--" if place < 2 else "--:" for place, _ in enumerate(COLUMNS)]
        lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, alignment, *map(_cells, self.rows))]
        notes = [f"* warning: {warning}" for warning in self.warnings]
        return "\n".join([f"A = `{self.a}`, B = `{self.b}`", "", *lines, "", self._caption(), "", *notes]).rstrip()

    def _caption(self) -> str:
        number = len(self.rows)
        count = counted(number, "comparison")
        return (
            "Paired by problem; SE and interval over problems; + / - / =: problems where B is better, worse, equal; "
            f"p: sign-flip test. Holm p is corrected for {count}; the intervals are not (each is for its row alone). "
            "detects: smallest true difference that such a comparison finds (paired, two-sided 5 %, power 80 %)."
        )


def compare(a: Source, b: Source, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Paired per-problem differences B - A of every benchmark in both results: accuracy of the samples, and greedy.

    Both results must be on the same problems. They may differ in prompt, sampling, budget, backend or grader, since
    that may be the question; every such difference is a warning.

    Args:
        a: results.json of `dgpo eval`: its path, its folder, or its content.
        b: the same of the other model.
        resamples: of the sign-flip test, and of the bootstrap of `two_level`.
        seed: the same results and seed give the same comparison.

    Raises:
        ValueError: if it is not such a file, no benchmark is in both, or a benchmark has different problems (ids or
            data hash).
    """
    documents = {"A": _read(a, "A"), "B": _read(b, "B")}
    benchmarks = {side: document["benchmarks"] for side, document in documents.items()}
    names = [name for name in benchmarks["A"] if name in benchmarks["B"]]
    if not names:
        has = "; ".join(f"{side} has {', '.join(found) or 'none'}" for side, found in benchmarks.items())
        raise ValueError(f"no benchmark in both results: {has}; expected at least one of the same name")
    settings = [{part: documents[side].get(part, {}) for part in ("prompt", "sampling", "backend")} for side in "AB"]
    warnings = _differences(*settings)
    for side, other in ("AB", "BA"):
        warnings += [f"{name}: in {side} only" for name in benchmarks[side] if name not in benchmarks[other]]

    found: list[tuple[str, str, Paired]] = []
    for name in names:
        problems = {side: problems_of(benchmarks[side][name], f"{side}: benchmarks.{name}") for side in "AB"}
        warnings += _same_problems(name, problems, {side: benchmarks[side][name].get("data") for side in "AB"})
        warnings += _differences(*({name: {"grader": benchmarks[side][name].get("grader")}} for side in "AB"))
        metrics, left_out = _common(name, problems)
        warnings += left_out
        found += [(name, label, paired(*counts, resamples=resamples, seed=seed)) for label, counts in metrics]
    if not found:
        raise ValueError("no metric in both results: expected samples in both, or greedy completions in both")
    corrected = holm([result.p_value for _, _, result in found])
    return Comparison(
        a=str(documents["A"].get("model")),
        b=str(documents["B"].get("model")),
        rows=[
            Row(benchmark=name, metric=metric, paired=result, p_holm=p)
            for (name, metric, result), p in zip(found, corrected, strict=True)
        ],
        warnings=warnings,
    )


def _read(source: Source, side: str) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return checked(source, f"{side}: the results")
    try:
        return read_results(source)
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from error


def _same_problems(name: str, problems: Mapping[str, Problems], data: Mapping[str, Any]) -> list[str]:
    for side, other in ("AB", "BA"):
        if extra := [identity for identity in problems[side] if identity not in problems[other]]:
            raise ValueError(
                f"{name}: {counted(len(problems['A']), 'problem')} in A, {len(problems['B'])} in B; {len(extra)} in "
                f"{side} only, first {extra[0]!r}; expected the same problems in both"
            )
    hashes = {side: found.get("sha256") if isinstance(found, Mapping) else None for side, found in data.items()}
    if unknown := [side for side, found in hashes.items() if found is None]:
        return [f"{name}: no data hash in {' and '.join(unknown)}; only the ids of the problems were compared"]
    if hashes["A"] != hashes["B"]:
        raise ValueError(f"{name}: data hash {hashes['A']} in A, {hashes['B']} in B; expected the same data in both")
    return []


def _common(name: str, problems: Mapping[str, Problems]) -> tuple[list[tuple[str, tuple[Counts, Counts]]], list[str]]:
    """Metrics in both results, as (label, counts of A and of B), in A's order of problems; and what was left out."""
    metrics: list[tuple[str, tuple[Counts, Counts]]] = []
    left_out: list[str] = []
    for metric in ("samples", "greedy"):
        graded = {side: _graded(rows, metric) for side, rows in problems.items()}
        if sides := [side for side, counts in graded.items() if counts]:
            both = [identity for identity in graded["A"] if identity in graded["B"]]
            if len(sides) == 1:
                left_out.append(f"{name}: {metric} in {sides[0]} only")
            elif missing := [identity for identity in problems["A"] if identity not in both]:
                left_out.append(
                    f"{name}: no graded {metric} in A or B for {counted(len(missing), 'problem')}: {missing[0]!r}, ..."
                )
            if both:
                (a, n_a), (b, n_b) = (np.array([counts[one] for one in both]).T for counts in graded.values())
                metrics.append(("greedy" if metric == "greedy" else _label(n_a, n_b), ((a, n_a), (b, n_b))))
    return metrics, left_out


def _graded(problems: Problems, metric: str) -> dict[Any, tuple[int, int]]:
    """id -> (successes, samples), for problems with samples."""
    if metric == "greedy":
        return {identity: (row["greedy"], 1) for identity, row in problems.items() if row.get("greedy") is not None}
    return {identity: (row["correct"], row["n"]) for identity, row in problems.items() if row["n"]}


def _label(*samples: NDArray[np.int64]) -> str:
    spans = [f"avg@{n.min()}" + (f"-{n.max()}" if n.max() > n.min() else "") for n in samples]
    return spans[0] if spans[0] == spans[1] else " / ".join(spans)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    first, second = _flat(a), _flat(b)
    found = []
    for key in dict.fromkeys([*first, *second]):
        # a name in MAY_DIFFER covers everything below it
        if first.get(key) == second.get(key) or any(f"{key}.".startswith(f"{one}.") for one in MAY_DIFFER):
            continue
        shown = redacted(f"A {first.get(key, 'not given')}, B {second.get(key, 'not given')}")
        # two long templates may differ beyond the part that fits
        found.append(f"{key}: {shown if len(shown) <= 160 and shown.isprintable() else 'two long texts that differ'}")
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: leaf
        for part, inner in value.items()
        for key, leaf in _flat(inner, f"{name}.{part}" if name else part).items()
    }


def _cells(row: Row) -> tuple[str, ...]:
    found, difference = row.paired, row.paired.difference
    return (
        row.benchmark,
        row.metric,
        str(found.problems),
        f"{found.better} / {found.worse} / {found.equal}",
        f"{100 * found.a:.1f}",
        f"{100 * found.b:.1f}",
        f"{100 * difference.value:+.1f} ± {100 * difference.se:.1f}",
        f"{100 * difference.low:+.1f} .. {100 * difference.high:+.1f}",
        *("< 0.001" if p < 0.001 else f"{p:.3f}" for p in (found.p_value, row.p_holm)),
        f"{100 * detects:.1f}" if (detects := difference.detectable or 0.0) <= 1 else "none",
    )


def _two_by_two(cells: tuple[str, ...]) -> list[Text]:
    from rich.text import Text

    return [Text(f"{upper}\n{lower}") for upper, lower in zip_longest(cells[::2], cells[1::2], fillvalue="")]
