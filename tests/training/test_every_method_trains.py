"""Every registered method through `dgpo train`, and a method of this file through everything, without another edit."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo import TokenBatch, policy_loss
from dgpo.cli import train
from dgpo.cli.main import run
from dgpo.fields import number
from dgpo.objectives import OBJECTIVES, Objective, Paper, Properties, table
from dgpo.training import DGPOConfig, DGPOTrainer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "addition.yaml"
FIGURE = ROOT / "docs" / "figures" / "weights.py"


@dataclass(frozen=True, kw_only=True)
class Toy(Objective):
    """A power of the ratio, which nothing outside of this file knows about.

    With r the importance ratio::

        w = r^slope        φ = 1 + (r^slope - 1) / slope

    Args:
        slope: power of the ratio.

    Source: this test.
    """

    papers = (Paper(arxiv_id="1234.56789", year=2030),)

    slope: float = number(0.5, "(0, 1]")

    def weight(self, tokens: TokenBatch) -> torch.Tensor:
        return (self.slope * tokens.log_ratio).exp()

    def potential(self, tokens: TokenBatch) -> torch.Tensor:
        return 1 + ((self.slope * tokens.log_ratio).exp() - 1) / self.slope

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=math.inf,
            limit_negative="infinite" if self.slope < 1 else "finite",
            limit_positive="infinite" if self.slope < 1 else "finite",
        )


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "toy", Toy)


@pytest.fixture
def trained(tiny_folder, tmp_path, monkeypatch, digit_reward):
    """`dgpo train --config recipes/addition.yaml --objective NAME` for 4 updates of 8; the trainer that it made."""
    made = []

    class Watched(DGPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    # a random model adds nothing up correctly: without this reward every advantage would be 0
    rewards = type(sys)("dgpo_rewards_of_this_test")
    rewards.digits = digit_reward
    monkeypatch.setitem(sys.modules, rewards.__name__, rewards)
    monkeypatch.setattr(train, "DGPOTrainer", Watched)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    flags = {
        "model_name_or_path": tiny_folder,
        "output_dir": tmp_path / "out",
        "rewards": f"{rewards.__name__}.digits",
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        # far enough between updates that ratios differ from 1
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": "true",
    }

    def trained(name, *more):
        words = [str(word) for option, value in flags.items() for word in (f"--{option}", value)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert run(["train", "--config", str(RECIPE), "--objective", name, *words, *more]) == 0
        (trainer,) = made
        return trainer

    return trained


def check_rows(trainer):
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert all(
            math.isfinite(row[key]) for key in row if key in ("loss", "grad_norm") or key.startswith("objective/")
        )
    assert rows[0]["grad_norm"] > 1e-3
    assert rows[0]["objective/weight/mean"] == pytest.approx(1.0, abs=1e-4)  # the first update is on-policy
    assert rows[0]["objective/kl/old"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["objective/kl/old"] > 1e-5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_trains_by_the_recipe(name, trained):
    trainer = trained(name)
    assert type(trainer._factors.spec.objective) is OBJECTIVES[name]
    check_rows(trainer)


def test_fields_of_a_method_reach_the_loss(trained):
    trainer = trained("ce_gppo", "--objective_kwargs", '{"beta1": 0.5, "dual_clip": 10}')
    assert (trainer._factors.spec.objective.beta1, trainer._factors.spec.objective.dual_clip) == (0.5, 10)


def test_entropy_reaches_a_method_that_reads_it(trained):
    check_rows(trained("aspo", "--objective_kwargs", '{"entropy_quantile": 0.8}'))


# --- a method that is nowhere but here --------------------------------------------------------------------------------


def test_a_toy_in_the_loss_and_its_statistics(toy, make_batch):
    batch = make_batch()
    batch.logprob.requires_grad_()
    arguments = (batch.logprob, batch.old_logprob, batch.advantage, batch.mask)
    out = policy_loss(*arguments, objective="toy")
    (gradient,) = torch.autograd.grad(out.value, batch.logprob)
    root = ((batch.logprob - batch.old_logprob) / 2).exp().detach()
    expected = torch.where(batch.mask, -batch.advantage.unsqueeze(1) * root / batch.mask.sum(), 0.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    value = torch.where(batch.mask, batch.advantage.unsqueeze(1) * (1 + 2 * (root - 1)), 0.0).sum() / batch.mask.sum()
    assert out.value.item() == pytest.approx(-value.item(), rel=1e-12)
    assert out.statistics.keys() == policy_loss(*arguments, objective="dgpo").statistics.keys()
    assert out.statistics["weight/mean"].item() == pytest.approx(root[batch.mask].mean().item(), rel=1e-12)


def test_a_toy_in_the_table(toy, capsys):
    row = table.rows()[-1]
    assert (row.name, row.cls, row.arxiv, row.fields) == ("toy", "Toy", "1234.56789", {"slope": 0.5})
    assert "\ntoy " in table.as_text()
    assert "| `toy` | " in table.as_markdown()
    assert run(["objectives", "toy"]) == 0
    assert "w = r^slope" in capsys.readouterr().out


def test_a_toy_in_the_figure(toy):
    spec = importlib.util.spec_from_file_location("weights_of_the_toy", FIGURE)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for drawn in script.curves()["toy"].values():
        torch.testing.assert_close(drawn, (script.LOG_RATIO / 2).exp(), rtol=1e-12, atol=0)
    for axis in script.draw().axes:
        assert "toy" in [line.get_label() for line in axis.get_lines()]


def test_a_toy_in_the_command(toy, trained):
    trainer = trained("toy", "--objective_kwargs", '{"slope": 0.25}')
    assert trainer._factors.spec.objective == Toy(slope=0.25)
    check_rows(trainer)


def test_a_toy_in_the_trainer(toy, tiny_folder, prompts, quick, digit_reward, tmp_path):
    """By its name, as an instance, and refused with the words of any other method."""
    for objective in ("toy", Toy(slope=0.5)):
        trainer = DGPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder),
            digit_reward,
            DGPOConfig(str(tmp_path), objective=objective, **{**quick, "max_steps": 4}),
            train_dataset=prompts,
            processing_class=AutoTokenizer.from_pretrained(tiny_folder),
        )
        trainer.train()
        assert trainer._factors.spec.objective == Toy()
        check_rows(trainer)
    with pytest.raises(ValueError, match=r"objective 'toy' has no field 'slop', did you mean 'slope'\?"):
        DGPOConfig(str(tmp_path), objective="toy", objective_kwargs={"slop": 1}, **quick)
