"""Rules and their findings."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dgpo.diagnostics.doctor.case import Case

Severity = Literal["error", "warning", "note"]
Confidence = Literal["certain", "likely", "possible"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault of a run, or something worth knowing about it.

    Attributes:
        rule: name of the rule, as in the table of the documentation.
        severity: "error": the run learns nothing or something false; "warning": it learns less than it could;
            "note": not a fault, but it explains a curve that users ask about.
        title: one sentence.
        evidence: measurements, with their steps.
        cause: why it happens.
        remedy: what to change.
        step: where it begins; None if unknown.
        confidence: "certain": counted, or true of every logged value; "likely": a level beyond its limit by its
            98 % interval; "possible": the log allows other explanations.
        follows: the rule of the finding that this one follows from; None if it is a cause itself.
    """

    rule: str
    severity: Severity
    title: str
    evidence: tuple[str, ...]
    cause: str
    remedy: str
    step: int | None = None
    confidence: Confidence = "likely"
    follows: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a check; fields that are None are taken from the rule."""

    title: str
    evidence: Sequence[str]
    step: int | None = None
    severity: Severity | None = None
    cause: str | None = None
    remedy: str | None = None
    confidence: Confidence | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of the doctor.

    Attributes:
        name: name of the rule.
        severity: severity of its finding, unless the check sets another.
        fires: the condition, with its limits.
        cause, remedy: general texts; a check may be more precise.
        check: a pure function of the case; returns None if nothing is wrong or the data is missing.
        explains: names of rules whose findings only follow from this one; they are dropped when it fires.
        leads_to: names of rules whose findings follow from this one but are worth reading too; they are listed after
        it,
            as its consequences, unless they began before it.
        confidence: how sure its finding is, unless the check sets another.
    """

    name: str
    severity: Severity
    fires: str
    cause: str
    remedy: str
    check: Callable[[Case], Found | None]
    explains: tuple[str, ...] = ()
    leads_to: tuple[str, ...] = ()
    confidence: Confidence = "likely"

    def __call__(self, case: Case) -> Finding | None:
        found = self.check(case)
        if found is None:
            return None
        return Finding(
            rule=self.name,
            severity=found.severity or self.severity,
            title=found.title,
            evidence=tuple(found.evidence),
            cause=found.cause or self.cause,
            remedy=found.remedy or self.remedy,
            step=found.step,
            confidence=found.confidence or self.confidence,
        )


def text(findings: Sequence[Finding], width: int = 100, unknown: Mapping[str, str] | None = None) -> str:
    """The findings as plain text, causes first, and what cannot be told; one line if nothing was found.

    Args:
        findings: of `diagnose`.
        width: of a line.
        unknown: what cannot be told -> why, as `coverage.unknown` gives it.
    """
    found = [_paragraph(finding, width) for finding in findings]
    if not findings:
        found.append("nothing found: no rule of the doctor fires on " + ("what was read" if unknown else "this run"))
    if unknown:
        lines = ["cannot tell"]
        for question, why in unknown.items():
            lines += textwrap.wrap(f"{question}: {why}", width, initial_indent="  ", subsequent_indent="    ")
        found.append("\n".join(lines))
    return "\n\n".join(found)


def _paragraph(finding: Finding, width: int) -> str:
    about = [*([] if finding.step is None else [f"from step {finding.step}"]), finding.confidence]
    lines = [f"{finding.severity.upper()}  {finding.rule} ({', '.join(about)})", *_wrapped("", finding.title, width)]
    if finding.follows is not None:
        lines += _wrapped("follows   ", f"from {finding.follows}", width)
    for label, words in (("evidence", finding.evidence), ("cause", (finding.cause,)), ("remedy", (finding.remedy,))):
        for number, sentence in enumerate(words):
            lines += _wrapped(f"{label if number == 0 else '':<10}", sentence, width)
    return "\n".join(lines)


def _wrapped(label: str, sentence: str, width: int) -> list[str]:
    first, rest = f"  {label}", "  " + " " * len(label)
    return textwrap.wrap(
        sentence, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )
