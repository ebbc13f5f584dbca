"""`dgpo doctor`: what went wrong in a run, and why; or whether an engine's workers see the plug-in."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dgpo.cli.errors import UserError, user_input
from dgpo.cli.own_objective import add_flag, import_named, not_known
from dgpo.diagnostics.doctor import Case, Finding, can_tell, covered, diagnose, lacking, seen, text, unknown
from dgpo.diagnostics.doctor.measures import TOKEN_ID
from dgpo.diagnostics.naming import unregistered
from dgpo.report.tokens import decoder
from dgpo.runs.run import Run, load_any


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo doctor`."""
    made = argparse.ArgumentParser(
        prog="dgpo doctor",
        description="Find out what went wrong in a run, from its logs and recorded tokens: evidence, cause and remedy, "
        "most important first. Or, with --engine, whether the workers of an engine see the plug-in, and why not. Exit "
        "code: 0; 1 for a finding of severity error or a worker without the plug-in; 2 if the log is not enough to "
        "tell.",
    )
    made.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folder that a run was recorded to, output folder of a trainer, checkpoint, or a log: trainer_state.json, "
        "JSONL, CSV, the console output of TRL, verl, ms-swift, ..., an event file of TensorBoard",
    )
    made.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="QUANTITY=NAME",
        help="the log has this quantity under a name that is not known: --map reward=reward_mean; may be repeated",
    )
    add_flag(made)
    made.add_argument(
        "--verbose", action="store_true", help="list every quantity that was read, and every question that stays open"
    )
    made.add_argument("--json", action="store_true", help="findings as JSON, for programs")
    made.add_argument("--engine", choices=["verl"], help="check the workers of this engine")
    made.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="cluster to join; default: the one that Ray finds, or else a new one on this machine; "
        "auto: the one that Ray finds, or else an error",
    )
    made.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of ray_kwargs.ray_init.runtime_env.env_vars of your job; may be repeated",
    )
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo doctor argv`: 1 if there is a finding of severity error, or a node that does not see the plug-in."""
    arguments = parser().parse_args(argv)
    if bool(arguments.runs) == (arguments.engine is not None):
        raise UserError(
            f"RUN = {arguments.runs} and --engine = {arguments.engine}; expected one or several runs, or --engine"
        )
    if arguments.engine is not None:
        return _verl(arguments.ray_address, _pairs("--env", arguments.env))
    with user_input():
        import_named(arguments.objective)
    return _runs(arguments.runs, arguments.json, _pairs("--map", arguments.map), verbose=arguments.verbose)


def _runs(runs: list[str], as_json: bool, mapped: dict[str, str], *, verbose: bool) -> int:
    with user_input():
        logs = {run: load_any(run, mapped) for run in runs}
        cases = {run: Case.of(log) for run, log in logs.items()}
    found = {run: diagnose(case) for run, case in cases.items()}
    read = {run: seen(case) for run, case in cases.items()}
    if as_json:
        print(json.dumps({run: [one.as_dict() for one in findings] for run, findings in found.items()}, indent=2))
    else:
        for run, findings in found.items():
            findings = _with_texts(findings, logs[run])
            said = (
                [text(findings, unknown=(unknown if verbose else lacking)(read[run]))]
                if findings or can_tell(read[run])
                else []
            )
            # findings first; where there are none, why
            shown = [_coloured(line) for line in "\n".join(said).split("\n")] if said else []
            print("\n".join([run, *shown, *_about(logs[run], _read(read[run], verbose))]))
    if untold := [run for run in runs if not found[run] and not can_tell(read[run])]:
        raise UserError("; ".join(f"{run!r}: {covered(read[run])}" for run in untold))
    return int(any(one.severity == "error" for findings in found.values() for one in findings))


def _read(found: Mapping[str, int], verbose: bool) -> str:
    return covered(found) if verbose else f"{covered(found, listed=False)}; --verbose lists them"


def _with_texts(findings: Sequence[Finding], run: Run) -> list[Finding]:
    """The findings with the text of each token beside its id, where the run has its tokenizer."""
    if not any(TOKEN_ID.search(line) for finding in findings for line in finding.evidence):
        return list(findings)  # reading a tokenizer takes seconds
    decode, _ = decoder(run)
    if decode is None:
        return list(findings)

    def named(line: str) -> str:
        return TOKEN_ID.sub(lambda found: f"token {decode([int(found[1])])!r} (id {found[1]})", line)

    return [replace(finding, evidence=tuple(map(named, finding.evidence))) for finding in findings]


COLOURS = {"ERROR": "1;31", "WARNING": "1;33", "NOTE": "1;34"}
"""Of a severity at the start of a line (ECMA-48)."""


def _coloured(line: str) -> str:
    """A line with its severity in colour, on a terminal that has colours (no-color.org)."""
    severity = line.partition(" ")[0]
    if severity not in COLOURS or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return line
    return f"\x1b[{COLOURS[severity]}m{severity}\x1b[0m{line.removeprefix(severity)}"


def _about(run: Run, coverage: str) -> list[str]:
    """What was read and how, as lines: the quantities, the file, what was left out, and names that could be mapped."""
    said = [coverage, *run.remarks]
    if (name := unregistered(run.info)) is not None:
        said.append(not_known(name))
    if offers := [f"--map {quantity}={names[0]}" for quantity, names in run.log.offers.items()]:
        said.append(f"names that look like a quantity: {', '.join(offers)}")
    return [textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False) for line in said]


def _pairs(flag: str, pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UserError(f"{flag} {pair!r} is not of the form NAME=VALUE")
        found[name] = value
    return found


def _verl(address: str | None, variables: dict[str, str]) -> int:
    from dgpo.engines.verl_doctor import inspect_workers

    with user_input((ConnectionError,)):
        found = inspect_workers(address, variables)
    if found.cluster is None:
        print("no cluster found: a local one was started, and the result holds for this machine only")
    else:
        print(f"cluster {found.cluster}")
    broken = 0
    for worker in found.workers:
        problems = worker.problems()
        broken += bool(problems)
        print(
            f"{'BROKEN' if problems else 'ok':<8}{worker.node}  verl {worker.verl}  dgpo {worker.dgpo}  {worker.python}"
        )
        for problem in problems:
            print("  - " + problem.replace("\n", "\n    "))
        for note in worker.notes():
            print(f"  note: {note}")
    print(f"{len(found.workers) - broken} of {len(found.workers)} nodes see the plug-in")
    return 1 if broken else 0
