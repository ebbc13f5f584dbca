"""The loss is that of the model's own logits, whatever the model makes of its hidden states: fused, or not fused."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_architectures import NAMES, tiny
from transformers import AutoModelForCausalLM, Qwen3Config
from trl import GRPOTrainer

from dgpo import StepTotals, policy_loss
from dgpo.fused.head import Head
from dgpo.training import DGPOTrainer
from dgpo.training.head_comparison import _fit

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def own_gradient(trainer, inputs, temperature=1.0):
    """Of the objective by autograd through the model's own logits, and their log-probs."""
    ids, mask = (torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    width = inputs["completion_ids"].shape[1]
    trainer.model.zero_grad()
    logits = trainer.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -width - 1 : -1]
    logp = (logits.float() / temperature).log_softmax(-1)
    logprob = logp.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    valid = inputs["completion_mask"].bool()
    loss = policy_loss(
        logprob,
        inputs["old_per_token_logps"],
        inputs["advantages"],
        valid,
        trainer._factors.spec.objective,
        totals=StepTotals.of(valid),
    ).value
    loss.backward()
    return loss.item(), _gradient(trainer.model), logprob.detach()


def _gradient(model):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def check_trainer(trainer, micro_batch):
    """Loss, gradient and log-probs of the trainer against the model's own logits."""
    inputs = micro_batch(trainer)
    trainer.model.eval()  # no dropout; the rest of a training step is left out here
    totals = StepTotals.of(inputs["completion_mask"].bool())
    loss, expected, logprob = own_gradient(trainer, inputs, trainer.temperature)
    trainer.model.zero_grad()
    found = trainer._step_loss(trainer.model, inputs, totals, trainer._terms())
    found.out.value.backward()
    gradient = _gradient(trainer.model)
    assert found.out.value.item() == pytest.approx(loss, abs=1e-5)
    assert expected.norm() > 1e-3
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()
    with torch.no_grad():
        passed = trainer._forward(trainer.model, inputs)[0]  # as for log π_old and the reference
    valid = inputs["completion_mask"].bool()
    torch.testing.assert_close(passed[valid], logprob[valid], rtol=1e-4, atol=1e-4)


# what each is here for
MODELS = {
    "llama": True,
    "gemma2": True,  # a cap
    "granite": True,  # divides its logits
    "cohere": True,  # multiplies its logits
    "recurrent_gemma": True,  # a cap under a name that TRL does not know
    "phi": True,  # a bias
    "inkling_text": False,  # a scale and a shorter vocabulary
    "llama4_text": False,  # no body of its own
    "bert": False,  # a transformation before the output layer
}


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture(build, micro_batch, name):
    trainer = build(DGPOTrainer, model=tiny(name, odd=True), temperature=0.8, router_aux_loss_coef=0.0)
    assert trainer._step_loss.heads.fused == MODELS[name]
    check_trainer(trainer, micro_batch)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture(build, micro_batch, name):
    """Those that can be made tiny from their configuration, and whose own forward then runs."""
    try:
        model = tiny(name, odd=True)
        ids = torch.arange(1, 13).view(2, 6)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception as error:  # noqa: BLE001 - said in the report of the skipped
        pytest.skip(f"{type(error).__name__}: {error}"[:200])
    check_trainer(build(DGPOTrainer, model=model, router_aux_loss_coef=0.0), micro_batch)


# --- other ways to change what a model makes of its hidden states ---------------------------------------------------


def qwen3():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Qwen3Config(**SMALL, tie_word_embeddings=False, initializer_range=0.2))


def with_hook_on_head():
    model = qwen3()
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def with_hook_on_model():
    model = qwen3()

    def double(module, args, output):
        if "logits" in output:
            output["logits"] = 2 * output.logits

    model.register_forward_hook(double)
    return model


def with_patched_forward():
    model = qwen3()
    original = model.forward

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = forward
    return model


def with_patched_head():
    model = qwen3()
    original = model.lm_head.forward
    model.lm_head.forward = lambda hidden: original(hidden) / 3
    return model


def with_head_of_a_subclass():
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = qwen3()
    model.set_output_embeddings(Scaled(32, 101, bias=False))
    return model


def with_banned_tokens():
    model = qwen3()

    def ban(module, args, output):
        return output.index_fill(-1, torch.tensor([5, 6]), -1e4)

    model.lm_head.register_forward_hook(ban)
    return model


def with_weight_norm():
    model = qwen3()
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    return model


@pytest.mark.parametrize(
    "make",
    [
        with_hook_on_head,
        with_hook_on_model,
        with_patched_forward,
        with_patched_head,
        with_head_of_a_subclass,
        with_banned_tokens,
        with_weight_norm,
    ],
)
def test_what_stands_between_hidden_states_and_logits(build, micro_batch, caplog, make):
    with caplog.at_level(logging.WARNING, logger="dgpo"):
        trainer = build(DGPOTrainer, model=make())
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("dgpo")]
    if make is with_weight_norm:  # TRL's head reads the weight that it makes
        assert line.startswith("fused_loss is off, log-probs are computed first: the output head is a Parametrized")
    elif not trainer._step_loss.heads.fused:
        assert "log-probs are taken from the model's own logits: with TRL's head" in line
    check_trainer(trainer, micro_batch)


def test_a_patch_that_scales_is_measured_and_fused(build, micro_batch):
    trainer = build(DGPOTrainer, model=with_patched_forward())
    assert trainer._step_loss.heads.fused
    assert trainer._step_loss.heads.head.scale == pytest.approx(1.5)


def test_a_head_of_zeros_is_measured_all_the_same(build):
    """Its logits say nothing yet; what will be made of them does."""
    model = tiny("gemma2")
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    trainer = build(DGPOTrainer, model=model)
    assert trainer._step_loss.heads.fused
    assert trainer._step_loss.heads.head.softcap == pytest.approx(30.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_in_bfloat16_or_under_autocast(build, dtype):
    for name, fused in (("gemma2", True), ("granite", True), ("inkling_text", False)):
        trainer = build(DGPOTrainer, model=tiny(name, odd=True).to(dtype), bf16=dtype == torch.float32)
        assert trainer._step_loss.heads.fused == fused


@pytest.mark.parametrize("cast", [True, False])
def test_lora_and_a_head_in_float32(build, cast):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    options = {"cast_lm_head_to_fp32": True} if cast else {"trainer_options": {"peft_config": adapter}}
    trainer = build(DGPOTrainer, model=qwen3().bfloat16() if cast else qwen3(), **options)
    assert trainer._step_loss.heads.fused


def test_looking_changes_nothing(build, tiny_folder):
    """Random numbers, modes of modules, and so a whole run with dropout, bit for bit."""

    def train(look):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, attention_dropout=0.1, attn_implementation="eager")
        model.model.layers[0].eval()
        trainer = build(DGPOTrainer, model=model, max_steps=3, learning_rate=1e-3)
        if look:
            trainer._step_loss.heads._to_compare = True
            trainer._step_loss.heads.compare(trainer.model)
        assert not model.model.layers[0].training
        trainer.train()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train(look=False), train(look=True))


def test_models_that_are_not_here_yet_are_compared_at_the_first_loss(build, micro_batch, caplog, monkeypatch):
    monkeypatch.setattr("dgpo.training.head.Heads._all_here", lambda self, model: False)
    with caplog.at_level(logging.WARNING, logger="dgpo"):
        trainer = build(DGPOTrainer, model=tiny("inkling_text"))
        assert trainer._step_loss.heads.fused
        assert not [record for record in caplog.records if record.name.startswith("dgpo")]
        check_trainer(trainer, micro_batch)
    assert not trainer._step_loss.heads.fused
    assert "log-probs differ by" in caplog.text
    capped = build(DGPOTrainer, model=tiny("recurrent_gemma"))
    check_trainer(capped, micro_batch)
    assert capped._step_loss.heads.head.softcap == pytest.approx(30.0)


def test_the_reference_model_takes_its_own_logits_too(build, tmp_path):
    tiny("inkling_text", seed=1).save_pretrained(tmp_path / "reference")
    model = tiny("inkling_text")
    model.config._name_or_path = str(tmp_path / "reference")
    trainer = build(DGPOTrainer, model=model, beta=0.1)
    ids = torch.arange(3, 15).view(2, 6)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.ref_model, ids, mask, 4)
        logits = trainer.ref_model(input_ids=ids, attention_mask=mask).logits[:, 1:-1]
    expected = logits.log_softmax(-1).gather(-1, ids[:, 2:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda raw: raw, Head()),
        (lambda raw: 0.0625 * raw, Head(scale=0.0625)),
        (lambda raw: 30 * torch.tanh(raw / 30), Head(softcap=30.0)),
        (lambda raw: 5 * torch.tanh(0.3 * raw / 5), Head(scale=0.3, softcap=5.0)),
        (lambda raw: -raw, None),
        (lambda raw: raw + 1, None),
        (lambda raw: raw.clamp(-10, 10), None),
        (lambda raw: raw.where(torch.arange(len(raw)) != 7, -1e9), None),
        (lambda raw: 0 * raw, None),
    ],
)
def test_the_measure(made, expected):
    raw = (torch.arange(130) % 129 - 64).double()
    raw[0] = 2.0**20
    found = _fit(raw, made(raw).expand(2, 8, 130))
    if expected is None:
        assert found is None
    else:
        assert found.scale == pytest.approx(expected.scale)
        assert found.softcap == (None if expected.softcap is None else pytest.approx(expected.softcap))


# --- what somebody else puts on the way to log-probs ------------------------------------------------------------------


class Tempered(DGPOTrainer):
    """What users write: TRL's log-probs, changed."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        logprob, entropy, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return 0.5 * logprob, entropy, aux_loss


def test_a_subclass_with_log_probs_of_its_own_is_heard(build, caplog):
    with caplog.at_level(logging.WARNING, logger="dgpo"):
        trainer = build(Tempered, max_steps=6)
    assert not trainer._step_loss.heads.fused
    assert "Tempered overrides _get_per_token_logps_and_entropies" in caplog.text
    trainer.train()  # the pass for log π_old runs too, and its result goes through the subclass
    assert all(row["objective/weight/mean"] > 0 for row in trainer.state.log_history if "loss" in row)


def test_a_method_replaced_on_the_trainer_is_heard(build, caplog):
    trainer = build(DGPOTrainer, max_steps=1)
    assert trainer._step_loss.heads.fused
    called = []
    original = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: called.append(1) or original(*a, **k)
    trainer.train()
    assert not trainer._step_loss.heads.fused
    assert called


def test_a_patch_of_trl_is_heard(build, monkeypatch):
    original = GRPOTrainer._get_per_token_logps_and_entropies
    monkeypatch.setattr(
        GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self, *a, **k: original(self, *a, **k)
    )
    assert not build(DGPOTrainer)._step_loss.heads.fused


def test_a_hook_that_comes_after_the_trainer_is_heard(build):
    trainer = build(DGPOTrainer, max_steps=1)
    called = []
    trainer.model.lm_head.register_forward_hook(lambda *args: called.append(1))
    trainer.train()
    assert not trainer._step_loss.heads.fused


def test_a_head_that_comes_after_the_trainer_is_compared_again(build):
    trainer = build(DGPOTrainer, model=qwen3(), max_steps=1)
    assert trainer._step_loss.heads.fused

    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden) + 1e-3 * hidden.sum(-1, keepdim=True) * self.weight[:, 0]

    trainer.model.set_output_embeddings(Scaled(32, 101, bias=False))
    trainer.train()
    assert not trainer._step_loss.heads.fused


def test_a_loss_of_a_subclass_is_named(build):
    class Own(DGPOTrainer):
        def _compute_loss(self, model, inputs):
            return sum(p.sum() for p in model.parameters())

    with pytest.raises(RuntimeError, match=r"something replaced _compute_loss \(found .*Own\._compute_loss\)"):
        build(Own, max_steps=1).train()


def test_a_hook_that_is_never_called_is_named(build, caplog):
    class Own(DGPOTrainer):
        @staticmethod
        def get_gamma_weights(*args, **kwargs):
            raise AssertionError

    with caplog.at_level(logging.WARNING, logger="dgpo"):
        build(Own)
    assert "Own.get_gamma_weights is not called here: the weight is that of objective = 'dgpo'" in caplog.text
