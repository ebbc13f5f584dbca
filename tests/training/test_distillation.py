"""A teacher's log-probs as advantages: what they are, TRL's sampled-token distillation, and that the student learns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.iw_opd import IWOPDTrainer

from dgpo.training import DGPOTrainer
from dgpo.training.starter import character_tokenizer, tiny_model

LOGGED = ("mean_advantage", "mean_abs_advantage", "mean_weight", "min_weight", "max_weight")


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = character_tokenizer()
    # the student's weights, with a head that makes it surer of itself
    model = tiny_model(tokenizer, hidden=32, layers=2, seed=0)
    with torch.no_grad():
        model.lm_head.weight *= 6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def constant(completions, **_):
    """No spread in any group: nothing but the teacher gives a gradient."""
    return [0.5] * len(completions)


def own_logprob(model, inputs, temperature):
    """Logits [B, T, V] and log-probs [B, T] of the completions, without a fused head."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    T = inputs["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -T - 1 : -1]
    logp = (logits / temperature).log_softmax(-1)
    return logits, logp.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)


def trl_loss(trainer, model, teacher, inputs, tokens):
    """TRL's loss of sampled tokens, without the weights of prefixes that it adds."""
    settings = SimpleNamespace(
        temperature=trainer.temperature,
        iw_opd_gamma=0.0,
        iw_opd_epsilon=1e-8,
        model=model,
        _metrics={mode: {f"iw_opd/{name}": [] for name in LOGGED} for mode in ("train", "eval")},
    )
    logits, _ = own_logprob(model, inputs, trainer.temperature)
    with torch.no_grad():
        _, teacher_logprob = own_logprob(teacher, inputs, trainer.temperature)
    return IWOPDTrainer._compute_iw_opd_loss(
        settings,
        student_logits=logits,
        completion_tokens=inputs["completion_ids"],
        labels=inputs["completion_ids"].masked_fill(inputs["completion_mask"] == 0, -100),
        teacher_actual_logprobs=teacher_logprob,
        num_items_in_batch=tokens,
    )


@pytest.mark.parametrize("fused", [True, False])
def test_the_first_update_has_the_gradient_of_trls_distillation(build, teacher_folder, monkeypatch, fused):
    """Loss by loss, in every micro-batch of the first update: later ones have ratios, which TRL's loss has not."""
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    compared = []
    original = DGPOTrainer._compute_loss

    def compare(self, model, inputs):
        loss = original(self, model, inputs)
        weights = list(model.parameters())
        found = torch.autograd.grad(loss, weights, retain_graph=True)
        theirs = trl_loss(self, model, teacher, inputs, self._step_totals(inputs).tokens)
        expected = torch.autograd.grad(theirs, weights)
        largest = float(max(gradient.abs().max() for gradient in expected))
        assert largest > 1e-3
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * largest)
        compared.append(inputs["advantages"])
        return loss

    monkeypatch.setattr(DGPOTrainer, "_compute_loss", compare)
    trainer = build(
        DGPOTrainer,
        reward=constant,
        advantage="distill",
        teacher=str(teacher_folder),
        temperature=0.9,
        gradient_accumulation_steps=2,
        fused_loss=fused,
        max_steps=1,
    )
    trainer.train()
    # the rows of an update may be cut anew
    assert len(compared) == 2
    assert sum(len(advantages) for advantages in compared) == 8
    assert all(advantages.dim() == 2 for advantages in compared)
    assert trainer._step_loss.heads.fused is fused


def test_advantages_are_the_difference_of_log_probs(build, teacher_folder, monkeypatch):
    """In every generation, at every valid token; with the reward's advantage added, and no row left out."""
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    seen = []
    original = DGPOTrainer._generate_once

    def watched(self, inputs):
        output, scores = original(self, inputs)
        with torch.no_grad():
            pair = [own_logprob(model, output, self.temperature)[1] for model in (self.model, teacher)]
        seen.append((output, scores, *pair))
        return output, scores

    monkeypatch.setattr(DGPOTrainer, "_generate_once", watched)
    trainer = build(
        DGPOTrainer,
        advantage={"name": "distill", "coef": 0.3, "reward": "none"},
        teacher=str(teacher_folder),
        max_steps=5,
    )
    trainer.train()
    assert len(seen) == 2
    rows = [row for row in trainer.state.log_history if "loss" in row]
    for (output, scores, old, taught), row in zip(seen, (rows[0], rows[4]), strict=True):
        mask = output["completion_mask"].bool()
        expected = torch.where(mask, 0.3 * (taught - old) + scores.advantages.float().unsqueeze(1), 0.0)
        torch.testing.assert_close(output["advantages"], expected, rtol=1e-4, atol=1e-5)
        assert row["objective/kl/teacher"] == pytest.approx((old - taught)[mask].mean().item(), abs=1e-5)
    assert all(row["objective/rows_dropped"] == 0 for row in rows)


@pytest.mark.soak
def test_a_student_comes_nearer_to_its_teacher(build, teacher_folder):
    """From the teacher alone, with rewards that have no spread; evaluation asks the teacher too."""
    data = Dataset.from_dict({"prompt": ["1+1=", "2+2=", "3+3=", "4+4="]})
    trainer = build(
        DGPOTrainer,
        reward=constant,
        advantage="distill",
        teacher=str(teacher_folder),
        teacher_model_init_kwargs='{"dtype": "float32"}',
        per_device_train_batch_size=32,
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        max_steps=40,
        trainer_options={"eval_dataset": data},
    )
    trainer.train()
    kl = [row["objective/kl/teacher"] for row in trainer.state.log_history if "objective/kl/teacher" in row]
    assert len(kl) == 10
    assert kl[-1] < 0.8 * kl[0]
    assert not trainer._teacher.model.training
    assert not any(parameter.requires_grad for parameter in trainer._teacher.model.parameters())
    logged = trainer.evaluate()
    assert logged["eval_loss"] != 0
    assert logged["eval_objective/kl/teacher"] < kl[0]


def test_teachers_that_are_refused(build, teacher_folder, tmp_path):
    options = {"advantage": "distill", "max_steps": 1}
    other = tmp_path / "other"
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded; expected the student's"):
        build(DGPOTrainer, teacher=str(other), **options)
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(other)
    # transformers makes an empty one for a folder without the files
    with pytest.raises(
        ValueError, match=r"another tokenizer than the student: it differs in 100 tokens, such as '\\n'"
    ):
        build(DGPOTrainer, teacher=str(other), **options)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(other)
    said = r"another tokenizer than the student: it differs in 1 token, such as '<think>' \(id None and \d+ there\)"
    with pytest.raises(ValueError, match=said):
        build(DGPOTrainer, teacher=str(other), **options)
