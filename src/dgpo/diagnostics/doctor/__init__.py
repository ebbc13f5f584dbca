"""The doctor: what is wrong with a run, from its log and its recorded tokens, causes before what follows from them."""

from __future__ import annotations

import dataclasses
import os

from dgpo.diagnostics.doctor import (
    rules_anchor,
    rules_falls,
    rules_functions,
    rules_gradient,
    rules_lengths,
    rules_log,
    rules_normaliser,
    rules_rate,
    rules_reference,
    rules_rewards,
    rules_sampler,
    rules_solved,
    rules_trends,
    rules_weights,
)
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.coverage import can_tell, covered, lacking, seen, unknown
from dgpo.diagnostics.doctor.finding import SEVERITIES, Finding, Found, Rule, text
from dgpo.runs.log import Log
from dgpo.runs.run import Run

RULES: tuple[Rule, ...] = (
    *(rule for rule in rules_log.RULES if rule.severity != "note"),
    *rules_rate.RULES,
    *(rule for rule in rules_gradient.RULES if rule.severity == "error"),
    *rules_normaliser.RULES,
    *rules_lengths.RULES[:2],
    *rules_rewards.RULES,
    *rules_reference.RULES,
    *rules_functions.RULES,
    *rules_weights.RULES,
    *rules_sampler.RULES,
    *rules_anchor.RULES,
    *rules_falls.RULES,
    *rules_lengths.RULES[2:],
    *rules_trends.RULES,
    *rules_solved.RULES,
    *(rule for rule in rules_gradient.RULES if rule.severity != "error"),
    *(rule for rule in rules_log.RULES if rule.severity == "note"),
)
"""All rules; among findings of one severity this is their order."""

LATER = 0.1
"""Share of the run by which a cause may seem to begin after its consequence: neither beginning is known exactly."""

AT_ONCE = 2
"""Steps within which two findings begin at the same time."""


def diagnose(source: str | os.PathLike[str] | Run | Case) -> list[Finding]:
    """The findings of all rules: causes before what follows from them, otherwise errors first.

    Args:
        source: a run folder (`DGPOConfig(record=...)`), a `Run`, or a log of any trainer that `load_any` reads.

    A rule without the data that it needs reports nothing, which `unknown` says; findings that another one explains are
    left out.

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
    return _in_order(left, slack=LATER * (case.log.rows[-1][0] - case.log.rows[0][0]) if case.log.rows else 0.0)


def _in_order(findings: list[Finding], slack: float) -> list[Finding]:
    """Causes first, each followed by its consequences; a cause ranks with the most severe of these."""
    leads_to = {rule.name: rule.leads_to for rule in RULES}
    place = {finding.rule: number for number, finding in enumerate(findings)}

    def leads(one: Finding, other: Finding) -> bool:
        if other.rule not in leads_to[one.rule]:
            return False
        later = 0 if one.step is None or other.step is None else one.step - other.step
        if one.rule not in leads_to[other.rule]:
            return later <= slack
        # where each may lead to the other, the earlier one does; at the same time, the one that explains more
        return later < 0 if abs(later) > AT_ONCE else len(leads_to[one.rule]) > len(leads_to[other.rule])

    parent: dict[str, str] = {}
    for finding in findings:
        causes = [one for one in findings if leads(one, finding) and not _descends(one.rule, finding.rule, parent)]
        # not what follows from another of them
        causes = [one for one in causes if not any(leads(other, one) for other in causes)] or causes
        if causes:
            # the gravest, and of these the earliest
            cause = min(causes, key=lambda one: (SEVERITIES.index(one.severity), one.step or 0, place[one.rule]))
            parent[finding.rule] = cause.rule
    follows = [dataclasses.replace(one, follows=parent.get(one.rule)) for one in findings]
    children: dict[str | None, list[Finding]] = {}
    for one in follows:
        children.setdefault(one.follows, []).append(one)

    def rank(one: Finding) -> int:
        return min([SEVERITIES.index(one.severity), *(rank(child) for child in children.get(one.rule, []))])

    def listed(cause: str | None) -> list[Finding]:
        found: list[Finding] = []
        for one in sorted(children.get(cause, []), key=lambda one: (rank(one), place[one.rule])):
            found += [one, *listed(one.rule)]
        return found

    return listed(None)


def _descends(rule: str, ancestor: str, parent: dict[str, str]) -> bool:
    while rule in parent:
        rule = parent[rule]
        if rule == ancestor:
            return True
    return False


def as_markdown() -> str:
    """The table of the rules, as in the documentation."""
    lines = ["| rule | severity | fires on | cause | remedy |", "| --- | --- | --- | --- | --- |"]
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
    "lacking",
    "seen",
    "text",
    "unknown",
]
