"""Runs of the real trainer, healthy or with one fault; all of them write `folder/record`."""

from __future__ import annotations

import contextlib
import json

import torch
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import PrinterCallback

from dgpo.diagnostics import load, record
from dgpo.rewards.functions import MathReward
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.checkpoint_files import MANIFEST
from dgpo.training.micro_batches import totals_of

QUICK = {
    "per_device_train_batch_size": 32,
    "num_generations": 8,
    "steps_per_generation": 4,
    "max_completion_length": 6,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 20.0,
    "max_steps": 24,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 7,
}


def high_digits(completions, **kwargs):
    """Share of digits from 5 on in answers of up to three characters: spread in every group, and learnable at once."""
    return [sum(c in "56789" for c in text) / max(len(text), 1) * (len(text) <= 3) for text in completions]


def train(taught, tokenizer, data, folder, *, reward=high_digits, trainer_class=DGPOTrainer, model=None, resume=None,
          rollout=None, **options):  # fmt: skip
    trainer = trainer_class(
        model or AutoModelForCausalLM.from_pretrained(taught),
        reward,
        DGPOConfig(output_dir=str(folder / "run"), record=str(folder / "record"), **{**QUICK, **options}),
        train_dataset=data,
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def run(**options):
    def made(taught, tokenizer, data, folder):
        train(taught, tokenizer, data, folder, **options)

    return made


# --- rewards ----------------------------------------------------------------------------------------------------------


def one(completions, **kwargs):
    return [1.0] * len(completions)


def nothing(completions, **kwargs):
    return [0.0] * len(completions)


def of_prompt(prompts, completions, **kwargs):
    return [float(prompt[0] in "13579") for prompt in prompts]


def only_77(completions, **kwargs):
    """How much of "77" a response has: one response is best, and the policy may become it."""
    return [((text[:1] == "7") + (text[1:2] == "7") + (len(text) == 2)) / 3 for text in completions]


def only_77_in_part(completions, **kwargs):
    """The same as three fifths of the reward; the rest is never given."""
    return [0.6 * reward for reward in only_77(completions)]


def nearly_77(completions, **kwargs):
    """The same, and the rest is given for any response."""
    return [0.4 + 0.6 * reward for reward in only_77(completions)]


def by_place(completions, **kwargs):
    """Noise, as far as the policy can tell."""
    return [float(i % 3) for i in range(len(completions))]


def failing_grader(completions, trainer_state, **kwargs):
    """From step 30 on two answers of three are not graded, and the error is turned into 0."""
    rewards = high_digits(completions)
    return rewards if trainer_state.global_step < 30 else [r * (i % 3 == 0) for i, r in enumerate(rewards)]


def in_per_cent(completions, trainer_state, **kwargs):
    """A reward whose scale changes at half time."""
    return [r * (1 if trainer_state.global_step < 12 else 100) for r in high_digits(completions)]


def short(completions, **kwargs):
    """Nothing but a penalty for length."""
    return [-len(text) / 32 for text in completions]


def talker(taught, tokenizer, data, folder):
    """A model that hardly ever stops, and learns to answer nothing."""
    model = AutoModelForCausalLM.from_pretrained(taught)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 0.3
    train(taught, tokenizer, data, folder, model=model, reward=short, max_completion_length=32, learning_rate=2e-3,
          lr_scheduler_type="constant", steps_per_generation=2, max_steps=32)  # fmt: skip


def slow_grader(taught, tokenizer, data, folder):
    """Beside a usual reward the real grader, with a deadline that it cannot keep on answers like these."""
    grader = MathReward(workers=1, deadline=0.001)

    def reward(completions, log_metric=None, **kwargs):
        grader([r"\boxed{\sqrt{2}+\sqrt{3}}"] * 2, [r"\sqrt{5+2\sqrt{6}}"] * 2, log_metric=log_metric)
        return high_digits(completions)

    try:
        train(taught, tokenizer, data, folder, reward=reward)
    finally:
        grader.close()


# --- samplers ---------------------------------------------------------------------------------------------------------


class Sampler:
    """A `rollout_func` that samples from `model_of(trainer)`, with a temperature or a top-p of its own."""

    def __init__(self, temperature=1.0, top_p=1.0, model_of=lambda trainer: trainer.model):
        self.temperature, self.top_p, self.model_of = temperature, top_p, model_of

    @torch.no_grad()
    def __call__(self, prompts, trainer):
        tokenizer, model = trainer.processing_class, self.model_of(trainer)
        inputs = tokenizer(prompts, padding=True, return_tensors="pt")
        ids, mask, drawn, end = inputs.input_ids, inputs.attention_mask, [], tokenizer.eos_token_id
        for _ in range(trainer.args.max_completion_length):
            probabilities = self.probabilities(model(input_ids=ids, attention_mask=mask).logits[:, -1])
            token = torch.multinomial(probabilities, 1)
            drawn.append((token, probabilities.gather(1, token).log()))
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
        tokens, logprobs = (torch.cat(parts, 1).tolist() for parts in zip(*drawn, strict=True))
        lengths = [row.index(end) + 1 if end in row else len(row) for row in tokens]
        return {
            "prompt_ids": [tokenizer(prompt).input_ids for prompt in prompts],
            "completion_ids": [row[:length] for row, length in zip(tokens, lengths, strict=True)],
            "logprobs": [row[:length] for row, length in zip(logprobs, lengths, strict=True)],
        }

    def probabilities(self, logits):
        found = (logits.float() / self.temperature).softmax(-1)
        ordered, order = found.sort(descending=True)
        outside = (ordered.cumsum(-1) - ordered >= self.top_p).gather(1, order.argsort(-1))
        return found.masked_fill(outside, 0) / found.masked_fill(outside, 0).sum(-1, keepdim=True)


def copy_of(model):
    # not a deep copy: the forward that the trainer gave the model would run the weights of the original
    found = AutoModelForCausalLM.from_config(model.config)
    found.load_state_dict(model.state_dict())
    return found.eval()


class Behind:
    """The model of the trainer, until a generation from which on its weights stay."""

    def __init__(self, generation):
        self.generation, self.frozen, self.calls = generation, None, 0

    def __call__(self, trainer):
        self.calls += 1
        if self.frozen is not None:
            return self.frozen
        if trainer.state.global_step >= 4 * self.generation:
            self.frozen = copy_of(trainer.model)
        return trainer.model


class Delayed:
    """The weights of some generations ago: a sampler that runs ahead of the trainer, as in asynchronous training."""

    def __init__(self, lag):
        self.lag, self.kept = lag, []

    def __call__(self, trainer):
        self.kept = [*self.kept, copy_of(trainer.model)][-self.lag - 1 :]
        return self.kept[0]


class Noisy:
    """Weights with noise: a sampler of another precision, to the extreme."""

    def __init__(self, noise):
        self.noise = noise

    def __call__(self, trainer):
        model = copy_of(trainer.model)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter += self.noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
        return model


# --- trainers ---------------------------------------------------------------------------------------------------------


class PerMicroBatch(DGPOTrainer):
    """Every micro-batch is divided by its own tokens: the gradient of two is twice as large."""

    def _step_totals(self, inputs):
        return totals_of([inputs["completion_mask"].bool()], self.accelerator)


class DividedTwice(DGPOTrainer):
    """The loss, normalised already, is divided by the number of micro-batches once more."""

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(model, inputs) / self.args.gradient_accumulation_steps


def broken_weights(taught, tokenizer, data, folder):
    model = AutoModelForCausalLM.from_pretrained(taught)

    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step >= 8:
            with torch.no_grad():
                model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids("7")] = torch.inf
        return high_digits(completions)

    with contextlib.suppress(ValueError):
        train(taught, tokenizer, data, folder, model=model, reward=reward)


def resumed(other_weights=False, **changed):
    """Twelve updates, then twelve from the checkpoint: as it is, without its optimiser state, or with other weights."""

    def made(taught, tokenizer, data, folder):
        train(taught, tokenizer, data, folder, save_strategy="steps", save_steps=12, max_steps=12,
              lr_scheduler_type="constant")  # fmt: skip
        checkpoint = folder / "run" / "checkpoint-12"
        allowed = {}
        if changed.get("learning_rate"):
            for state in ("optimizer.pt", "scheduler.pt"):
                (checkpoint / state).unlink()
            allowed = {"resume_allow_missing": ["optimizer", "scheduler"], "resume_allow_changed": ["learning_rate"]}
        if other_weights:
            model = AutoModelForCausalLM.from_pretrained(checkpoint)
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(0.6)
            model.save_pretrained(checkpoint)
            (checkpoint / MANIFEST).unlink()
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert state["global_step"] == 12
        train(taught, tokenizer, data, folder, resume=str(checkpoint), lr_scheduler_type="constant",
              **changed, **allowed)  # fmt: skip

    return made


def heavy_tokens(taught, tokenizer, data, folder):
    """A healthy run whose recorded tokens are then changed: a few with A > 0 have become e^6 times as likely.

    No small model does this by training in a few updates.
    """
    train(taught, tokenizer, data, folder, objective="is")
    log = folder / "record"
    found = load(log)
    for update in found.updates:
        recorded = found.tokens(update)
        tokens = recorded.tokens
        positive = (tokens.mask & (tokens.advantage > 0)).nonzero()[:1]
        old = tokens.old_logprob.clone()
        old[positive[:, 0], positive[:, 1]] -= 6.0
        tokens.old_logprob = old
        record(log, tokens, update=update, token_ids=recorded.token_ids, group=recorded.group,
               generation=recorded.generation, totals=None)  # fmt: skip


RUNS = {
    "healthy": run(),
    "healthy_sampler": run(rollout=Sampler()),
    "healthy_accumulation": run(per_device_train_batch_size=16, gradient_accumulation_steps=2, steps_per_generation=8),
    "healthy_resume": resumed(),
    # the default of transformers, which most gradients are longer than
    "healthy_default_clip": run(max_grad_norm=1.0),
    "on_policy": run(steps_per_generation=1),
    "hardly_moves": run(learning_rate=1e-9, max_steps=12),
    "constant_reward": run(reward=one),
    "zero_reward": run(reward=nothing),
    "zero_variance": run(reward=of_prompt),
    "truncated": run(max_completion_length=1),
    "zero_loss": run(steps_per_generation=1, aggregation="seq-mean-token-mean", advantage="none"),
    "no_gradient": run(max_completion_length=1, mask_truncated_completions=True),
    "reverse_right": run(reward=by_place, learning_rate=1.5e-3, lr_scheduler_type="constant", steps_per_generation=24),
    "drift": run(learning_rate=1e-3, steps_per_generation=8, lr_scheduler_type="constant", objective="cispo"),
    "entropy_falling": run(
        reward=only_77_in_part, learning_rate=2e-3, lr_scheduler_type="constant", steps_per_generation=2, max_steps=48
    ),
    # the same policy, and nothing left to gain
    "solved": run(
        reward=nearly_77, learning_rate=2e-3, lr_scheduler_type="constant", steps_per_generation=2, max_steps=46
    ),
    "entropy_rising": run(
        reward=by_place,
        entropy_coef=0.3,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        max_completion_length=16,
        max_steps=36,
        steps_per_generation=2,
    ),
    "grad_clipped": run(max_grad_norm=1e-3),
    "concentration": heavy_tokens,
    "sampler_temperature": run(rollout=Sampler(temperature=1.3)),
    "sampler_truncation": run(rollout=Sampler(top_p=0.8)),
    "sampler_stale": run(rollout=Sampler(model_of=Behind(2))),
    "anchor": run(
        rollout=Sampler(model_of=Delayed(4)), steps_per_generation=1, learning_rate=1e-3, lr_scheduler_type="constant"
    ),
    "sampler_mismatch": run(rollout=Sampler(model_of=Noisy(0.3))),
    "normaliser_per_micro_batch": run(
        trainer_class=PerMicroBatch,
        sort_by_length=False,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        steps_per_generation=8,
    ),
    "normaliser_twice": run(
        trainer_class=DividedTwice,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        steps_per_generation=8,
    ),
    "not_finite": broken_weights,
    "resume_learning_rate": resumed(learning_rate=2e-4),
    "resume_weights": resumed(other_weights=True),
    "timeouts": slow_grader,
    "reward_fell": run(reward=failing_grader, steps_per_generation=2, max_steps=48),
    "grad_spike": run(reward=in_per_cent, advantage="none", max_grad_norm=1e9),
    "length_fell": talker,
}
