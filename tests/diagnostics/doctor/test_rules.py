"""The parts that rules are made of, against values that are known: guards, fits, the normaliser, the page."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch

from dgpo import StepTotals, TokenBatch, aggregation, kl, objectives, policy_loss
from dgpo.diagnostics import Recorded, record
from dgpo.diagnostics.doctor import (
    RULES,
    Case,
    Finding,
    as_markdown,
    can_tell,
    covered,
    diagnose,
    lacking,
    seen,
    text,
    unknown,
)
from dgpo.diagnostics.doctor.coverage import NEEDED
from dgpo.diagnostics.doctor.guards import CAP, advice, bounded, guards, reverse_weight
from dgpo.diagnostics.doctor.measures import measure
from dgpo.diagnostics.doctor.rules_sampler import fit
from dgpo.objectives import OBJECTIVES
from dgpo.runs.log import Log, Series, aligned

PAGE = Path(__file__).resolve().parents[3] / "docs" / "doctor.md"


def test_the_table_of_the_page_is_that_of_the_code():
    assert as_markdown() in PAGE.read_text(encoding="utf-8")


def test_the_example_of_the_page():
    log = Log.of({"step": step, "reward": 0.0, "reward_std": 0.0} for step in range(1, 9))
    assert text(diagnose(Case(log=log))) in PAGE.read_text(encoding="utf-8")


def test_explained_findings_are_of_rules():
    known = {rule.name for rule in RULES}
    assert all({*rule.explains, *rule.leads_to} <= known - {rule.name} for rule in RULES)


# --- guards -----------------------------------------------------------------------------------------------------------


def bounds(objective, name):
    """Whether a field, set to `CAP`, bounds the weight."""
    try:
        return reverse_weight(dataclasses.replace(objective, **{name: CAP})) <= CAP
    except ValueError:
        return False


@pytest.mark.parametrize("name", OBJECTIVES)
def test_guards(name):
    """What a method declares are all fields that bound the weight, which trying every one of them finds."""
    objective = OBJECTIVES[name]()
    tried = tuple(field.name for field in dataclasses.fields(objective) if bounds(objective, field.name))
    assert guards(objective) == (() if reverse_weight(objective) <= CAP else tried)
    assert {field for field in OBJECTIVES[name].guards if not bounds(objective, field)} == set()
    for field in guards(objective):
        guarded = dataclasses.replace(objective, **{field: CAP})
        assert reverse_weight(guarded) <= CAP < reverse_weight(objective)
        assert guards(guarded) == ()
        assert f"{field}=3" in advice(objective)
    if not guards(objective):
        words = "bounds the weight already" if reverse_weight(objective) <= CAP else "has no field that bounds"
        assert words in advice(objective)


def test_what_is_advised_in_their_place():
    assert set(bounded()) >= {"cispo_two_sided", "sapo", "aspo"}
    assert not {"is", "dgpo", "drpo", "grpo"} & set(bounded())
    assert "clip_ratio_c in verl" in advice(None)


# --- measures of tokens -----------------------------------------------------------------------------------------------


def recorded(tokens, totals=None, update=1, token_ids=None):
    return Recorded(
        tokens=tokens,
        token_ids=token_ids,
        group=torch.zeros(len(tokens.mask), dtype=torch.long),
        sum_pi_squared=None,
        update=update,
        generation=update,
        totals=totals,
    )


def test_measures_by_hand(make_batch):
    batch = make_batch(8, 40, spread=1.5, seed=3, dtype=torch.float32)
    tokens, totals = batch.tokens(), StepTotals(tokens=500, sequences=9)
    objective, how = objectives.make("dgpo"), aggregation.make("token-mean")
    found = measure(recorded(tokens, totals), objective, how)
    mass = [
        (abs(a * w), x, a)
        for a, w, x in zip(
            tokens.advantage[tokens.mask].tolist(),
            objective.weight(tokens)[tokens.mask].tolist(),
            tokens.log_ratio[tokens.mask].tolist(),
            strict=True,
        )
    ]
    total = sum(m for m, _, _ in mass)
    top = sorted((m for m, _, _ in mass), reverse=True)[: -(-len(mass) // 100)]
    assert found.count == len(mass)
    assert found.top_share == pytest.approx(sum(top) / total, rel=1e-5)
    reverse = sum(m for m, x, a in mass if a < 0 and x > torch.tensor(1.2).log())
    assert found.reverse_right == pytest.approx(reverse / total, rel=1e-5)
    assert found.largest == pytest.approx(max(abs(x) for _, x, _ in mass))
    assert found.heaviest is not None
    assert abs(found.heaviest.advantage * found.heaviest.weight) == pytest.approx(top[0], rel=1e-5)
    value = policy_loss(
        batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective, how, totals=totals
    ).value
    assert found.loss == pytest.approx(value.item(), abs=1e-6)


def test_the_first_value_that_is_no_number(make_batch):
    batch = make_batch(4, 6, dtype=torch.float32)
    logprob = batch.logprob.clone()
    logprob[1, 1], logprob[2, 0] = torch.nan, torch.inf
    hidden = ~batch.mask
    logprob[hidden] = torch.nan  # does not count
    tokens = TokenBatch(logprob, batch.old_logprob, batch.advantage, batch.mask)
    ids = torch.arange(24).view(4, 6)
    bad = measure(recorded(tokens, token_ids=ids), None, None).bad
    assert (bad.tensor, bad.row, bad.column, bad.token, bad.count) == ("logprob", 1, 1, 7, 2)
    assert str(bad) == "logprob[1, 1] = nan (row 1, column 1, token id 7)"


# --- the sampler, against distributions that are known ----------------------------------------------------------------


def drawn(kind, value, seed):
    """Tokens of many states, drawn from μ made of π; with log π, log μ and H(π)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(64, 16, 40, generator=generator)
    pi = logits.softmax(-1)
    if kind == "temperature":
        mu = (logits / value).softmax(-1)
    elif kind == "top_p":
        ordered, order = pi.sort(descending=True)
        outside = (ordered.cumsum(-1) - ordered >= value).gather(-1, order.argsort(-1))
        mu = pi.masked_fill(outside, 0)
        mu = mu / mu.sum(-1, keepdim=True)
    elif kind == "top_k":
        kth = pi.topk(value, dim=-1).values[..., -1:]
        mu = pi.masked_fill(pi < kth, 0)
        mu = mu / mu.sum(-1, keepdim=True)
    else:
        mu = (logits + value * torch.randn(logits.shape, generator=generator)).softmax(-1)
    token = torch.multinomial(mu.flatten(0, 1), 1, generator=generator).view(64, 16, 1)
    entropy = -(pi * pi.log()).sum(-1)
    old, sampled = pi.gather(-1, token).log().squeeze(-1), mu.gather(-1, token).log().squeeze(-1)
    return TokenBatch(
        old, old, torch.ones(64), torch.ones(64, 16, dtype=torch.bool), rollout_logprob=sampled, entropy=entropy
    )


def case_of(kind, value, entropy=True):
    updates = []
    for seed in range(3):
        tokens = drawn(kind, value, seed)
        if not entropy:
            tokens.entropy = None
        updates.append(measure(recorded(tokens, update=seed + 1), None, None))
    return Case(log=Log(), updates=tuple(updates))


@pytest.mark.parametrize(
    ("temperature", "entropy"),
    [(0.6, True), (0.9, True), (1.1, True), (1.5, True), (0.9, False), (1.1, False), (1.5, False)],
)
def test_a_temperature_is_measured(temperature, entropy):
    case = case_of("temperature", temperature, entropy)
    assert fit(case).slope == pytest.approx(1 / temperature - 1, abs=0.05)
    assert [finding.rule for finding in diagnose(case)] == ["sampler_temperature"]


@pytest.mark.parametrize(("kind", "value"), [("top_p", 0.7), ("top_p", 0.9), ("top_k", 3), ("top_k", 10)])
def test_a_distribution_that_was_cut_off(kind, value):
    assert [finding.rule for finding in diagnose(case_of(kind, value))] == ["sampler_truncation"]


def sampler_log(kind, value, tokens=1024, words=("objective/kl/sampler", "objective/kl/sampler_k1")):
    """The metrics of five updates of so many tokens, without the tokens themselves."""
    rows = []
    for seed in range(5):
        batch = drawn(kind, value, seed)
        old, sampled = batch.old_logprob.flatten()[:tokens], batch.rollout_logprob.flatten()[:tokens]
        values = [float(estimator(sampled, old).mean()) for estimator in (kl.k3, kl.k1)]
        rows.append({"step": seed + 1, **dict(zip(words, values, strict=True))})
        if words[0].startswith("objective"):
            rows[-1]["objective/sampler/cut_mass"] = float(kl.cut_mass(sampled, old).mean())
    return Case(log=Log.of(rows))


@pytest.mark.parametrize(
    "words", [("objective/kl/sampler", "objective/kl/sampler_k1"), ("rollout_corr/k3_kl", "rollout_corr/kl")]
)
@pytest.mark.parametrize(
    ("kind", "value"), [("top_p", 0.7), ("top_p", 0.9), ("top_p", 0.97), ("top_k", 3), ("top_k", 10)]
)
def test_a_cut_shows_in_the_log_alone(kind, value, words):
    """k3 stays below the limit of a mismatch for top-p 0.9 and above."""
    (found,) = diagnose(sampler_log(kind, value, words=words))
    assert found.rule == "sampler_truncation"
    mass = fmean(
        float(kl.cut_mass(t.rollout_logprob, t.old_logprob).mean()) for t in (drawn(kind, value, s) for s in (2, 3, 4))
    )
    assert f"{mass:.1%}" in found.title


@pytest.mark.parametrize("tokens", [64, 1024])
@pytest.mark.parametrize(
    ("kind", "value"),
    [("temperature", t) for t in (0.5, 0.7, 0.9, 1.1, 1.5)] + [("noise", n) for n in (0.02, 0.2, 0.5, 1.0)],
)
def test_a_sampler_that_covers_the_policy_is_not_called_cut_off(kind, value, tokens):
    found = {finding.rule for finding in diagnose(sampler_log(kind, value, tokens))}
    assert found <= {"sampler_mismatch"}
    assert found == ({"sampler_mismatch"} if value in (0.5, 0.7, 1.0) and tokens == 1024 else found)


@pytest.mark.parametrize(("noise", "rules"), [(0.02, []), (0.5, ["sampler_mismatch"])])
def test_noise_is_neither(noise, rules):
    assert [finding.rule for finding in diagnose(case_of("noise", noise))] == rules


# --- the normaliser over ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "fires"), [(1.0, False), (2.0, True)])
def test_totals_of_two_ranks(tmp_path, make_batch, factor, fires):
    """Each rank is given the totals of all, divided by their number."""
    updates, rows = [], []
    for update in range(1, 5):
        parts = [make_batch(6, 9, seed=10 * update + rank, dtype=torch.float32).tokens() for rank in range(2)]
        kept = sum(int(((part.advantage != 0) & part.mask).sum()) for part in parts)
        everything = sum(int(part.mask.sum()) for part in parts)
        for part in parts:
            totals = StepTotals(tokens=everything / 2 / factor, sequences=6)
            updates.append(measure(recorded(part, totals, update), None, None))
        rows.append({"step": update, "objective/advantage/zero_fraction": 1 - kept / everything})
    case = Case(log=Log.of(rows), info={"world_size": 2, "config": {"logging_steps": 1}}, updates=tuple(updates))
    found = [finding for finding in diagnose(case) if finding.rule == "normaliser"]
    assert bool(found) == fires
    if fires:
        assert "ranks (2)" in found[0].title


# --- curves -----------------------------------------------------------------------------------------------------------


def log_of(length=100, **changed):
    """A healthy log of TRL's trainer, on which one quantity is made to do something else: step -> value."""
    noise = random.Random(0).gauss
    usual = {
        "reward": lambda i: 0.3 + 0.002 * i + noise(0, 0.03),
        "reward_std": lambda i: 0.4,
        "frac_reward_zero_std": lambda i: 0.2,
        "entropy": lambda i: 0.5 + noise(0, 0.02),
        "grad_norm": lambda i: 0.5 + noise(0, 0.05),
        "loss": lambda i: noise(0, 0.01),
        "completions/mean_length": lambda i: 500 + noise(0, 50),
    }
    rows = []
    for i in range(1, length + 1):
        row = {name: value(i) for name, value in (usual | changed).items()}
        rows.append({"step": i} | {name: value for name, value in row.items() if value is not None})
    return Case(log=Log.of(rows))


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("loss", lambda i: 0.01 * (-1) ** i, []),
        ("reward", lambda i: 0.6 if i < 50 else 0.0, [("reward_fell", "error", 50)]),
        ("reward", lambda i: 0.6 if i < 90 else 0.4, [("reward_fell", "warning", 90)]),
        ("reward", lambda i: 0.6 if i < 90 else 0.55, []),
        ("reward", lambda i: -0.2 if i < 50 else -1.0, [("reward_fell", "error", 50)]),
        ("reward", lambda i: 0.3 + 0.2 * (-1) ** (i // 2), []),
        ("grad_norm", lambda i: 0.5 if i < 50 else 1e4, [("grad_spike", "warning", 50)]),
        ("grad_norm", lambda i: 8.0 if i == 50 else 0.5, [("grad_spike", "note", 50)]),
        ("grad_norm", lambda i: 80.0 if i == 50 else 0.5, [("grad_spike", "warning", 50)]),
        ("grad_norm", lambda i: 8.0 if i in (50, 60, 70) else 0.5, [("grad_spike", "warning", 50)]),
        ("grad_norm", lambda i: 0.5 * (i % 3 > 0), []),
        ("grad_norm", lambda i: 0.01 * 1.1**i, []),
        ("grad_norm", lambda i: 0.5 if i < 60 or i % 8 == 0 else 1e-3, []),
        ("completions/mean_length", lambda i: 500 if i < 50 else 3, [("length_fell", "warning", 50)]),
        ("completions/mean_length", lambda i: 500 if i < 50 else 200, []),
        ("completions/mean_length", lambda i: 4 if i < 50 else 0.5, []),
        ("frac_reward_zero_std", lambda i: 0.05 + 0.004 * i, [("zero_variance", "note", 51)]),
        ("frac_reward_zero_std", lambda i: 0.2 + 0.0005 * i, []),
        ("frac_reward_zero_std", lambda i: float(random.Random(i).random() < 0.9), [("zero_variance", "warning", 1)]),
        ("frac_reward_zero_std", lambda i: float(random.Random(i).random() < 0.2), []),
        # from step 60 on nothing has any spread
        ("frac_reward_zero_std", lambda i: 0.2 if i < 60 else 1.0, [("zero_variance", "error", 60)]),
    ],
)
def test_curves(key, value, found):
    assert [(f.rule, f.severity, f.step) for f in diagnose(log_of(**{key: value}))] == found


def solving(reward, **changed):
    """A run whose groups lose their spread and whose entropy falls to a tenth, at this reward."""
    falling = {"frac_reward_zero_std": lambda i: min(0.01 * i, 0.8), "entropy": lambda i: 0.5 * 0.1 ** min(i / 60, 1)}
    return log_of(reward=reward, **(falling | changed))


def test_a_task_that_is_solved():
    (found,) = diagnose(solving(lambda i: min(0.295 + 0.01 * i, 0.95)))
    assert (found.rule, found.severity, found.step) == ("solved", "note", 61)
    assert "95% of what it can be" in found.title


@pytest.mark.parametrize(
    "case",
    [
        solving(lambda i: min(0.29 + 0.01 * i, 0.6)),
        # without a known end of the scale, a policy that gets the reward for the format alone looks the same
        solving(lambda i: min(0.29 + 0.02 * i, 1.5)),
        # noise that does not let tell
        solving(lambda i: 0.92 + 0.3 * random.Random(i).choice((-1, 0.2))),
        solving(lambda i: min(0.29 + 0.01 * i, 0.95) if i < 85 else 0.0),
        # a maximum that the log has
        solving(lambda i: None, **{
            "critic/score/mean": lambda i: min(0.29 + 0.01 * i, 0.95),
            "critic/score/max": lambda i: 3.0,
        }),
    ],
)  # fmt: skip
def test_a_task_that_is_not(case):
    rules = {found.rule for found in diagnose(case)}
    assert "solved" not in rules
    assert {"zero_variance", "entropy_falling"} <= rules


def test_a_scale_of_its_own():
    scores = {"critic/score/mean": lambda i: min(1 + 0.04 * i, 2.9), "critic/score/max": lambda i: 3.0}
    (found,) = diagnose(solving(lambda i: None, **scores))
    assert found.rule == "solved"
    assert any("critic/score/max at most 3" in line for line in found.evidence)


RATE = {"learning_rate": lambda i: 1e-6}
KL = {"kl": lambda i: 0.002 * min(1.1**i, 1500) * random.Random(i).lognormvariate(0, 0.3)}
CUT = {"completions/clipped_ratio": lambda i: 0.4 + 0.1 * random.Random(i).random()}
LONG = {"completions/mean_length": lambda i: 200 + 4 * i + random.Random(i).gauss(0, 20)}
STILL = {"reward": lambda i: 0.3 + random.Random(i).gauss(0, 0.03)}


def names(case):
    return [found.rule for found in diagnose(case)]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"kl": lambda i: 0.4 + 0.05 * random.Random(i).random(), "learning_rate": lambda i: 1e-8 * i},
         ["reference_differs"]),
        # steps that are as small throughout
        ({"kl": lambda i: 0.4 + 0.05 * random.Random(i).random(), "learning_rate": lambda i: 1e-9},
         ["reference_differs"]),
        # the second half of a run
        ({"kl": lambda i: None if i < 30 else 0.2 + 0.02 * random.Random(i).random(), **RATE}, []),
        ({"kl": lambda i: 0.002 * i**0.5, **RATE}, []),
        (KL | RATE | STILL, ["reference_kl"]),
        (CUT, ["truncated"]),
        ({"completions/clipped_ratio": lambda i: 0.1 + 0.1 * random.Random(i).random()}, []),
        (LONG, []),  # a run that learns may write more
        (LONG | STILL, ["length_grows"]),
        ({"learning_rate": lambda i: 0.0} | STILL, ["no_learning_rate"]),
        ({"learning_rate": lambda i: 1e-6 if i < 60 else 0.0}, ["schedule_over"]),
        ({"learning_rate": lambda i: 1e-6 * (100 - i) / 100}, []),
        ({"skipped": lambda i: float(i % 5 > 0)}, ["skipped"]),
        ({"skipped": lambda i: float(i % 5 == 0)}, []),
        ({"rewards/right/mean": lambda i: 0.003 * i, "rewards/format/mean": lambda i: 0.0},
         ["reward_function_constant"]),
        ({"rewards/right/mean": lambda i: 0.003 * i, "rewards/format/mean": lambda i: 0.01 * i}, []),
        ({"rewards/right/mean": lambda i: 0.1 + random.Random(i).gauss(0, 0.02),
          "rewards/format/mean": lambda i: min(1.0, 0.05 * i)}, ["reward_function_saturated"]),
        ({"entropy": lambda i: 0.5 + 0.01 * i} | STILL, ["entropy_rising"]),
        ({"entropy": lambda i: 0.5 * 0.95**i} | STILL, ["entropy_falling"]),
        ({"kl": lambda i: 0.01 if i < 50 else float("nan")}, ["not_finite"]),
        ({"completions/max_length": lambda i: 256.0, "completions/mean_length": lambda i: 252.0 + i % 3},
         ["length_at_cap"]),
    ],
)  # fmt: skip
def test_what_a_curve_says(changed, found):
    case = log_of(**changed)
    assert names(case)[: max(1, len(found))] == found
    # and at no prefix is there anything else
    seen = [set(names(Case(log=Log(rows=case.log.rows[:n])))) for n in range(20, 101, 8)]
    assert set().union(*seen) <= {*found}
    assert all(len(a - b) == 0 for a, b in itertools.pairwise(seen))


def test_a_reward_that_does_not_move():
    """300 steps at a learning rate of 2e-7."""
    (found,) = diagnose(log_of(300, reward=STILL["reward"], learning_rate=lambda i: 2e-7))
    assert (found.rule, "2e-07" in found.cause) == ("reward_flat", True)
    assert diagnose(log_of(60, reward=STILL["reward"])) == []


WITHOUT = {"reward_std": lambda i: None, "frac_reward_zero_std": lambda i: None}
"""What many consoles do not print."""


def test_a_reward_that_does_not_move_where_its_spread_is_not_logged():
    """The mean reward varies from step to step by less than that of a response: flat is flat with either."""
    (found,) = diagnose(log_of(1000, reward=STILL["reward"], **WITHOUT))
    assert found.rule == "reward_flat"
    assert any("from step to step" in line for line in found.evidence)
    # as much in all as 0.3 standard deviations of its noise
    slow = random.Random(1).gauss
    assert diagnose(log_of(1000, reward=lambda i: 0.3 + 2e-5 * i + slow(0, 0.03), **WITHOUT)) == []
    assert diagnose(log_of(**WITHOUT)) == []


def test_ten_thousand_steps_take_a_second_of_cpu():
    case = log_of(10_000, **CUT, **RATE, **{"rewards/right/mean": STILL["reward"], "kl": lambda i: 0.01})
    began = time.process_time()
    assert "truncated" in names(case)
    assert time.process_time() - began < 2


def test_nothing_was_scored():
    rows = [{"step": i, "reward": None, "loss": 0.1 * (-1) ** i} for i in range(12)]
    assert names(Case(log=Log.of(rows))) == ["not_scored"]
    rows = [{"step": i, "reward": 0.3 if i < 20 else math.nan, "reward_std": 0.1, "loss": 0.1} for i in range(60)]
    assert names(Case(log=Log.of(rows)))[0] == "not_scored"


SILENT = {"frac_reward_zero_std": 1.0, "objective/advantage/zero_fraction": 1.0}


def still(advantage, updates=8):
    """A case of a generation of eight updates with ratio 1, and one logged line."""
    tokens = TokenBatch(*(torch.full((2, 3), -1.0),) * 2, torch.tensor([advantage, -advantage]), torch.ones(2, 3) > 0)
    parts = [
        dataclasses.replace(measure(recorded(tokens, update=1 + i), objectives.make("dgpo"), None), generation=0)
        for i in range(updates)
    ]
    return lambda **line: Case(
        log=Log.of([{"step": 8, **line}]), updates=tuple(parts), info={"updates_per_generation": updates}
    )


@pytest.mark.parametrize("reward", [None, math.nan])
def test_a_reward_that_is_never_a_number_is_told_from_one_point(reward):
    """... and the learning rate is not blamed for a policy that has nothing to learn from."""
    (found,) = diagnose(still(0.0)(reward=reward, reward_std=reward, **SILENT))
    assert (found.rule, found.confidence) == ("not_scored", "certain")
    assert "every advantage is 0 in 8 recorded updates" in found.evidence
    # without tokens, by the log's share of advantages that are 0
    assert names(Case(log=Log.of([{"step": 8, "reward": reward, **SILENT}]))) == ["not_scored"]
    # a single null may be a mean over nothing
    assert names(Case(log=Log.of([{"step": 8, "reward": reward, "objective/advantage/zero_fraction": 0.2}]))) != [
        "not_scored"
    ]


@pytest.mark.parametrize("line", [{"reward": 0.5, **SILENT}, {"reward": 0.0, **SILENT}, {}], ids=["1", "0", "none"])
def test_a_ratio_of_1_blames_no_learning_rate_without_an_advantage_or_a_reward(line):
    assert "on_policy" not in names(still(0.0)(**line))
    if not line:
        assert "on_policy" not in names(still(1.0)(**line))
    assert names(still(1.0)(reward=0.5)) == ["on_policy"]


def test_groups_without_spread_follow_from_a_reward_that_is_no_number():
    rows = [{"step": i, "reward": None, "reward_std": None, **SILENT} for i in range(1, 81, 4)]
    found = diagnose(Case(log=Log.of(rows)))
    assert [(one.rule, one.follows) for one in found] == [("not_scored", None), ("zero_variance", "not_scored")]


def test_a_value_that_is_not_finite_may_come_from_an_objective_of_your_own():
    (rule,) = (rule for rule in RULES if rule.name == "not_finite")
    assert "the objective that is not finite" in rule.cause
    assert "dgpo.testing.check_objective" in rule.remedy


def test_a_collapse_and_its_cause():
    """Two updates at a learning rate of 1e-2, and from then on the same response to everything."""
    gone = {
        "reward": lambda i: 0.4 if i < 3 else 0.0,
        "reward_std": lambda i: 0.4 if i < 3 else 0.0,
        "frac_reward_zero_std": lambda i: 0.2 if i < 3 else 1.0,
        "entropy": lambda i: 0.5 if i < 3 else 0.001,
        "learning_rate": lambda i: 1e-2,
        # with it goes all likeness to the reference, one step before
        "kl": lambda i: 0.01 if i < 2 else 8.0,
    }
    found = diagnose(log_of(40, **gone))
    assert (found[0].rule, found[0].severity, found[0].step) == ("collapsed", "error", 3)
    assert "learning rate of 0.01" in found[0].cause
    assert {one.follows for one in found[1:]} == {"collapsed"}
    assert "zero_variance" in [one.rule for one in found[1:]]


@pytest.mark.parametrize(("begins", "order"), [(5, ["reference_kl", "collapsed"]), (32, ["collapsed", "reference_kl"])])
def test_of_two_that_may_lead_to_each_other_the_earlier_is_the_cause(begins, order):
    """A policy that runs away from the reference and collapses 20 steps later; or the other way round."""
    gone = {
        "reward": lambda i: 0.4 + 0.001 * (i % 3) if i < 25 else 0.0,
        "reward_std": lambda i: 0.4 if i < 25 else 0.0,
        "frac_reward_zero_std": lambda i: 0.2 if i < 25 else 1.0,
        "kl": lambda i: 0.01 if i < begins else 5.0,
    }
    found = [one for one in diagnose(log_of(60, **gone)) if one.rule in order]
    assert [one.rule for one in found] == order
    assert found[1].follows == order[0]


@pytest.mark.parametrize(
    ("settings", "first"),
    [({}, "zero_variance"), ({"temperature": 0.1}, "sampling_settings"), ({"num_generations": 2}, "sampling_settings"),
     ({"top_k": 1, "temperature": 1.0}, "sampling_settings"), ({"temperature": 1.0, "top_p": 1.0}, "zero_variance")],
)  # fmt: skip
def test_settings_are_evidence(settings, first):
    """Responses that are all the same are not the fault of the prompts."""
    case = log_of(frac_reward_zero_std=lambda i: 0.7 + 0.1 * random.Random(i).random())
    found = diagnose(dataclasses.replace(case, info={"config": settings}))
    assert found[0].rule == first
    assert found[-1].rule == "zero_variance"
    if settings and first == "sampling_settings":
        assert found[-1].follows == first
        name, value = next(iter(settings.items()))
        assert f"{name} = {value:g}" in found[0].evidence[0]


def test_one_response_per_prompt():
    scores = {"critic/score/mean": lambda i: 0.01 * i, "critic/score/max": lambda i: 0.3 + 0.01 * i,
              "critic/score/min": lambda i: -0.3 + 0.01 * i}  # fmt: skip
    bare = {"critic/advantages/max": scores["critic/score/max"], "critic/advantages/min": scores["critic/score/min"]}
    centred = {"critic/advantages/max": lambda i: 1.2, "critic/advantages/min": lambda i: -1.3}
    gone = dict.fromkeys(("reward", "reward_std", "frac_reward_zero_std"), lambda i: None)
    assert names(log_of(**gone, **scores, **bare)) == ["no_baseline"]
    assert names(log_of(**gone, **scores, **centred)) == []


def test_steps_that_are_missing_or_twice():
    rows = [{"step": i, "reward": 0.3 + 0.001 * i, "loss": 0.1} for i in [*range(20), *range(60, 80)]]
    (found,) = diagnose(Case(log=Log.of(rows)))
    assert (found.rule, found.severity, found.step) == ("steps", "note", 19)
    (found,) = diagnose(Case(log=Log.of([*rows[:20], *rows[10:20]])))
    assert (found.rule, found.step) == ("steps", 10)


def test_three_decimals_do_not_make_a_learning_rate_of_0():
    rows = [
        {"step": i, "actor/lr": 0.0, "actor/ppo_kl": 0.0, "actor/entropy_loss": round(0.4 + 0.013 * (i % 7), 3),
         "critic/score/mean": round(0.1 + 0.017 * (i % 5), 3), "actor/pg_clipfrac": 0.001 * (i == 4)}
        for i in range(12)
    ]  # fmt: skip
    assert names(Case(log=Log.of(rows))) == []


@pytest.mark.parametrize("decimals", [8, 17])
def test_a_learning_rate_that_is_rounded_to_0(decimals):
    """`Learning Rate: 0.00000000` may be 4e-9, a tenth of the largest; with all its digits 0 is 0."""
    case = log_of(learning_rate=lambda i: round(4e-8 * max(0.0, 0.1 + 0.9 * (1 - i / 80)), decimals) if i < 88 else 0.0)
    assert names(case) == ([] if decimals == 8 else ["schedule_over"])


def test_steps_without_a_gradient_do_not_hide_that_the_run_is_on_policy():
    """Of one group per step, more than half may have no spread: the policy moves on the others."""
    rows = [{"step": i, "grad_norm": float(i % 5 > 2), "clip_ratio/region_mean": 0.0} for i in range(1, 40)]
    seen = [names(Case(log=Log.of(rows[:n]))) for n in range(10, 40)]
    assert seen == [["on_policy"]] * 30
    still = [row | {"grad_norm": 0.0} for row in rows]
    assert names(Case(log=Log.of(still))) == []


@pytest.mark.parametrize(
    ("updates", "learns", "severity"), [(1.0, True, "note"), (1.0, False, "note"), (4.0, False, "warning")]
)
def test_what_being_on_policy_costs(updates, learns, severity):
    """One update per generation is no fault; a generation that serves four and moves nothing is."""
    reward = None if learns else STILL["reward"]
    case = log_of(**({} if reward is None else {"reward": reward}), **{"objective/kl/old": lambda i: 0.0})
    (found,) = diagnose(dataclasses.replace(case, info={"updates_per_generation": updates}))
    assert (found.rule, found.severity) == ("on_policy", severity)
    clipped = log_of(**{"actor/ppo_kl": lambda i: 0.0, "actor/pg_clipfrac": lambda i: 0.001})
    assert diagnose(clipped) == []


@pytest.mark.parametrize(
    ("norm", "reward", "found"),
    [(4.0, None, []), (30.0, None, []), (30.0, STILL["reward"], [("grad_clipped", "warning")]),
     (300.0, None, [("grad_clipped", "note")])],
)  # fmt: skip
def test_a_clipped_gradient_where_it_explains_something(norm, reward, found):
    changed = {"grad_norm": lambda i: norm * (1 + 0.1 * random.Random(i).random())}
    case = log_of(**changed, **({} if reward is None else {"reward": reward}))
    case = dataclasses.replace(case, info={"config": {"max_grad_norm": 1.0}})
    assert [(one.rule, one.severity) for one in diagnose(case)] == found


def test_much_that_cannot_be_told_is_grouped_by_reason():
    found = {"zero_std": 1, "truncated": 2, "reward": 4, "tokens": 8}
    assert lacking(found) == {
        "not in the log": "entropy, grad_norm, KL or clip fraction, KL to the reference, learning rate, length, "
        "weights, sampler mismatch",
        "too few points, of 3 needed": "reward spread (1), truncated (2)",
        "whether the reward rises": unknown(found)["whether the reward rises"],
    }
    assert "not recorded" in lacking({"reward": 1})
    few = seen(log_of())
    assert len(unknown(few)) > 4
    full = {name: 40 for names, *_ in NEEDED.values() for name in names}
    del full["entropy"]
    assert lacking(full) == unknown(full) == {"whether the policy still explores": "no entropy in the log"}


def test_what_cannot_be_told_is_said():
    """Loss and gradient norm alone, as of supervised training: nothing is found, and nothing is said to be healthy."""
    found = seen(Case(log=Log.of({"step": i, "loss": 2.0 / (i + 1), "grad_norm": 1.0} for i in range(50))))
    assert not can_tell(found)
    assert covered(found).startswith("cannot tell: no reward in this log; read: loss (50 points)")
    open_ = unknown(seen(log_of()))
    assert open_["how many responses are cut off"] == "no share of truncated responses in the log"
    assert "whether it learns" not in open_
    words = text([], unknown=open_)
    assert words.startswith("nothing found: no rule of the doctor fires on what was read")
    assert "cannot tell\n" in words


@pytest.mark.parametrize(("reward", "fires"), [(0.7, True), (100.1, True), (100.1, False)])
def test_a_constant_reward_with_the_rounding_of_its_size(reward, fires):
    """What TRL logs of 64 equal rewards: 100.1 has a standard deviation of 1e-5, and so no group without spread."""
    deviation = torch.full((64,), reward).std().item() if fires else 1e-3
    case = log_of(reward=lambda i: reward, reward_std=lambda i: deviation, frac_reward_zero_std=lambda i: 0.0)
    assert ("constant_reward" in [found.rule for found in diagnose(case)]) == fires


def test_equal_scores_whose_advantages_are_rounding():
    """verl: the batch has one score, another in every step; its mean in float32 is off by 6e-8, and A by 0.05."""
    score = {i: 0.1 + 0.01 * (i % 7) for i in range(101)}
    logged = {"critic/score/mean": score.get, "critic/score/max": score.get, "critic/score/min": score.get}
    logged |= {"critic/advantages/max": lambda i: 0.05, "critic/advantages/min": lambda i: -0.05}
    logged |= dict.fromkeys(("reward", "reward_std", "frac_reward_zero_std"), lambda i: None)
    (found,) = (one for one in diagnose(log_of(**logged)) if one.rule == "zero_variance")
    assert (found.severity, found.step) == ("error", 1)
    logged["critic/score/max"] = lambda i: 1.0
    assert "zero_variance" not in [one.rule for one in diagnose(log_of(**logged))]


@pytest.mark.parametrize(("spread", "fires"), [(0.2, True), (1.0, False)])
def test_a_loss_of_0_without_a_gradient_norm(spread, fires):
    case = log_of(loss=lambda i: 0.0, grad_norm=lambda i: None, frac_reward_zero_std=lambda i: spread)
    found = [finding for finding in diagnose(case) if finding.rule == "zero_loss"]
    assert bool(found) == fires
    if fires:
        assert found[0].severity == "note"
        assert "no gradient norm is logged" in found[0].title


@pytest.mark.parametrize(
    ("events", "length", "severity"), [(1, 800, "note"), (3, 800, "warning"), (1, 80, "warning"), (80, 800, "error")]
)
def test_how_often_a_weight_explodes(events, length, severity):
    """One update among hundreds is not a run that is broken."""
    rows = [
        {
            "step": i,
            "objective/mass/reverse_right": 0.85 if i <= events else 0.02,
            "objective/weight/max": 607.0 if i <= events else 1.3,
        }
        for i in range(1, length + 1)
    ]
    (found,) = diagnose(Case(log=Log.of(rows)))
    assert (found.rule, found.severity) == ("reverse_right", severity)


def test_a_policy_that_hardly_moves_reaches_no_bound():
    rows = [{"step": i, "clip_ratio/region_mean": 0.0} for i in range(1, 9)]
    (plain,), (several,) = (diagnose(Case(log=Log.of(rows), info=i)) for i in ({}, {"updates_per_generation": 4.0}))
    assert "one optimiser update" in plain.cause
    assert "one optimiser update" not in several.cause


# --- small things -----------------------------------------------------------------------------------------------------


def test_any_loop_can_be_diagnosed(tmp_path, make_batch):
    """Tokens that another loop recorded, without a log and without settings."""
    for update in range(3):
        record(tmp_path, make_batch(dtype=torch.float32, seed=update).tokens(), update=update)
    assert "not_finite" not in {finding.rule for finding in diagnose(tmp_path)}


def test_series():
    series = Series(key="loss", steps=(1, 2, 5), values=(3.0, 1.0, 2.0))
    assert series.median == 2
    assert series.since(lambda value: value < 3) == 2
    assert str(series) == "loss 2 at steps 1-5 (median)"
    assert aligned(series, Series(key="x", steps=(2, 4), values=(7.0, 8.0))) == [(2, 1.0, 7.0), (5, 2.0, 8.0)]


def test_text():
    finding = Finding(
        rule="r", severity="error", title="It is so.", evidence=("a 1", "b 2"), cause="c", remedy="d", step=4
    )
    assert text([finding]) == (
        "ERROR  r (from step 4, likely)\n  It is so.\n  evidence  a 1\n            b 2\n  cause     c\n  remedy    d"
    )
    assert text([]) == "nothing found: no rule of the doctor fires on this run"
    assert all(len(line) <= 60 for line in text([dataclasses.replace(finding, cause="word " * 50)], 60).splitlines())
