"""Training a real model in every way that changes what its weights see: full, LoRA, bf16, checkpointed, resumed."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from real_chats import END, greedy, user
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dgpo.cli.models import load_model
from dgpo.evaluation.prompts import encode
from dgpo.training import DGPOConfig, DGPOTrainer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PLAIN = [{"prompt": "One, two,"}, {"prompt": "The capital of France is"}]
"""Short, so that an update takes seconds."""
QUICK = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "steps_per_generation": 2,
    "max_completion_length": 6,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "seed": 5,
}


def variety(completions, **columns):
    """Spread for every model: the number of different characters."""
    texts = [found if isinstance(found, str) else found[0]["content"] for found in completions]
    return [float(len(set(text))) for text in texts]


def trainer_of(
    loaded, tokenizer, output, rows=PLAIN, reward=variety, peft_config=None, end=None, rollout=None, **changes
):
    model = copy.deepcopy(loaded)
    if end is not None:
        model.generation_config.eos_token_id = end
    return DGPOTrainer(
        model=model,
        reward_funcs=reward,
        args=DGPOConfig(str(output), **{**QUICK, **changes}),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=peft_config,
        rollout_func=rollout,
    )


# --- what one generation of training holds ---------------------------------------------------------------------------


def test_the_end_of_a_turn_is_learnt_and_padding_is_not(loaded, tokenizer, tmp_path):
    """The end token is the padding token here: the first one of a response counts, what follows it does not.

    The model declares another end token, which the tokenizer's is beside.
    """
    seen = []

    def short(completions, completion_ids, truncated, **columns):
        seen.extend(zip(completions, completion_ids, truncated, strict=True))
        return [-float(len(ids)) for ids in completion_ids]

    own = [{"role": "system", "content": "Answer in one word."}, *user("What is the capital of Italy?")]
    rows = [{"prompt": user("Write a poem about the sea.")}, {"prompt": own}]
    trainer = trainer_of(loaded, tokenizer, tmp_path, rows, short, end=0, max_completion_length=8, max_steps=1)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batches = []
    loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: batches.append(inputs) or loss(model, inputs)
    trainer.train()

    assert len(seen) == 8
    assert {ended for *_, ended in seen} == {True, False}  # or there is nothing to see
    for messages, ids, truncated in seen:
        assert truncated == (ids[-1] != tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in ids[:-1]
        assert END not in messages[0]["content"]
    (inputs,) = batches
    by_ids = {tuple(ids): truncated for _, ids, truncated in seen}
    for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"].bool(), strict=True):
        assert tuple(ids[mask].tolist()) in by_ids
        assert (ids[~mask] == tokenizer.pad_token_id).all()
    # the prompts of `dgpo eval`, whose text test_real_generation.py has
    prompts = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    }
    assert prompts <= {tuple(ids) for ids in encode(tokenizer, [row["prompt"] for row in rows])}


# --- one update ------------------------------------------------------------------------------------------------------

RATE = 1e-3


def change_of(loaded, tokenizer, output, **changes):
    """What one update of plain gradient descent adds to the weights, the trainer, and its log."""

    def fixed(prompts, trainer):
        """The same ragged completions whatever is rounded; one of them ends."""
        texts = (" three, four, five", " Paris", " a city", " not known to me" + END)
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [tokenizer(texts[at % 4])["input_ids"] for at in range(len(prompts))],
            "logprobs": None,
        }

    trainer = trainer_of(
        *(loaded, tokenizer, output),
        rollout=fixed,
        **{"optim": "sgd", "learning_rate": RATE, "max_steps": 1, "max_grad_norm": 1e9, **changes},
    )
    trainer.train()
    before = dict(loaded.named_parameters())
    after = dict(trainer.model.named_parameters())
    assert {value.dtype for value in after.values()} == {torch.float32}
    change = torch.cat([(after[name] - before[name]).detach().flatten() for name in before])
    return change, trainer, trainer.state.log_history[0]


@pytest.fixture(scope="module")
def plain_update(loaded, tokenizer, tmp_path_factory):
    found = change_of(loaded, tokenizer, tmp_path_factory.mktemp("plain"), gradient_checkpointing=False)
    assert found[0].norm() > 1e-3 * RATE
    return found


def alike(one, other):
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0).item()


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"gradient_checkpointing": True}, 1e-5), ({"gradient_checkpointing": False, "fused_loss": False}, 1e-4)],
    ids=["gradient checkpointing", "not fused"],
)
def test_the_gradient_is_the_same(loaded, tokenizer, tmp_path, plain_update, changes, tolerance):
    expected, plain, log = plain_update
    found, trainer, logged = change_of(loaded, tokenizer, tmp_path, **changes)
    assert plain._step_loss.heads.fused
    assert trainer._step_loss.heads.fused is changes.get("fused_loss", True)
    assert trainer.model.is_gradient_checkpointing is changes["gradient_checkpointing"]
    # differences of weights around 0.1 that changed by less than 1e-6 hold few digits
    assert alike(found, expected) > 1 - 10 * tolerance
    assert logged["grad_norm"] == pytest.approx(log["grad_norm"], rel=tolerance)
    assert logged["loss"] == pytest.approx(log["loss"], abs=1e-5)


def test_bf16_on_a_cpu(loaded, tokenizer, tmp_path, plain_update):
    """Autocast: the weights stay float32, and the gradient points where that of float32 does."""
    expected, _, log = plain_update
    found, _, logged = change_of(loaded, tokenizer, tmp_path, gradient_checkpointing=False, bf16=True)
    assert found.isfinite().all()
    assert alike(found, expected) > 0.95
    assert logged["grad_norm"] == pytest.approx(log["grad_norm"], rel=0.1)


# --- resuming --------------------------------------------------------------------------------------------------------


def test_resumed_in_the_middle(loaded, tokenizer, tmp_path):
    """Killed after two of three updates, it ends with the weights of the run that was not."""
    settings = {"learning_rate": 1e-5, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(loaded, tokenizer, tmp_path, **settings)
    whole.train()
    expected = whole.model.state_dict()
    del whole
    resumed = trainer_of(loaded, tokenizer, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert "lm_head.weight" not in saved  # tied
    assert any(not torch.equal(value, loaded.state_dict()[name]) for name, value in saved.items())


# --- adapters --------------------------------------------------------------------------------------------------------


def test_adapters_evaluate_as_the_model_they_are_merged_into(loaded, folder, tokenizer, tmp_path):
    from peft import AutoPeftModelForCausalLM

    trainer = trainer_of(
        *(loaded, tokenizer, tmp_path / "adapter"),
        peft_config=LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
        ),
        learning_rate=1e-2,
        max_steps=2,
    )
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert trainer._step_loss.heads.fused
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )
    assert f"Adapters (PEFT) trained on the local folder `{folder}`" in (tmp_path / "adapter" / "README.md").read_text()

    adapted, its = load_model(str(tmp_path / "adapter"))
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    again, theirs = load_model(str(tmp_path / "merged"))
    prompts = ["The capital of Italy is", user("What is 3 + 4? Reply with the number only.")]
    of_adapter = greedy(adapted, its, prompts, budget=8)
    assert of_adapter == greedy(again, theirs, prompts, budget=8)
    ids = torch.tensor([tokenizer("The capital of Italy is")["input_ids"]])
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (adapted, again, loaded)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-3)
    assert (logits[0] - logits[2]).abs().max() > 0.1  # the adapter does something


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_a_saved_model_is_an_ordinary_folder(loaded, tokenizer, tmp_path):
    trainer = trainer_of(loaded, tokenizer, tmp_path, learning_rate=1e-5, max_steps=1)
    trainer.train()
    trainer.save_model()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - no mapping
        assert file.get_tensor("model.norm.weight").dtype == torch.float32
    saved, its = load_model(str(tmp_path))
    assert saved.lm_head.weight.data_ptr() == saved.model.embed_tokens.weight.data_ptr()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name
    assert its.chat_template == tokenizer.chat_template
    assert saved.generation_config.eos_token_id == tokenizer.eos_token_id
    (completion,) = greedy(saved, its, [user("What is the capital of France? Reply with one word.")], budget=12)
    assert ("Paris" in completion.text, completion.truncated) == (True, False)
    assert isinstance(saved, type(AutoModelForCausalLM.from_config(loaded.config)))
