"""Every legal pair of TRL's options about the loss, against stock GRPOTrainer: six float32 steps of a small model.

The suite runs few sets of options that hold every pair between them, the soak every pair, on both ways to the loss.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import trl_pairs
from trl import GRPOTrainer
from trl_pairs import COVERED, OPTIONS, OTHER_VALUES, PAIRS, Run, compare, covering, run, save_models, why_not

from dgpo.training import DGPOConfig, DGPOTrainer

LEGAL = [pair for pair in PAIRS if why_not(frozenset(pair)) is None]
ILLEGAL = [pair for pair in PAIRS if why_not(frozenset(pair)) is not None]
ROWS = covering(COVERED)
STEP_TOTALS = {"dapo", "cispo", "vespo"}

DIFFERENT = {"loss", "policy_loss", "entropy", "clip_ratio/low_min", "clip_ratio/high_max", "vespo/phi_seq_mean"}
"""Metrics of TRL's that mean something else here under some options: the table in docs/training.md."""


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    save_models(folder)
    return folder


def agree(names: frozenset[str], theirs: Run, ours: Run) -> None:
    """Parameters, gradient norms, losses, and every metric of TRL's, as far as they mean the same."""
    assert len(theirs.rows) == len(ours.rows) == trl_pairs.STEPS
    (loss,) = [name for name in names if OPTIONS[name].group == "loss"] or ["dapo"]
    accumulation = 2 if "accumulation" in names else 1
    for step, (expected, found) in enumerate(zip(theirs.rows, ours.rows, strict=True)):
        more = {name for name in found if name not in expected}
        assert {name for name in more if not name.startswith("objective/")} == set(), "metrics that TRL has not"
        for name, value in expected.items():
            assert name in found, f"step {step}: {name} is not logged"
            if name == "step_time":
                continue
            mine = found[name]
            if name in ("loss", "policy_loss") and loss in OTHER_VALUES:
                continue
            if name == "policy_loss" and loss in STEP_TOTALS:
                value *= accumulation
            if name in ("entropy", "vespo/phi_seq_mean") and found["objective/rows_dropped"] > 0:
                continue
            if name == "vespo/phi_seq_mean" and "truncated" in names:
                continue
            if name == "clip_ratio/low_min" and accumulation > 1:
                assert mine <= value
                continue
            if name == "clip_ratio/high_max" and accumulation > 1:
                assert mine >= value
                continue
            assert mine == pytest.approx(value, rel=1e-3, abs=1e-4), f"step {step}: {name}"
    distance = (theirs.parameters - ours.parameters).norm()
    assert distance <= 1e-4 * theirs.parameters.norm()


@pytest.mark.parametrize("names", ROWS, ids=[str(i) for i in range(len(ROWS))])
def test_sets_of_options_that_hold_every_pair(models, tmp_path, names):
    agree(names, *compare(names, models, tmp_path))


def test_the_sets_hold_every_pair():
    held = {frozenset(pair) for row in ROWS for pair in itertools.combinations(row, 2)}
    wanted = {frozenset(pair) for pair in LEGAL if set(pair) <= set(COVERED)}
    assert wanted <= held
    assert len(wanted) > 450


@pytest.mark.soak
@pytest.mark.parametrize("pair", LEGAL, ids="-".join)
def test_pair(models, tmp_path, pair):
    names = frozenset(pair)
    theirs, ours = compare(names, models, tmp_path)
    agree(names, theirs, ours)
    if ours.fused:
        theirs, ours = compare(names, models, tmp_path, fused=False)
        assert not ours.fused
        agree(names, theirs, ours)


@pytest.mark.soak
@pytest.mark.parametrize("name", OPTIONS)
def test_option_alone_matters(models, tmp_path, name):
    """A comparison says nothing about an option without effect, so these have one."""
    names = frozenset([name])
    theirs, ours = compare(names, models, tmp_path)
    agree(names, theirs, ours)
    plain = run(GRPOTrainer, models, tmp_path, {"loss_type": "dapo"})
    unchanged = {"dapo", "bnpo", "sampler", "head-float32", "pad-to-multiple", "checkpointing", "generation"}
    if name not in unchanged and theirs.parameters.shape == plain.parameters.shape:
        assert (theirs.parameters - plain.parameters).norm() > 1e-3 * plain.parameters.norm()


def test_what_is_no_pair_is_refused_or_named():
    """Every reason not to compare is one of these, and where the reason is that we refuse, we do."""
    refused = 0
    for pair in ILLEGAL:
        reason = why_not(frozenset(pair))
        if not re.search("is refused|no field here", reason):
            assert re.search("TRL refuses|TRL's `cast|TRL folds|TRL's mean|what dropout draws|sets it already", reason)
            continue
        options: dict = {}
        for name in sorted(pair, key=lambda name: OPTIONS[name].group != "loss"):
            options |= OPTIONS[name].trl if OPTIONS[name].ours is None else OPTIONS[name].ours
        with pytest.raises(ValueError, match=r"has no|unknown"):
            DGPOConfig("unused", bf16=False, use_cpu=True, **options)
        refused += 1
    assert refused >= 6


@pytest.mark.parametrize("trainer_class", [GRPOTrainer, DGPOTrainer])
def test_a_synced_reference_needs_a_model_of_its_own_in_both(models, tmp_path, trainer_class):
    with pytest.raises(NotImplementedError, match="sync_ref_model"):
        run(trainer_class, models, tmp_path, OPTIONS["sync-ref"].trl, lora=True)


def test_a_mean_over_responses_leaves_masked_ones_out(models, tmp_path):
    """TRL divides by all four responses of a micro-batch, here by the three that were not cut off."""
    options = {"mask_truncated_completions": True, "max_steps": 1}
    theirs = run(GRPOTrainer, models, tmp_path, {**options, "loss_type": "grpo"})
    ours = run(DGPOTrainer, models, tmp_path, {**options, "objective": "grpo", "aggregation": "seq-mean-token-mean"})
    for name in ("loss", "grad_norm"):
        assert ours.rows[0][name] == pytest.approx(4 / 3 * theirs.rows[0][name], rel=1e-4)


def test_the_docs_name_the_metrics_that_differ():
    text = Path(__file__).parents[2].joinpath("docs/training.md").read_text(encoding="utf-8")
    table = text.split("| TRL's metric |")[1].split("\n\n")[0]
    assert {name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])} == DIFFERENT


def test_an_entropy_bonus_under_a_quantile_is_of_the_kept_tokens(models, tmp_path):
    """The bonus alone: its gradient is that of the mean entropy of the upper half of the tokens."""
    options = {"top_entropy_quantile": 0.5, "entropy_coef": 0.5, "max_steps": 1}
    found = {}
    for trainer_class, more in ((GRPOTrainer, {"loss_type": "dapo"}), (DGPOTrainer, {"objective": "grpo"})):
        found[trainer_class] = run(trainer_class, models, tmp_path, {**options, **more}).rows[0]
        whole = run(trainer_class, models, tmp_path, {**options, **more, "top_entropy_quantile": 1.0}).rows[0]
        assert whole["grad_norm"] != pytest.approx(found[trainer_class]["grad_norm"], rel=1e-2)
    theirs, ours = found[GRPOTrainer], found[DGPOTrainer]
    bonus = (theirs["policy_loss"] - theirs["loss"]) / 0.5
    assert (ours["policy_loss"] - ours["loss"]) / 0.5 == pytest.approx(bonus, rel=1e-5)
    assert bonus > theirs["entropy"] + 0.05  # the kept tokens have more than the mean
    assert torch.tensor(ours["grad_norm"]) == pytest.approx(theirs["grad_norm"], rel=1e-5)
