"""Every rule fires on a real run with its fault, and on no other; a healthy run has nothing to report."""

from __future__ import annotations

import json

import pytest
from broken_runs import RUNS

from dgpo.diagnostics.doctor import RULES, diagnose, text

FAULTS = {
    "on_policy": ("on_policy", set()),
    "constant_reward": ("constant_reward", set()),
    "zero_reward": ("zero_reward", set()),
    "zero_variance": ("zero_variance", set()),
    "truncated": ("truncated", set()),
    # the mean advantage is 0 at ratio 1 only
    "zero_loss": ("zero_loss", {"on_policy"}),
    # all responses are masked because all are cut off
    "no_gradient": ("no_gradient", {"truncated"}),
    "drift": ("drift", set()),
    "reverse_right": ("reverse_right", set()),
    # a policy that has become one response has groups without spread, and a large gradient where one differs
    "entropy_falling": ("entropy_falling", {"zero_variance", "grad_spike"}),
    "solved": ("solved", {"grad_spike"}),
    # a flat policy does not stop
    "entropy_rising": ("entropy_rising", {"truncated"}),
    "grad_clipped": ("grad_clipped", set()),
    "concentration": ("concentration", set()),
    "sampler_temperature": ("sampler_temperature", set()),
    "sampler_truncation": ("sampler_truncation", set()),
    "sampler_stale": ("sampler_stale", set()),
    # the mismatch of a sampler that lags behind grows as long as the lag does; stale samples teach it to go on writing
    "anchor": ("anchor", {"sampler_mismatch", "sampler_stale", "truncated"}),
    "sampler_mismatch": ("sampler_mismatch", set()),
    "normaliser_per_micro_batch": ("normaliser", set()),
    "normaliser_twice": ("normaliser", set()),
    "not_finite": ("not_finite", set()),
    "resume_learning_rate": ("resume_jump", set()),
    # the weights that were put in have a higher entropy from then on, and stop later
    "resume_weights": ("resume_jump", {"entropy_rising", "truncated"}),
    "timeouts": ("timeouts", set()),
    "hardly_moves": ("on_policy", set()),
    "reward_fell": ("reward_fell", set()),
    "grad_spike": ("grad_spike", set()),
    "length_fell": ("length_fell", set()),
}
"""Run -> the rule that must fire, and those that may: what follows from the fault in this run."""

HEALTHY = [name for name in RUNS if name.startswith("healthy")]

NEED_TOKENS = {"normaliser", "concentration", "sampler_temperature"}
"""Rules that a log alone cannot serve."""


ON_LOGS = {
    # in test_real_logs.py, on runs of other people
    "reference_differs", "reference_kl", "no_baseline", "reward_function_constant", "reward_flat", "length_grows",
    "skipped",
    # in test_rules.py, on curves
    "not_scored", "no_learning_rate", "schedule_over", "collapsed", "length_at_cap", "reward_function_saturated",
    "sampling_settings", "steps",
}  # fmt: skip
"""Rules that no small run of the trainer has a fault for, and where they are tested instead."""


def test_every_rule_has_a_run_with_its_fault():
    assert {rule for rule, _ in FAULTS.values()} | ON_LOGS == {rule.name for rule in RULES}
    assert not {rule for rule, _ in FAULTS.values()} & ON_LOGS
    assert set(RUNS) == {*FAULTS, *HEALTHY}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_nothing_to_report(run_of, name):
    assert text(diagnose(run_of(name))).startswith("nothing found")


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_named_and_nothing_else(run_of, name):
    rule, companions = FAULTS[name]
    findings = diagnose(run_of(name))
    assert rule in {finding.rule for finding in findings}
    assert {finding.rule for finding in findings} <= {rule, *companions}
    for finding in findings:
        assert finding.evidence
        assert finding.step is not None
    json.dumps([finding.as_dict() for finding in findings], allow_nan=False)


@pytest.mark.parametrize("name", FAULTS)
def test_the_log_alone(run_of, name):
    """Without tokens and settings: the same, as far as metrics tell."""
    rule, companions = FAULTS[name]
    fired = {finding.rule for finding in diagnose(run_of(name) / "metrics.jsonl")}
    if rule in {"sampler_temperature"}:
        assert fired == {"sampler_mismatch"}  # that there is a difference shows, where from does not
    elif rule in NEED_TOKENS | {"grad_clipped", "not_finite"}:
        assert rule not in fired
        assert fired <= companions | {"sampler_mismatch"}
    else:
        assert rule in fired
        assert fired <= {rule, *companions}


def of(findings, rule):
    return next(finding for finding in findings if finding.rule == rule)


def test_where_it_begins(run_of):
    assert of(diagnose(run_of("sampler_stale")), "sampler_stale").step == 13  # the fourth generation of four updates
    assert of(diagnose(run_of("resume_weights")), "resume_jump").step == 12
    broken = of(diagnose(run_of("not_finite")), "not_finite")
    assert broken.step == 9
    assert "logprob[0, 0]" in broken.evidence[0]
    assert "token id" in broken.evidence[0]


def test_measures_of_the_fault(run_of):
    assert "1.3" in of(diagnose(run_of("sampler_temperature")), "sampler_temperature").title
    twice = of(diagnose(run_of("normaliser_twice")), "normaliser").title
    assert "0.5 times" in twice
    assert "micro-batches (2)" in twice
    assert "micro-batches (2)" in of(diagnose(run_of("normaliser_per_micro_batch")), "normaliser").title
    standing = of(diagnose(run_of("hardly_moves")), "on_policy")
    assert standing.severity == "warning"
    assert "hardly moves" in standing.title
    assert "serves 4 updates" in standing.title
    assert "learning rate is so small" in standing.cause
    assert of(diagnose(run_of("reward_fell")), "reward_fell").step == 31
    assert of(diagnose(run_of("grad_spike")), "grad_spike").step == 13
    assert "reverse_cap=3" in of(diagnose(run_of("reverse_right")), "reverse_right").remedy
    assert (
        "0.0003 before step 12, 0.0002 after" in of(diagnose(run_of("resume_learning_rate")), "resume_jump").evidence[0]
    )
