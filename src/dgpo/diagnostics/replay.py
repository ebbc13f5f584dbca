"""What-if replay: other objectives on the recorded updates of a run, without running it again.

First order only: the policies and responses are those of the run. Replay shows how the methods differ on the same
tokens, not how a run with another method would have continued.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dgpo import objectives as registry
from dgpo.diagnostics.naming import label, unregistered
from dgpo.diagnostics.weighed import QUANTILES, Valid, statistics
from dgpo.files import write_json_atomic
from dgpo.kl import k3
from dgpo.objectives import OBJECTIVES, Objective
from dgpo.regions import REGIONS
from dgpo.runs.info import objective_of
from dgpo.runs.run import Run
from dgpo.runs.schema import in_words
from dgpo.runs.tokens import complete, whole

SCHEMA = "dgpo.replay/1"
Choice = Objective | str | tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One objective on all replayed updates. Statistics are means over updates unless stated otherwise.

    With n the valid tokens of an update, N the norm of ∇log π in the logits (`logit_norm`), r the ratio and Σ over the
    tokens::

        bias               Σ|A|·|w - r| / Σ|A|·r             distance to unclipped importance sampling, the unbiased one
        bias_by_region     Σ_R |A|·|w - r| / Σ|A|·r          adds up to `bias`
        bias_equal_step    Σ|p_w - p_r|,  p_w = |A|·w·N / Σ|A|·|w|·N    the same with both scaled to equal steps
        cosine             Σ w·r·A²·N² / √(Σ(w·A·N)² · Σ(r·A·N)²)       as if the gradients of tokens were orthogonal
        step_size          E[|A|·|w|·N] = Σ|A|·|w|·N / tokens of the optimiser step

    Attributes:
        label: name, and the fields that differ from their defaults.
        name: registered name, or import path of an unregistered objective.
        fields: all fields.
        own: whether the run was trained with it.
        adaptive: whether its weights depend on the batch that it is calibrated on: here all tokens of an update, in the
            trainer those of a micro-batch, so that with several of them its statistics are not those of the log.
        weight: quantile -> w, the weight on ∇log π.
        weight_on_prob: quantile -> w/π, the weight on ∇π.
        weight_mean: mean of w.
        weight_max: the largest w of all updates.
        zero_fraction: share of tokens with w = 0.
        ess: (Σ|w|)² / (n·Σw²).
        mass: region -> share of Σ|A·w|. Over the whole update, as `ess`; the trainer logs the mean of both over the
            micro-batches.
        gradient: region -> share of Σ|A·w|·N.
        bias, bias_by_region, bias_equal_step, cosine, step_size: above.
        factor: multiplier of the learning rate (or of w) that makes the mean step equal to the reference's; None if one
            of the two takes no step.
        top_percent_share: share of Σ|A·w|·N in the largest 1 % of the tokens.
        series: the same statistics by update, in the order of `Replay.updates`; names such as "mass/left". Not in JSON.
    """

    label: str
    name: str
    fields: dict[str, Any]
    own: bool
    adaptive: bool
    weight: dict[float, float]
    weight_on_prob: dict[float, float]
    weight_mean: float
    weight_max: float
    zero_fraction: float
    ess: float
    mass: dict[str, float]
    gradient: dict[str, float]
    bias: float
    bias_by_region: dict[str, float]
    bias_equal_step: float
    cosine: float
    step_size: float
    factor: float | None
    top_percent_share: float
    series: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without `series`; infinite fields as words."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "series"}
        for name in ("weight", "weight_on_prob"):
            found[name] = {str(q): value for q, value in found[name].items()}
        return found | {"fields": in_words(self.fields)}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What `replay` returns.

    Attributes:
        rows: one per objective, the least biased first.
        updates: the replayed updates.
        skipped: updates in which every advantage is 0; they have no gradient under any objective.
        incomplete: updates that are left out because the file of a rank is missing or damaged.
        tokens: valid tokens of the replayed updates.
        exact: whether N is the norm of ∇log π everywhere, or the bound 1 - π.
        reference: label of the run's own objective, whose step `factor` refers to. None if it is not known; `factor`
            then refers to unclipped importance sampling.
        unregistered: name of the run's own objective, if `run.json` names one that is not registered here.
        eps_low, eps_high: the regions, the same for every row, are those of the run's own objective, or of the ratios
            0.8 to 1.2 where it is not known. None where a boundary is not the same for all tokens, or there is none.
        fraction: region -> share of the valid tokens, mean over updates.
        series: the same by update, and "kl/old" the k3 estimate of KL(π_old ‖ π_θ), and
            "step_size" that of unclipped importance sampling.
    """

    rows: tuple[Row, ...]
    updates: tuple[int, ...]
    skipped: tuple[int, ...]
    incomplete: tuple[int, ...]
    tokens: int
    exact: bool
    reference: str | None
    unregistered: str | None
    eps_low: float | None
    eps_high: float | None
    fraction: dict[str, float]
    series: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the series."""
        plain = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("rows", "series")
        }
        return {"schema": SCHEMA, **plain, "rows": [row.as_dict() for row in self.rows]}

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write `as_dict` as JSON, atomically.

        Raises:
            OSError: the file cannot be written.
        """
        return write_json_atomic(path, self.as_dict())


@torch.no_grad()
def replay(
    run: Run,
    objectives: str | Objective | Iterable[Choice] = "all",
    *,
    updates: Iterable[int] | None = None,
    own: Choice | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Replay:
    """Compute the weights of every objective on the recorded tokens of a run; adaptive ones are calibrated per update.

    The parts of an update on several ranks are joined; damaged files are listed in `run.damaged`. ρ is 1 and every
    token counts the same, as under `token-mean`.

    Args:
        run: a run, from `load`.
        objectives: "all" for every registered objective with its defaults; or one or several of: a name, (name,
            fields), an `Objective`. The run's own objective is always included.
        updates: updates to replay; None for all recorded ones.
        own: the objective that the run was trained with; None reads it from `run.json`. If that names one that is
            not registered here, no row is the run's own.
        track: the updates as they are replayed, one after the other; to show progress (`tqdm.tqdm`).

    Raises:
        ValueError: if an objective or field is unknown, an update was not recorded, no complete update has an
            advantage, or a valid token has a NaN or infinity.
    """
    mine = _make(own) if own is not None else objective_of(run.info)
    chosen = _chosen(objectives, mine)
    wanted = list(run.updates if updates is None else updates)
    if missing := sorted(set(wanted) - set(run.updates)):
        raise ValueError(f"updates {missing} were not recorded in {str(run.folder)!r}; recorded: {run.updates}")

    kept: list[int] = []
    skipped: list[int] = []
    incomplete: list[int] = []
    common: list[dict[str, Tensor]] = []
    measured: list[list[dict[str, Tensor]]] = [[] for _ in chosen]
    edges: dict[str, set[float]] = {"low": set(), "high": set()}
    count, exact = 0, True
    for update in track(wanted):
        parts = list(run.recorded([update]))
        if not complete(parts):
            incomplete.append(update)
            continue
        if not any(bool((part.tokens.advantage != 0).any()) for part in parts):
            skipped.append(update)
            continue
        tokens, sum_pi_squared, step_tokens = whole(parts)
        try:
            valid = Valid.of(tokens, sum_pi_squared=sum_pi_squared, objective=mine)
        except ValueError as error:
            raise ValueError(f"update {update} in {str(run.folder)!r}: {error}") from error
        kept.append(update)
        # the smallest and the largest boundary tell whether it is the same for all tokens
        edges["low"] |= {float(valid.low.amin()), float(valid.low.amax())}
        edges["high"] |= {float(valid.high.amin()), float(valid.high.amax())}
        count, exact = count + len(valid.ratio), exact and valid.exact
        common.append(_common(valid, step_tokens))
        for series, objective in zip(measured, chosen, strict=True):
            series.append(statistics(valid, valid.weight(objective), step_tokens))
    if not kept:
        raise ValueError(
            f"none of the updates {wanted} in {str(run.folder)!r} is complete and has a token whose advantage is not "
            f"0: there is nothing to replay ({len(skipped)} without an advantage, {len(incomplete)} incomplete; "
            f"damaged files: {', '.join(run.damaged) or 'none'})"
        )
    shared = _series(common)
    # `_chosen` puts the run's own objective first
    step = fmean((shared if mine is None else _series(measured[0]))["step_size"])
    rows = [
        _row(objective, _series(found), step, own=mine is not None and objective == mine)
        for objective, found in zip(chosen, measured, strict=True)
    ]
    return Replay(
        rows=tuple(sorted(rows, key=lambda row: row.bias)),
        updates=tuple(kept),
        skipped=tuple(skipped),
        incomplete=tuple(incomplete),
        tokens=count,
        exact=exact,
        reference=None if mine is None else label(mine),
        unregistered=unregistered(run.info) if mine is None else None,
        eps_low=_offset(edges["low"]),
        eps_high=_offset(edges["high"]),
        fraction={region: fmean(shared[f"fraction/{region}"]) for region in REGIONS},
        series=shared,
    )


ALIKE = 0.99
"""Cosine to unclipped importance sampling from which a method is said to take the same direction."""


def verdict(found: Replay) -> str:
    """What the rows come to, in words: how far the run's own objective is off, and whether another one differs."""
    own = next((row for row in found.rows if row.own), None)
    alike = [row for row in found.rows if row.cosine >= ALIKE]
    other = sorted((row for row in found.rows if row.cosine < ALIKE), key=lambda row: row.cosine)
    words = []
    if own is not None:
        place = 1 + sum(row.bias < own.bias for row in found.rows)
        words.append(
            f"The weights of {own.label} are {100 * own.bias:.2g} % away from unclipped importance sampling on these "
            f"tokens, number {place} of {len(found.rows)}."
        )
    factors = [row.factor for row in alike if row.factor]
    if len(alike) == len(found.rows):
        words.append(
            f"All {len(alike)} take nearly the same direction (cosine of at least {ALIKE}): only step sizes differ."
        )
    elif alike:
        words.append(f"{len(alike)} of {len(found.rows)} take nearly the same direction (cosine of at least {ALIKE}).")
    if factors and max(factors) > 1.05 * min(factors) and len(alike) > 1:
        words.append(
            f"Among these a learning rate of {min(factors):.2g} to {max(factors):.2g} times this one gives equal steps."
        )
    if other:
        named = ", ".join(f"{row.label} ({row.cosine:.2f})" for row in other[:3])
        more = "" if len(other) < 4 else f" and {len(other) - 3} more"
        words.append(f"Another direction: {named}{more}.")
    return " ".join(words)


def _offset(edges: set[float]) -> float | None:
    """abs(boundary - 1) as a ratio, for boundaries in nats; None if they differ or one is infinite."""
    # rounded: boundaries are logs in float32
    found = [round(abs(math.expm1(edge)), 6) for edge in edges if math.isfinite(edge)]
    return found[0] if len(found) == len(edges) == 1 else None


def _common(valid: Valid, step_tokens: float) -> dict[str, Tensor]:
    """Statistics that do not depend on the objective."""
    found = {f"fraction/{name}": mask.float().mean() for name, mask in valid.regions.items()}
    found["kl/old"] = k3(valid.old_logprob, valid.logprob).mean()
    found["step_size"] = statistics(valid, valid.ratio, step_tokens)["step_size"]
    return found


def _series(found: Sequence[Mapping[str, Tensor]]) -> dict[str, tuple[float, ...]]:
    table = torch.stack([torch.stack([value.double() for value in row.values()]) for row in found])
    return {name: tuple(column) for name, column in zip(found[0], table.T.tolist(), strict=True)}


def _row(objective: Objective, series: dict[str, tuple[float, ...]], reference: float, own: bool) -> Row:
    means = {name: fmean(values) for name, values in series.items()}

    def by_region(name: str) -> dict[str, float]:
        return {region: means[f"{name}/{region}"] for region in REGIONS}

    return Row(
        label=label(objective),
        name=registry.name_of(type(objective)),
        fields={field.name: getattr(objective, field.name) for field in fields(objective)},
        own=own,
        adaptive="batch" in objective.reads,
        weight={q: means[f"weight/q{q}"] for q in QUANTILES},
        weight_on_prob={q: means[f"weight_on_prob/q{q}"] for q in QUANTILES},
        weight_mean=means["weight/mean"],
        weight_max=max(series["weight/max"]),
        zero_fraction=means["weight/zero_fraction"],
        ess=means["weight/ess"],
        mass=by_region("mass"),
        gradient=by_region("gradient"),
        bias=means["bias"],
        bias_by_region=by_region("bias"),
        bias_equal_step=means["bias_equal_step"],
        cosine=means["cosine"],
        step_size=means["step_size"],
        factor=reference / means["step_size"] if min(reference, means["step_size"]) > 0 else None,
        top_percent_share=means["top_percent_share"],
        series=series,
    )


def _make(choice: Choice) -> Objective:
    if isinstance(choice, Objective):
        return choice
    name, given = (choice, {}) if isinstance(choice, str) else choice
    return registry.make(name, **given)


def _chosen(objectives: str | Objective | Iterable[Choice], mine: Objective | None) -> list[Objective]:
    """The objectives without duplicates; the run's own first."""
    wanted: Iterable[Choice] = [objectives] if isinstance(objectives, str | Objective) else objectives
    if objectives == "all":
        wanted = OBJECTIVES
    made = [] if mine is None else [mine]
    for objective in map(_make, wanted):
        made += [] if objective in made else [objective]
    return made
