"""Eleven logs of other people's runs, and what an experienced engineer sees in each (their README)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dgpo.diagnostics.doctor import Case, Log

ROOT = Path(__file__).resolve().parents[3]


def _generator():
    spec = importlib.util.spec_from_file_location("generate_doctor", ROOT / "docs" / "generate_doctor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = _generator()
"""What writes the tables of docs/doctor.md."""

FOLDER, MAPPED = PAGE.LOGS, PAGE.MAPPED

REASON = f"the logs of other people's runs are not at {FOLDER}"

FILES = (
    "01.trainer_state.json",
    "02.trainer_state.json",
    "03.trainer_state.json",
    "04.trainer_state.json",
    "05.console.log",
    "06.console.log",
    "07.verl.log",
    "08.verl.log",
    "09.custom.jsonl",
    "10.custom.jsonl",
    "11.console.log",
)


def prefix(case: Case, length: int) -> Case:
    """The run as it was after so many log lines."""
    log = case.log
    steps = {step for step, _ in log.rows[:length]}
    repeated = tuple(step for step in log.repeated if step in steps)
    return Case(log=Log(rows=log.rows[:length], repeated=repeated, mapped=log.mapped), info=case.info)
