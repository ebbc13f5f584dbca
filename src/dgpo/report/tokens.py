"""Recorded tokens in the report: how far they moved, and which of them carry the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.diagnostics.weighed import boundaries_of
from dgpo.diagnostics.weights import TopToken, describe, histogram
from dgpo.files import LARGEST_TEXT, one_line
from dgpo.objectives import Objective
from dgpo.regions import regions
from dgpo.report.series import rounded
from dgpo.runs.run import Run
from dgpo.runs.tokens import Recorded, complete
from dgpo.tokens import TokenBatch

BINS = 81
TOP = 15
CONTEXT = 24
"""Number of tokens shown before and after a top token, and that are decoded before a part of a response."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are not a whole character."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The tokens with an advantage of the updates that were read, as flat vectors.

    Attributes:
        updates: the complete updates that were read.
        broken: updates with a NaN or infinity at a valid token; excluded from all token statistics.
        incomplete: updates for which the file of a rank is missing; also excluded.
        log_ratio, old_logprob, advantage: [N].
        outside: [N] bool, beyond a boundary of the run's objective.
    """

    updates: tuple[int, ...]
    broken: tuple[int, ...]
    incomplete: tuple[int, ...]
    log_ratio: Tensor
    old_logprob: Tensor
    advantage: Tensor
    outside: Tensor

    def batch(self) -> TokenBatch:
        """As one response."""
        new, mask = self.old_logprob + self.log_ratio, torch.ones(1, len(self.log_ratio), dtype=torch.bool)
        return TokenBatch(new[None], self.old_logprob[None], self.advantage[None], mask)


def moved(run: Run, updates: Sequence[int], objective: Objective | None) -> Moved:
    """Read the tokens of some updates, with the objective of the run if it is known."""
    parts: list[tuple[Tensor, ...]] = []
    read, broken, incomplete = [], [], []
    # `recorded` yields the ranks of an update one after the other
    for update, recorded in groupby(run.recorded(updates), key=lambda part: part.update):
        # groupby's groups share one iterator: read this one before the next
        there = list(recorded)
        found = [_flat(part.weighed, objective) for part in there]
        if not complete(there):
            incomplete.append(update)
        elif all(bool(values.isfinite().all()) for part in found for values in part):
            read.append(update)
            parts += found
        else:
            broken.append(update)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else [torch.zeros(0)] * 4
    return Moved(
        updates=tuple(read),
        broken=tuple(broken),
        incomplete=tuple(incomplete),
        log_ratio=columns[0],
        old_logprob=columns[1],
        advantage=columns[2],
        outside=columns[3].bool(),
    )


def _flat(tokens: TokenBatch, objective: Objective | None) -> tuple[Tensor, ...]:
    where = tokens.mask & (tokens.advantage != 0)
    inside = regions(tokens, boundaries_of(objective, tokens))["inside"]
    return tokens.log_ratio.detach()[where], tokens.old_logprob[where], tokens.advantage[where], ~inside[where]


def reach(found: Sequence[Moved]) -> float:
    """Half the width of the log-ratio axis: covers 99.9 % of the tokens of every run, and at least a factor of 2.5."""
    widest = max((_quantile(one.log_ratio.abs(), 0.999) for one in found if len(one.log_ratio)), default=0.0)
    # log ratios are clamped to 20 nats
    return min(max(1.05 * widest, math.log(2.5)), 20.0)


def counts(found: Moved, widest: float) -> dict[str, Any]:
    """Shares of the tokens by log ratio, for A < 0 and A > 0; together they sum to 1."""
    edges = torch.linspace(-widest, widest, BINS + 1, dtype=torch.float64).tolist()
    bins = histogram(found.batch(), edges)
    total = max(sum(bins.negative) + sum(bins.positive), 1)
    return {
        "edges": [rounded(edge, 7) for edge in edges],
        "negative": [rounded(count / total) for count in bins.negative],
        "positive": [rounded(count / total) for count in bins.positive],
        "tokens": total,
    }


def old_probs(found: Sequence[Moved]) -> list[tuple[str, float]]:
    """Values of π_old for weight curves that depend on it: (description, π_old), pooled over the runs."""
    old = torch.cat([torch.zeros(0), *(one.old_logprob for one in found)])
    outside = torch.cat([torch.zeros(0, dtype=torch.bool), *(one.outside for one in found)])
    chosen = []
    if int(outside.sum()) >= 10:
        chosen.append(("median of the tokens outside the boundaries", math.exp(_quantile(old[outside], 0.5))))
    if len(old):
        chosen.append(("median of all tokens", math.exp(_quantile(old, 0.5))))
    return chosen


def _quantile(values: Tensor, q: float) -> float:
    """Quantile without interpolation, and without the size limit of torch.quantile."""
    return float(values.double().kthvalue(max(1, min(len(values), math.ceil(q * len(values))))).values)


@torch.no_grad()
def top_tokens(
    run: Run, updates: Sequence[int], objective: Objective, decode: Callable[[Sequence[int]], str] | None
) -> list[dict[str, Any]]:
    """The tokens with the largest share of Σ|A·w|·N in their update, as JSON."""
    found: list[tuple[float, int, TopToken, Recorded]] = []
    for update, recorded in groupby(run.recorded(updates), key=lambda part: part.update):
        parts = [part for part in recorded if bool((part.tokens.advantage != 0).any())]
        described = [
            describe(part.weighed, objective, token_ids=part.token_ids, sum_pi_squared=part.sum_pi_squared, top=TOP)
            for part in parts
        ]
        sizes = [one.step_size * one.tokens for one in described]
        for part, one, size in zip(parts, described, sizes, strict=True):
            # `token.share` is of one rank's part; times this, of the whole update
            share = size / max(sum(sizes), 1e-30)
            found += [(token.share * share, update, token, part) for token in one.top]
        # cut after every update: an entry keeps the tokens of its whole file in memory
        found = sorted(found, key=lambda row: (-row[0], row[1], row[2].response, row[2].position))[:TOP]
    return [
        {
            **{name: rounded(value) if isinstance(value, float) else value for name, value in asdict(token).items()},
            "share": rounded(share),
            "update": update,
            **_context(part, token, decode),
        }
        for share, update, token, part in found
    ]


def _context(part: Recorded, token: TopToken, decode: Callable[[Sequence[int]], str] | None) -> dict[str, str]:
    """The token as text, with the surrounding text of the response."""
    if part.token_ids is None or token.token_id is None or decode is None:
        return {"before": "", "text": "–" if token.token_id is None else f"#{token.token_id}", "after": ""}
    row, mask = part.token_ids[token.response], part.tokens.mask[token.response]
    at = token.position
    before = row[max(0, at - CONTEXT) : at][mask[max(0, at - CONTEXT) : at]].tolist()
    after = row[at + 1 : at + 1 + CONTEXT][mask[at + 1 : at + 1 + CONTEXT]].tolist()
    ends = (len(before), len(before) + 1, len(before) + 1 + len(after))
    text = pieces([*before, token.token_id, *after], ends, decode)
    # a part of a character has no text of its own
    return {"before": text[0], "text": text[1] or decode([token.token_id]), "after": text[2]}


def pieces(ids: Sequence[int], ends: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of successive parts of a response; together they are its text.

    A part is decoded behind the tokens before it: alone, tokenizers strip the space that it begins with, and a
    character whose bytes are in several tokens is unreadable. Such a character belongs to the part that ends it.

    Args:
        ids: of the response.
        ends: for each part, the index of the token after its last; increasing.
        decode: from token ids to text.
    """
    found, done = [], 0
    for end in ends:
        before = list(ids[max(0, done - CONTEXT) : done])
        old, new = decode(before).rstrip(UNREADABLE), decode([*before, *ids[done:end]])
        shown = new if end == len(ids) else new.rstrip(UNREADABLE)
        found.append(shown[len(old) :] if new.startswith(old) else decode(ids[done:end]))
        done = end
    return found


def decoder(run: Run) -> tuple[Callable[[Sequence[int]], str] | None, str]:
    """A function from token ids to text, by the tokenizer saved with the run; or None and the reason."""
    name = run.info.get("tokenizer")
    if not isinstance(name, str):
        return None, "no tokenizer was saved with the run"
    folder = (run.folder / name).resolve()
    if not folder.is_relative_to(Path(run.folder).resolve()) or not folder.is_dir():
        return None, f"the run has no folder {name!r} with a tokenizer"
    if large := next(
        (file for file in folder.glob("*") if file.is_file() and file.stat().st_size > LARGEST_TEXT), None
    ):
        return None, f"the tokenizer in {name!r} has a file of {large.stat().st_size:,} bytes: {large.name}"
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError:
        return None, "transformers, which reads the tokenizer, is not installed"
    try:
        # never run code from a run folder; the explicit False also keeps transformers from asking at the terminal
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - tokenizers raises Exception itself, and a damaged file can raise anything
        return None, f"the tokenizer in {name!r} cannot be read: {one_line(error)}"
    return lambda ids: _decoded(tokenizer, list(ids)), ""


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    """The text; the ids if the tokenizer, which may be damaged or of another model, fails."""
    try:
        return str(tokenizer.decode(ids))
    except Exception:  # noqa: BLE001 - as above
        return "".join(f"#{number}" for number in ids)
