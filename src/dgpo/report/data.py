"""Runs as plain JSON: the data of the page and the figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgpo.diagnostics.doctor import Case, Finding, can_tell, covered, diagnose, seen, unknown
from dgpo.diagnostics.naming import label, unregistered
from dgpo.diagnostics.replay import Replay, replay, verdict
from dgpo.objectives import Objective
from dgpo.report import evaluations, headline, series, tokens, weight_curves, written
from dgpo.report.grouping import group
from dgpo.report.regions import drawn_regions
from dgpo.report.sample import Sample, sample
from dgpo.runs.info import objective_of
from dgpo.runs.run import Run, load_any

SCHEMA = "dgpo.report/1"
NO_TOKENS = "this run has no recorded tokens (record: FOLDER writes them while training)"


def collect(
    runs: Sequence[str | os.PathLike[str]], evaluation: Sequence[str | os.PathLike[str]] = ()
) -> dict[str, Any]:
    """Read runs and evaluations into the data of the page.

    The same input gives the same output. Of a long run, only the doctor reads all recorded tokens (see `sample`).

    Args:
        runs: folders that were recorded to, or logs of any trainer (`load_any`): curves and findings.
        evaluation: folders of `dgpo eval`, or their results.json.

    Raises:
        ValueError: if a folder is not a run, is given twice, or has neither metrics nor tokens; or a file is damaged.
        FileNotFoundError: if a run does not exist.
        ModuleNotFoundError: if pyarrow is not installed and a run has recorded tokens.
    """
    folders = [Path(path) for path in runs]
    results = evaluations.readable(evaluation)
    loaded = [load_any(folder) for folder in folders]
    for run in loaded:
        if not any(set(row) - {"step"} for row in run.metrics if "event" not in row) and not run.updates:
            raise ValueError(f"{str(run.folder)!r} has neither metrics nor recorded tokens: there is nothing to report")
    cases = [Case.of(run) for run in loaded]
    findings = [diagnose(case) for case in cases]
    samples = [
        # the updates that findings name are always among those that are read
        sample(run, also=[finding.step for finding in found if finding.step is not None])
        for run, found in zip(loaded, findings, strict=True)
    ]
    own = [objective_of(run.info) for run in loaded]
    read = [tokens.moved(part, part.chosen, objective) for part, objective in zip(samples, own, strict=True)]
    widest = tokens.reach(read)
    chosen = weight_curves.registered() | {label(objective): objective for objective in own if objective is not None}
    levels = [*tokens.old_probs(read)]
    levels += [("", q) for q in weight_curves.OLD_PROBS]
    names = labels(folders)
    groups = group(names, [None if one is None else label(one) for one in own], [run.info for run in loaded])
    colours = groups.of if groups.several else range(len(loaded))
    in_headlines = {
        (end.folder, benchmark)
        for run in loaded
        for benchmark, ends in headline.compared(run.info, results).items()
        for end in ends
        if end is not None
    }
    return {
        "schema": SCHEMA,
        "groups": asdict(groups) | {"several": groups.several},
        "runs": [
            {
                "colour": place,
                **_run(run, part, name, objective, moved, widest, found, seen(case), results, len(loaded)),
            }
            for run, part, name, objective, moved, found, case, place in zip(
                loaded, samples, names, own, read, findings, cases, colours, strict=True
            )
        ],
        "charts": {
            name: {"title": chart.title, "unit": chart.unit, "lines": [words for words, _ in chart.lines]}
            for name, chart in series.CHARTS.items()
        },
        "weights": weight_curves.curves(chosen, weight_curves.grid(widest), levels),
        "explorer": weight_curves.explored(),
        "evaluations": [
            {
                "label": name,
                "in_headline": (found.folder, row["benchmark"]) in in_headlines,
                **row,
            }
            for name, found in zip(labels([one.folder for one in results]), results, strict=True)
            for row in found.rows()
        ],
    }


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest distinct ends of the paths; a folder called `record` is named by its parent.

    Raises:
        ValueError: if two are the same folder.
    """
    parts = [folder.resolve().parts for folder in folders]
    for i, path in enumerate(parts):
        if path in parts[:i]:
            raise ValueError(f"{str(folders[i])!r} is given twice; expected different folders")
    short = [path[:-1] if path[-1] == "record" else path for path in parts]
    parts = short if len({*short}) == len(parts) else parts
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _run(
    run: Run,
    part: Sample,
    name: str,
    objective: Objective | None,
    found: tokens.Moved,
    widest: float,
    findings: Sequence[Finding],
    there: Mapping[str, int],
    results: Sequence[evaluations.Results],
    runs: int,
) -> dict[str, Any]:
    log, info = run.log, run.info
    found_replay, why = _replay(part, found)
    decode, undecoded = tokens.decoder(run)
    top = []
    if found_replay is not None and objective is not None:
        top = tokens.top_tokens(part, found_replay.updates, objective, decode)
    return {
        "label": name,
        "objective": None if objective is None else label(objective),
        "unregistered": unregistered(info),
        "info": {key: value for key, value in info.items() if key != "config"},
        "config": info.get("config") or {},
        "summary": summary(run),
        "headline": [
            {"name": change.name, **asdict(change)}
            for change in headline.evaluated(info, results) or headline.logged(log)
        ],
        "resumed": list(log.resumed),
        "charts": series.charts(log),
        "evaluations": series.evaluations(log),
        "findings": [finding.as_dict() for finding in findings],
        "can_tell": can_tell(there),
        "covered": covered(there),
        "unknown": unknown(there),
        "recorded": len(run.updates),
        "read": len(found.updates),
        "every": part.every,
        "chosen": len(part.chosen),
        "thinned": part.every > 1 or len(part.chosen) < len(part.places),
        "broken": list(found.broken),
        "incomplete": sorted({*part.incomplete, *found.incomplete}),
        "damaged": list(run.damaged),
        "remarks": list(run.remarks),
        "no_tokens": why,
        "regions": drawn_regions(part, log, found_replay),
        "histogram": tokens.counts(found, widest) if len(found.log_ratio) else None,
        "replay": None if found_replay is None else found_replay.as_dict(),
        "verdict": None if found_replay is None else verdict(found_replay),
        "top_tokens": top,
        "undecoded": undecoded,
        "written": written.written(part, objective, decode, runs),
    }


def _replay(part: Sample, found: tokens.Moved) -> tuple[Replay | None, str]:
    """The replay, or why there is none."""
    if not part.updates:
        return None, NO_TOKENS
    if not part.chosen or len(found.incomplete) == len(part.chosen):
        return None, "no recorded update has a readable file of every rank"
    if not len(found.log_ratio):
        return None, "no recorded token has an advantage other than 0 and finite log-probabilities"
    return replay(part, updates=found.updates), ""


def summary(run: Run) -> dict[str, Any]:
    """The main numbers of a run; None if unknown."""
    log, info, config = run.log, run.info, run.info.get("config") or {}
    model = (info.get("model") or {}).get("name")
    events = [row for row in run.metrics if "event" in row]
    steps = [*(step for step, _ in log.rows), *run.updates, *(row.get("step", row.get("_step", 0)) for row in events)]
    seconds = log.series("train_runtime")
    planned = config.get("max_steps")
    return {
        "updates": int(max(steps, default=0)),
        "planned": planned if isinstance(planned, int) and planned > 0 else None,
        "finished": events[-1]["event"] == "end" if events else None,
        "seconds": series.rounded(seconds.values[-1]) if len(seconds) else None,
        "model": None if model is None else str(model),
        "parameters": (info.get("model") or {}).get("parameters"),
        "data_rows": (info.get("data") or {}).get("rows"),
        "engine": info.get("engine"),
        "tenth": series.tenth(log["reward"]),
        **{
            name: None if (found := series.ends(series.first(log, names))) is None else list(map(series.rounded, found))
            for name, names in (
                ("reward", ("reward",)),
                ("entropy", ("entropy",)),
                ("length", ("length",)),
            )
        },
    }
