"""What the model wrote: sampled completions with their rewards, and the gradient of each token as its colour."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from dgpo.counts import counted
from dgpo.objectives import Objective
from dgpo.report.markup import Markup, joined, shown, tag
from dgpo.report.sample import spread
from dgpo.report.sections import empty, mark
from dgpo.report.series import rounded
from dgpo.report.tokens import pieces
from dgpo.runs.completions import CUT, Completion, clipped
from dgpo.runs.run import Run
from dgpo.runs.tokens import Recorded

MOST = 160
MOST_CHARACTERS = 300_000
"""Completions on the page, and characters of them; shared by its runs."""

LONGEST_PROMPT, LONGEST_COMPLETION = 1_500, 4_000
"""Characters of a text on the page."""

MOST_BYTES = 64 * 2**20
"""Size of the token files that are read for the colours of a run."""

LEVELS = 4
"""Shades of a colour."""

NOTHING = "No completions were recorded (DGPOConfig(record=FOLDER) records those of a few prompts per generation)."

Decode = Callable[[Sequence[int]], str]
Spans = list[tuple[str, str]]
"""(class, text) of successive parts of a completion."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The recorded tokens of one completion.

    Attributes:
        changed: mean |log π_θ - log π_old| over its tokens when the policy was updated on it, in nats.
        pushed: w·A of each of its tokens; None if the objective of the run is not known.
    """

    changed: float
    pushed: tuple[float, ...] | None


def written(run: Run, objective: Objective | None, decode: Decode | None, runs: int = 1) -> list[dict[str, Any]]:
    """Completions of evenly spaced generations as JSON, in order; equal ones of a prompt in a generation once.

    Args:
        run: whose.
        objective: of the run, for the colours.
        decode: from token ids to text.
        runs: number of runs on the page.
    """
    chosen = _chosen(run.completions, MOST // runs, MOST_CHARACTERS // runs)
    found = _tokens(run, chosen, objective)
    sizes = sorted(abs(push) for one in found.values() for push in one.pushed or ())
    # nearly the largest: a single token would leave the others without colour
    largest = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
    weights = (run.info.get("config") or {}).get("reward_weights")
    # equal completions of a prompt in one generation are one entry
    equal: dict[tuple[int, str, str], list[int]] = {}
    for number, one in enumerate(chosen):
        equal.setdefault((one.update, one.prompt_id, one.completion), []).append(number)
    turns = Counter[tuple[int, str]]()
    rows = []
    for numbers in equal.values():
        # the copy whose tokens are recorded
        number = next((n for n in numbers if n in found), numbers[0])
        one = chosen[number]
        turns[one.update, one.prompt_id] += 1
        row = {
            "update": one.update,
            "times": len(numbers),
            "turn": turns[one.update, one.prompt_id],
            "prompt_id": one.prompt_id,
            "prompt": clipped(one.prompt, LONGEST_PROMPT),
            "gold": one.gold,
            "rewards": {name: rounded(value) for name, value in one.rewards.items()},
            "reward": rounded(_total(one.rewards, weights)),
            "advantage": rounded(one.advantage),
            "ended": one.ended,
            "tokens": len(one.token_ids),
            "changed": None if number not in found else rounded(found[number].changed),
            "spans": _spans(one, found.get(number), largest, decode),
        }
        rows.append(row)
    return rows


def _chosen(there: Sequence[Completion], most: int, characters: int) -> list[Completion]:
    generations = [list(group) for _, group in groupby(there, key=lambda one: one.update)]
    if not generations:
        return []
    length = sum(min(len(one.prompt), LONGEST_PROMPT) + min(len(one.completion), LONGEST_COMPLETION) for one in there)
    count = min(most * len(generations) // len(there), characters * len(generations) // max(length, 1))
    return [one for group in spread(generations, max(count, 2)) for one in group]


def _total(rewards: Mapping[str, float | None], weights: Any) -> float | None:
    """Sum of the rewards that were given, weighted as in training; None if none was given."""
    if not (isinstance(weights, list) and len(weights) == len(rewards) and all(isinstance(w, float) for w in weights)):
        weights = [1.0] * len(rewards)
    given = [weight * value for weight, value in zip(weights, rewards.values(), strict=True) if value is not None]
    return sum(given) if given else None


def _tokens(run: Run, chosen: Sequence[Completion], objective: Objective | None) -> dict[int, Tokens]:
    """Place in `chosen` -> its tokens, as the latest update on it recorded them."""
    per = max(1, math.ceil(float(run.info.get("updates_per_generation") or 1)))
    found: dict[int, Tokens] = {}
    left = MOST_BYTES
    for first in spread(list(dict.fromkeys(one.update for one in chosen)), 24):
        wanted: dict[tuple[int, ...], list[int]] = {}
        for number, one in enumerate(chosen):
            # responses with advantage 0 are in no token file
            if one.update == first and one.advantage:
                wanted.setdefault(one.token_ids, []).append(number)
        apart = dict[int, float]()  # how far the advantage is from that of the nearest row so far
        updates = [update for update in range(first, first + per) if update in run.files]
        left -= sum(path.stat().st_size for update in updates for path in run.files[update] if path.exists())
        if left < 0:
            break
        # not of `Sample`, which leaves responses out
        for part in Run.recorded(run, updates):
            found |= _of_update(part, wanted, chosen, apart, objective)
    return found


@torch.no_grad()
def _of_update(
    part: Recorded,
    wanted: Mapping[tuple[int, ...], Sequence[int]],
    chosen: Sequence[Completion],
    apart: dict[int, float],
    objective: Objective | None,
) -> dict[int, Tokens]:
    if part.token_ids is None:
        return {}
    tokens = part.weighed
    weight = None if objective is None else objective.calibrate(tokens).weight(tokens)
    found = {}
    for row, (ids, mask) in enumerate(zip(part.token_ids, tokens.mask, strict=True)):
        numbers = wanted.get(tuple(ids[mask].tolist()), ())
        moved = tokens.log_ratio.detach()[row][mask].abs()
        if not numbers or not bool(moved.isfinite().all()):
            continue
        advantage = float(tokens.advantage[row][mask][0])
        pushed = None if weight is None else (weight[row] * tokens.advantage[row])[mask]
        usable = pushed is not None and bool(pushed.isfinite().all())
        one = Tokens(
            changed=float(moved.mean()), pushed=tuple(pushed.tolist()) if pushed is not None and usable else None
        )
        for number in numbers:
            # another prompt may have been answered by the same tokens; the advantage tells the two apart
            given = chosen[number].advantage or 0.0
            distance = abs(given - advantage)
            if given * advantage > 0 and distance <= apart.get(number, math.inf):
                apart[number], found[number] = distance, one
    return found


def _spans(one: Completion, tokens: Tokens | None, largest: float, decode: Decode | None) -> Spans:
    """The completion in parts of equal colour; the text as it was recorded where its tokens do not give it exactly."""
    text = clipped(one.completion, LONGEST_COMPLETION)
    if tokens is None or tokens.pushed is None or decode is None or text != one.completion:
        return [("", text)]
    classes = [_class(push, largest) for push in tokens.pushed]
    ends = [n for n in range(1, len(classes) + 1) if n == len(classes) or classes[n] != classes[n - 1]]
    texts = pieces(one.token_ids, ends, decode)
    if "".join(texts) != text:
        return [("", text)]
    return [(classes[end - 1], words) for end, words in zip(ends, texts, strict=True) if words]


def _class(push: float, largest: float) -> str:
    if push == 0 or not largest:
        return "unpushed"
    level = min(LEVELS, max(1, math.ceil(LEVELS * abs(push) / largest)))
    return f"{'up' if push > 0 else 'down'}-{level}"


def section(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """The completions of all runs; the script of the page sorts and filters them."""
    articles = [
        _article(run, number, one, order, len(runs) > 1)
        for number, run in enumerate(runs)
        for order, one in enumerate(run["written"])
    ]
    if not articles:
        return empty(NOTHING)
    return tag("div", *articles, id="written-list")


def _article(run: Mapping[str, Any], number: int, one: Mapping[str, Any], order: int, several: bool) -> Markup:
    cut = one["ended"] == CUT
    facts = [
        tag("span", f"update {one['update']:,}"),
        tag("strong", "reward ", _signed(one["reward"], plus=False)),
        tag("span", "A ", _signed(one["advantage"])),
        tag("span", f"written {one['times']} times") if one["times"] > 1 else "",
        tag("span", f"{counted(one['tokens'], 'token')}, ", "cut off at the limit" if cut else "ended by itself"),
    ]
    if one["changed"] is not None:
        facts.append(tag("span", "changed by ", shown(one["changed"], 2), " nats per token"))
    rewards = [f"{name} {_signed(value, plus=False)}" for name, value in one["rewards"].items()]
    return tag(
        "article",
        tag("p", mark(run, number) if several else "", *facts, class_="facts"),
        tag("p", one["prompt"], class_="text asked"),
        tag("p", *(_span(name, text) for name, text in one["spans"]), class_="text"),
        tag(
            "p",
            joined(["reference answer ", tag("code", one["gold"]), "; "]) if one["gold"] is not None else "",
            "; ".join(rewards),
            class_="aside",
        ),
        class_="written",
        data_run=number,
        data_update=one["update"],
        data_turn=one["turn"],
        data_reward=one["reward"],
        data_changed=one["changed"],
        data_prompt=f"{number}-{one['prompt_id']}",
        # an order that has nothing to do with the run's, and is the same each time
        data_random=(order * 7919 + 104729) % 99991,
    )


def _span(name: str, text: str) -> object:
    return tag("span", text, class_=name) if name else text


def _signed(value: float | None, *, plus: bool = True) -> str:
    if value is None:
        return "–"
    return f"{value:{'+' if plus else ''}.3g}".replace("-", "−")
