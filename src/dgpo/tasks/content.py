"""Hashes and canonical answers that identify the content of a set of problems in any copy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

_INTEGER = re.compile(r"([-−]?)0*([0-9]+)(?:\.0+)?")


def one_spaced(text: str) -> str:
    """The text with each run of white space as one space: copies differ in line breaks and trailing spaces."""
    return " ".join(text.split())


def text_hash(text: str) -> str:
    """SHA-256 of a text, white space normalised."""
    return hashlib.sha256(one_spaced(text).encode()).hexdigest()


def content_hash(rows: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of (problem, answer) pairs in order.

    One line per pair: the JSON list of the two texts, white space normalised, without spaces, UTF-8 and not escaped,
    then a line feed. Ids and other columns are ignored.
    """
    digest = hashlib.sha256()
    for problem, answer in rows:
        pair = [one_spaced(problem), one_spaced(answer)]
        digest.update(json.dumps(pair, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def answers_hash(answers: Iterable[str]) -> str:
    """SHA-256 of the sorted answers, one per line: independent of the format and order of the problems."""
    return hashlib.sha256("\n".join(sorted(map(one_spaced, answers))).encode()).hexdigest()


def canonical_integer(text: str) -> str:
    """An integer as it is usually written: "055" -> "55", "27.0" -> "27", "1,234" -> "1234"; other text unchanged."""
    match = _INTEGER.fullmatch(text.strip().replace(",", ""))
    return ("-" if match[1] else "") + match[2] if match else text.strip()


def after_hashes(text: str) -> str:
    """The final answer of a GSM8K solution: what follows the last `####`, as a canonical integer."""
    return canonical_integer(text.rpartition("####")[2])


def without_dollars(text: str) -> str:
    """An OlympiadBench answer without its mathematics environments: "$8$,$4$" -> "8, 4", "$-1$." -> "-1"."""
    return re.sub(r"\$\s*,\s*\$", ", ", text.strip()).rstrip(".").strip("$").strip()
