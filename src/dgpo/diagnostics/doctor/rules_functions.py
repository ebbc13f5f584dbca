"""Rules about single reward functions: one that is constant, and one that is all that was learned."""

from __future__ import annotations

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.groups import ZERO
from dgpo.diagnostics.doctor.noise import above, below, recent, start
from dgpo.runs.log import Series

ENOUGH = 5
"""Minimum number of logged points."""

LONG_ENOUGH = 30
"""Points from which a function can be said not to rise."""

SATURATED = 0.95
"""Level over the largest logged one."""

RISEN = 0.2
"""Rise over the largest logged value: what was learned."""

FLAT = 0.3
"""Rise of the other functions over their range, noise included, below which they do not rise."""


def _same(series: Series) -> bool:
    return len(series) >= ENOUGH and max(series.values) - min(series.values) <= ZERO * max(1.0, abs(series.values[0]))


def _constant(case: Case) -> Found | None:
    functions = case.log.reward_functions
    constant = {name: series for name, series in functions.items() if _same(series)}
    # spread within a step that averages out is no constant
    constant = {name: s for name, s in constant.items() if not _has_spread(case, s)}
    if not constant or len(constant) == len([s for s in functions.values() if len(s)]):
        return None
    never = [name for name, series in constant.items() if abs(series.values[0]) <= ZERO]
    first = next(iter(constant.values()))
    given = [f"{name} ({series.values[0]:.3g})" for name, series in constant.items() if name not in never]
    words = []
    if never:
        words.append(f"{' and '.join(never)} {'is' if len(never) == 1 else 'are'} 0 throughout")
    if given:
        words.append(f"{' and '.join(given)} never change{'s' if len(given) == 1 else ''}")
    return Found(
        title=f"Nothing is learned from {len(constant)} of {len(functions)} reward functions: {'; '.join(words)}.",
        evidence=[
            *(f"{s.key} = {s.values[0]:.3g} on all {counted(len(s), 'logged step')}" for s in constant.values()),
            str(case.progress),
        ],
        step=first.steps[0],
        severity="note" if case.progress.learns else None,
    )


def _has_spread(case: Case, series: Series) -> bool:
    deviation = case.log.series(series.key.removesuffix("/mean") + "/std")
    return len(deviation) > 0 and max(deviation.values) > ZERO


def _saturated(case: Case) -> Found | None:
    functions = {name: series for name, series in case.log.reward_functions.items() if len(series) >= LONG_ENOUGH}
    changing = {name: series for name, series in functions.items() if not _same(series)}
    full = [name for name, series in changing.items() if _is_full(series)]
    others = [name for name in changing if name not in full]
    if not full or not others or not all(_is_flat(changing[name]) for name in others):
        return None
    first = changing[full[0]]
    top = max(first.values)
    return Found(
        title=f"{' and '.join(full)} {'is' if len(full) == 1 else 'are'} fully learned, but "
        f"{' and '.join(others)} not at all.",
        evidence=[f"{changing[name].head} -> {changing[name].tail}" for name in (*full, *others)],
        step=first.since(lambda value: value >= SATURATED * top),
    )


def _is_full(series: Series) -> bool:
    """Risen to its largest value, and there since."""
    top = max(series.values)
    last, first = recent(series.values, least=5), start(series.values)
    if top <= 0:
        return False
    return bool(above(last, SATURATED * top, LONG_ENOUGH)) and bool(above(last.less(first), RISEN * top, LONG_ENOUGH))


def _is_flat(series: Series) -> bool:
    size = max(series.values) - min(series.values)
    rise = recent(series.values, least=5).less(start(series.values))
    return bool(below(rise, FLAT * size, LONG_ENOUGH)) and not above(rise, 0.0, LONG_ENOUGH)


RULES = (
    Rule(
        name="reward_function_constant",
        severity="warning",
        fires=f"a reward function with the same value for all responses on every logged step (at least {ENOUGH}), "
        "beside others that vary; a note if the reward rises",
        cause="The responses never have what the function looks for, or they always have it. The prompt may not ask "
        "for the format, a pattern may not match how the model writes, or the function may fail.",
        remedy="Read some responses and call the function on them. Show the format in the prompt, reward parts of it, "
        "or remove the function.",
        check=_constant,
        leads_to=("reward_flat",),
        confidence="certain",
    ),
    Rule(
        name="reward_function_saturated",
        severity="warning",
        fires=f"a reward function that has risen to {SATURATED:.0%} of its largest value and stays there, while no "
        f"other one rises by {FLAT:.0%} of its range (98 % intervals, at least {LONG_ENOUGH} points)",
        cause="The policy has learned what is easy, such as the format. That function no longer gives an advantage, "
        "and too few responses are right for the others.",
        remedy="Remove the learned function or lower its weight. Make the rest easier to learn: easier data, more "
        "responses per prompt, partial credit.",
        check=_saturated,
        leads_to=("reward_flat", "zero_variance"),
    ),
)
