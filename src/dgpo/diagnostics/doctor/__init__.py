"""The doctor: what is wrong with a run, from its log and its recorded tokens, most important first."""

from __future__ import annotations

import os

from dgpo.diagnostics.doctor import (
    rules_falls,
    rules_gradient,
    rules_normaliser,
    rules_rewards,
    rules_sampler,
    rules_solved,
    rules_trends,
    rules_weights,
)
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.coverage import can_tell, covered, seen
from dgpo.diagnostics.doctor.finding import SEVERITIES, Finding, Found, Rule, text
from dgpo.runs.log import Log
from dgpo.runs.run import Run

RULES: tuple[Rule, ...] = (
    *(rule for rule in rules_gradient.RULES if rule.severity == "error"),
    *rules_normaliser.RULES,
    *rules_rewards.RULES,
    *rules_weights.RULES,
    *rules_sampler.RULES,
    *rules_falls.RULES,
    *rules_trends.RULES,
    *rules_solved.RULES,
    *(rule for rule in rules_gradient.RULES if rule.severity != "error"),
)
"""All rules; among findings of one severity this is their order."""


def diagnose(source: str | os.PathLike[str] | Run | Case) -> list[Finding]:
    """The findings of all rules, errors first, without findings that another one explains.

    Args:
        source: a run folder (`DGPOConfig(record=...)`), a `Run`, a JSONL of metrics (ours, verl's or prime-rl's file
            logger, any lines with a `step`), transformers' `trainer_state.json` or the checkpoint that holds it.

    A rule without the data that it needs reports nothing.

    Raises:
        ValueError: if the source is damaged or none of these; names the line.
        FileNotFoundError: if it does not exist.
        ModuleNotFoundError: if the run has recorded tokens and pyarrow is not installed.
    """
    case = source if isinstance(source, Case) else Case.of(source)
    findings = [finding for rule in RULES if (finding := rule(case)) is not None]
    fired = {finding.rule for finding in findings}
    explained = {name for rule in RULES if rule.name in fired for name in rule.explains}
    left = [finding for finding in findings if finding.rule not in explained]
    # stable: within a severity the order of RULES remains
    return sorted(left, key=lambda finding: SEVERITIES.index(finding.severity))


def as_markdown() -> str:
    """The table of the rules, as in the documentation."""
    lines = ["| rule | | fires on | cause | remedy |", "| --- | --- | --- | --- | --- |"]
    for rule in RULES:
        cells = (f"`{rule.name}`", rule.severity, rule.fires, rule.cause, rule.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


__all__ = [
    "RULES",
    "Case",
    "Finding",
    "Found",
    "Log",
    "Rule",
    "as_markdown",
    "can_tell",
    "covered",
    "diagnose",
    "seen",
    "text",
]
