"""Rules about ratios and weights: how far the policy has moved, and which tokens carry the gradient."""

from __future__ import annotations

from statistics import fmean

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.groups import without_advantage
from dgpo.diagnostics.doctor.guards import advice
from dgpo.diagnostics.doctor.measures import TOP, Measures
from dgpo.diagnostics.doctor.noise import FEWEST, above, recent
from dgpo.runs.log import Series

SAME_POLICY = 1e-9
"""KL in nats per token below which two policies are the same. A learning rate of 1e-7 gives about 1e-8; float32
rounding of a ratio of 1 gives exactly 0."""

ROUNDING = 1e-3
"""... and up to this much if log π_old comes from a separate bfloat16 pass; then the clip fraction decides."""

FAR_FROM_OLD = 0.1
"""KL(π_old ‖ π) in nats per token, as a mean over steps. The demo, off-policy by up to three updates, has 0.008; the
one token of `REVERSE_MASS` makes 0.33 of a single line of its log, which a mean survives."""

CLIPPED = 0.3
"""Share of tokens beyond a clip bound, from which the bound rather than the reward determines the update."""

REVERSE_MASS, REVERSE_WEIGHT = 0.3, 5.0
"""In the log of the demo the share is 0.02 and the largest weight of ten updates 1.3 (median); up to 0.09 and 62, from
one update of 800 in which one token at r = 607 has 85 % of Σ|A·w|. Usual dual clips stand at 3: a weight of 5 is beyond
what any of them would let through."""

EXPLOSION = 20.0
"""A weight at which a single step is enough for a finding: it moves the policy as far as twenty usual steps."""

SOME, SOME_SHARE = 3, 0.01
"""Number or share of such steps for a warning. One in hundreds is a note: the demo continued to learn after its own,
because the gradient clip and later updates undo a single step."""

TOP_SHARE, FEWEST_TOKENS = 0.5, 100
"""1 % of the tokens outweigh all others; with fewer than 100 tokens that could be any single token."""

ESS = 0.25
"""Effective share of the tokens, (Σ|w|)²/(N·Σw²); the demo has 0.89 to 1. A quarter means that the step is as noisy as
one with a quarter of the tokens."""

LONG_ENOUGH = 6
"""Minimum number of points for the level of a curve."""

FEW = 0.1
"""Minimum share of updates with a symptom, so that one odd batch is not a fault."""


STANDS_STILL = (
    "The learning rate is so small, or the warm-up so long, that the updates of a generation hardly change a "
    "probability."
)


def _on_policy(case: Case) -> Found | None:
    norm = case.log["grad_norm"]
    if len(norm) and not any(norm.values):
        return None  # without a gradient the policy cannot move
    if without_advantage(case):
        return None  # nothing to move it either, at any learning rate
    if was_off_policy(case):
        return None
    # the ratio against the sampler is another one than these
    for name in () if case.anchor == "rollout" else ("kl_old", "mean_log_ratio"):
        series = case.log[name]
        if len(series) < FEWEST:
            continue
        largest = max(map(abs, series.values))
        if largest <= SAME_POLICY and case.resolution == 0:
            return _same_policy(
                case, "logged step", f"{series.key} at most {largest:.2g} over {counted(len(series), 'logged step')}",
                series.steps[0],
            )  # fmt: skip
        # between the two limits, the recorded tokens or the clip fraction decide
        if largest > max(ROUNDING, case.resolution):
            return None
    if len(case.updates) >= FEWEST and _covers_generations(case):
        if max(one.largest for one in case.updates) > 0:
            return None
        return _same_policy(
            case, "recorded update", f"max |log ratio| = 0 over {counted(len(case.updates), 'recorded update')}",
            case.updates[0].update,
        )  # fmt: skip
    clipped = case.log["clipped"]
    if len(clipped) < FEWEST:
        return None
    return Found(
        title="No token ever reached a clip bound: the run is on-policy, or moves too little for the objective to "
        "matter.",
        evidence=[f"{clipped.key} = 0 on all {counted(len(clipped), 'logged step')}"],
        step=clipped.steps[0],
        severity="note",
        cause=STANDS_STILL if _several_updates(case) else None,
    )


def was_off_policy(case: Case) -> bool:
    """Whether any logged step has a token beyond a bound: a ratio of 1 is within all of them."""
    beyond = (case.log[name] for name in ("clipped", "clipped_low", "clipped_high"))
    inside = case.log["inside"]
    return any(max(series.values, default=0.0) > 0 for series in beyond) or min(inside.values, default=1.0) < 1


def _several_updates(case: Case) -> bool:
    return (case.info.get("updates_per_generation") or 1) > 1


def _same_policy(case: Case, where: str, evidence: str, step: int) -> Found | None:
    """With one update per generation the ratio is 1 by design; with more, the policy does not move."""
    if not _several_updates(case):
        return Found(
            title=f"The ratio is 1 at every token of every {where}: all objectives give the same gradient here, that "
            "of REINFORCE.",
            evidence=[evidence],
            step=step,
        )
    if not len(case.progress.reward):
        return None  # without a reward it is unknown whether there was anything to move for
    rate, norm = case.log["learning_rate"], case.log["grad_norm"]
    return Found(
        title=f"The policy hardly moves: the ratio is 1 at every token of every {where}, although a generation serves "
        f"{counted(case.info['updates_per_generation'], 'update')}.",
        evidence=[
            evidence,
            *([f"{rate.key} {max(rate.values):.2g} at most"] if len(rate) else []),
            *([str(norm)] if len(norm) else []),
            str(case.progress),
        ],
        step=step,
        # the samples of a generation are paid for, and nothing is learned from them
        severity=None if case.progress.learns else "warning",
        cause=STANDS_STILL,
        remedy="If the warm-up is over, raise the learning rate (1e-6 is usual for all parameters, 1e-5 and more for "
        "adapters), and check that the optimiser holds the parameters of the policy.",
    )


def _covers_generations(case: Case) -> bool:
    """Whether more than the first update of a generation, whose ratio is always 1, can be among the recorded ones."""
    generations = [one.generation for one in case.updates]
    return len(set(generations)) < len(generations) or case.info.get("updates_per_generation") == 1


def _drift(case: Case) -> Found | None:
    far = case.log["kl_old"]
    far = far if len(far) else case.log["mean_log_ratio"]
    if len(far) >= FEWEST:
        # a mean: the first update of every generation, whose ratio is 1, would pull a median to 0
        away, part = max(((fmean(part.values), part) for part in (far, far.tail)), key=lambda pair: pair[0])
        if away < FAR_FROM_OLD:
            return None
        inside = case.log["inside"]
        return Found(
            title=f"The policy moves {away:.2g} nats per token away from the one that generated, on average over its "
            "updates: much of the batch is stale by the time it is used.",
            evidence=[
                f"{far.key} {away:.3g} on average over steps {part.steps[0]}-{part.steps[-1]}, "
                f"{max(far.values):.3g} at most",
                *([f"{inside.key} down to {min(inside.values):.3g}"] if len(inside) else []),
            ],
            step=far.since(lambda value: value >= FAR_FROM_OLD),
        )
    clipped = case.log["clipped"]
    if len(clipped) < FEWEST or not above(level := recent(clipped.values), CLIPPED, LONG_ENOUGH):
        return None
    return Found(
        title=f"{level.now.value:.0%} of the tokens are beyond a clip bound.",
        evidence=[f"{clipped.key} {level.now} over the last third of the log"],
        step=clipped.since(lambda value: value >= CLIPPED),
    )


def _reverse_right(case: Case) -> Found | None:
    mass, largest = case.log["reverse_right"], case.log["weight_max"]
    heavy = largest.at
    steps = [s for s, value in mass.at.items() if value >= REVERSE_MASS and heavy.get(s, 0.0) >= REVERSE_WEIGHT]
    seen = [
        one
        for one in case.updates
        if one.reverse_right >= REVERSE_MASS and one.heaviest is not None and one.heaviest.weight >= REVERSE_WEIGHT
    ]
    logged = [step for step in steps if heavy[step] >= EXPLOSION]
    recorded = [one.update for one in seen if one.heaviest is not None and one.heaviest.weight >= EXPLOSION]
    often = _at_least(len(steps), FEW, len(mass)) or _at_least(len(seen), FEW, len(case.updates))
    if not often and not logged and not recorded:
        return None
    several = any(
        len(where) >= SOME or _at_least(len(where), SOME_SHARE, among)
        for where, among in ((logged, len(mass)), (recorded, len(case.updates)))
    )
    evidence = []
    if steps:
        worst = max(heavy[step] for step in steps)
        evidence.append(
            f"{mass.key} >= {REVERSE_MASS} on {len(steps)} of {len(mass)} logged steps, {largest.key} up to {worst:.3g}"
        )
    if seen:
        one = max(seen, key=lambda one: one.reverse_right)
        evidence.append(f"update {one.update}: {one.reverse_right:.0%} of Σ|A·w|; heaviest token at {one.heaviest}")
    few = f"In {len(seen)} of {len(case.updates)} recorded updates" if seen else f"On {len(steps)} of {len(mass)} steps"
    when = "T" if often else f"{few} t"
    return Found(
        title=f"{when}okens with a negative advantage that have become more likely (A < 0, r >> 1) carry much of the "
        "gradient.",
        evidence=evidence,
        step=min([*steps[:1], *(one.update for one in seen[:1])]),
        severity=None if often else "warning" if several else "note",
        remedy=advice(case.objective),
    )


def _at_least(number: int, share: float, among: int) -> bool:
    return number >= max(1, share * among)


def _concentration(case: Case) -> Found | None:
    large = [one for one in case.updates if one.count >= FEWEST_TOKENS and one.bad is None]
    held = [one for one in large if one.top_share >= TOP_SHARE]
    ess = case.log["ess"]
    thin = _where_thin(ess, case.log["weight_zero"])
    evidence = []
    if held and len(held) >= FEW * len(large):
        one = max(held, key=lambda one: one.top_share)
        evidence.append(_share_in_words(one, len(held), len(large)))
    if thin and len(thin) >= FEW * len(ess):
        evidence.append(f"{ess.key} < {ESS} on {len(thin)} of {len(ess)} logged steps, down to {min(ess.values):.2g}")
    if not evidence:
        return None
    return Found(
        title="A few tokens hold most of the gradient.",
        evidence=evidence,
        step=min([*thin[:1], *(one.update for one in held[:1])]),
    )


def _where_thin(ess: Series, zero: Series) -> list[int]:
    """Steps with a low ess among tokens with a nonzero weight: zeros of a hard clip are not concentration."""
    # ess counts all N tokens; over the N·(1 - zero) with a weight it is ess / (1 - zero)
    without = zero.at
    return [
        step
        for step, value in ess.at.items()
        if value > 0 and without.get(step, 0.0) < 1 and value / (1 - without.get(step, 0.0)) < ESS
    ]


def _share_in_words(one: Measures, held: int, of: int) -> str:
    return (
        f"update {one.update}: {TOP:.0%} of {one.count} tokens hold {one.top_share:.0%} of Σ|A·w| (as much as half on "
        f"{held} of {of} recorded updates); heaviest at {one.heaviest}"
    )


RULES = (
    Rule(
        name="reverse_right",
        severity="error",
        fires=f"at least {REVERSE_MASS:.0%} of Σ|A·w| at tokens with A < 0 and r above the objective's upper boundary "
        f"(1.2 without one), and a weight of at least {REVERSE_WEIGHT:g}, on {FEW:.0%} of the logged steps or "
        f"recorded updates. With a weight of {EXPLOSION:g} it is a warning on {SOME} of them or "
        f"{SOME_SHARE:.0%}, and a note on fewer",
        cause="These tokens have become more likely because other responses contain them, and the response with A < "
        "0 now pushes them down with weight r. Nothing bounds this weight, because clipping acts only on the "
        "other side.",
        remedy="Bound the weight where A < 0. The finding names the field of the objective that does this.",
        check=_reverse_right,
        explains=("concentration", "drift"),
        leads_to=("collapsed", "reward_fell", "grad_spike"),
    ),
    Rule(
        name="concentration",
        severity="warning",
        fires=f"{TOP:.0%} of the tokens hold {TOP_SHARE:.0%} of Σ|A·w| on {FEW:.0%} of the recorded updates (of at "
        f"least {FEWEST_TOKENS} tokens), or the effective share of the tokens that have a weight is below {ESS}",
        cause="The weights grow with the ratio, and some tokens have become much more likely since they were sampled.",
        remedy="Look at the heaviest tokens (evidence). Cap the weight (right_cap, reverse_cap, or an objective with "
        "a bound), use fewer updates per generation, or lower the learning rate.",
        check=_concentration,
    ),
    Rule(
        name="drift",
        severity="warning",
        fires=f"KL(π_old ‖ π) of {FAR_FROM_OLD} nats per token on average over the log or its last third. If only a "
        f"clip fraction is logged: {CLIPPED:.0%} (98 % interval)",
        cause="There are too many updates per generation, or the steps are too large, so the policy moves away from "
        "the samples. The trainer itself causes this staleness; the sampler has no part in it.",
        remedy="Lower the learning rate or steps_per_generation (in verl: fewer ppo_epochs or larger mini-batches).",
        check=_drift,
        leads_to=("collapsed", "reward_fell", "grad_spike", "entropy_falling", "entropy_rising", "reverse_right"),
    ),
    Rule(
        name="on_policy",
        severity="note",
        fires=f"KL(π_old ‖ π) at most {SAME_POLICY:g} on every logged step or, if it is not logged, a clip fraction "
        "of 0; never if any clip fraction is above 0 or every advantage is 0. It is a warning if a generation is known "
        "to serve several updates (the policy hardly moves) and a reward is logged that does not rise",
        cause="With one optimiser update per generation, the policy of the loss is the one that generated, so r = 1, "
        "w = 1, and no clip bound is ever reached. A learning rate near 0 looks the same.",
        remedy="Nothing is broken, but no setting of the objective has an effect. If it should have one, use more "
        "updates per generation: steps_per_generation above gradient_accumulation_steps or num_iterations "
        "above 1 (TRL), ppo_mini_batch_size below train_batch_size (verl).",
        check=_on_policy,
    ),
)
