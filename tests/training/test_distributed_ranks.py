"""What one rank does for the sake of the others: it takes part without anything to learn, and decides with them."""

from __future__ import annotations

import math

import pytest
import torch

from dgpo.training import DGPOTrainer
from dgpo.training.micro_batches import Padding, loss_mask
from dgpo.training.step_rows import How, StepRows


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "log-probs"])
def test_a_micro_batch_without_advantages_takes_part_and_counts_for_nothing(build, micro_batch, gradient_of, fused):
    trainer = build(DGPOTrainer, fused_loss=fused)
    inputs = {**micro_batch(trainer), "advantages": torch.zeros(4)}
    rows = StepRows([inputs], How(padding=Padding(left=True, right=True), drop=True, rearrange=False))
    [made] = rows.parts(0, rows.inputs(0))
    assert loss_mask(made.inputs).sum() == 0
    assert made.inputs["completion_ids"].shape == (1, 1)
    assert loss_mask(inputs).sum() > 0  # TRL reads it again in the next iteration
    loss, gradient = gradient_of(trainer, inputs)  # of every parameter: a rank without a gradient stops the others
    assert (loss, gradient.abs().max()) == (0, 0)
    metrics = trainer._metrics["train"]
    # nothing was looked at, which is not a measurement of 0
    assert all(math.isnan(metrics[f"objective/{name}"][0]) for name in ("fraction/inside", "weight/max", "weight/mean"))
    assert math.isnan(metrics["entropy"][0])
    assert metrics["objective/advantage/zero_fraction"] == [1.0]


def test_metrics_do_not_depend_on_who_had_nothing_to_learn(build, micro_batch, monkeypatch):
    """Two micro-batches, one without advantages: the metrics are those of the other."""
    trainer = build(DGPOTrainer, gradient_accumulation_steps=2)
    trainer.model.train()
    busy = micro_batch(trainer)
    found = []
    for seen in ([busy], [busy, {**micro_batch(trainer, seed=1), "advantages": torch.zeros(4)}]):
        trainer.current_gradient_accumulation_steps = 2
        trainer._buffered_inputs, trainer._totals = [busy] * 4, None
        for number, inputs in enumerate(seen):
            trainer.accelerator.gradient_state._set_sync_gradients(number == len(seen) - 1)
            trainer._compute_loss(trainer.model, inputs)
        metrics = trainer._metrics["train"]
        found.append({name: values[-1] for name, values in metrics.items() if "weight/" in name or "fraction/" in name})
    alone, together = found
    whole = {"objective/advantage/zero_fraction"}  # over all responses
    assert {name: together[name] for name in together if name not in whole} == pytest.approx(
        {name: alone[name] for name in alone if name not in whole}, rel=1e-6
    )


def test_a_log_prob_that_another_rank_lacks_decides_the_way_to_the_loss(build, micro_batch, monkeypatch):
    trainer = build(DGPOTrainer, correction="truncate")
    inputs = micro_batch(trainer)
    assert trainer._step_loss._can_fuse(inputs)
    of_another_rank = lambda flag, reduction: flag + 1  # noqa: E731
    monkeypatch.setattr(trainer.accelerator, "reduce", of_another_rank)
    assert trainer._step_loss._can_fuse(inputs)  # log π_old is known: nobody asks
    del inputs["old_per_token_logps"]
    assert not trainer._step_loss._can_fuse(inputs)
    monkeypatch.undo()
    assert trainer._step_loss._can_fuse(inputs)
    inputs["sampling_per_token_logps"][1, 0] = torch.nan
    assert not trainer._step_loss._can_fuse(inputs)
