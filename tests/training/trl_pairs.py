"""TRL's options about the loss, the setting of ours that each equals, and short runs of both trainers with them.

A generation is two groups of four scripted completions (four groups where an option accumulates), of the same ragged
lengths in every group, and TRL's shuffle is off. So every micro-batch and every optimiser step holds as many tokens and
rows as any other, and normalising over the step, as we do, is normalising over whatever TRL takes.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config, Qwen3MoeConfig
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.starter import character_tokenizer

STEPS = 6
HARD_CLIP = {"dapo", "grpo", "bnpo", "dr_grpo"}
SEQUENCE_MEANS = {"grpo", "dr_grpo", "sapo", "gspo", "luspo"}
OTHER_VALUES = {"cispo", "sapo", "vespo"}
"""Losses whose logged value is another function with the same gradient."""


@dataclass(frozen=True)
class Option:
    """One option of TRL, away from its default.

    Attributes:
        trl: the options of `GRPOConfig`.
        ours: what says the same to `DGPOConfig`; None: the same options.
        group: of options that exclude each other.
        run: arguments of `run` besides.
    """

    trl: dict[str, Any]
    ours: dict[str, Any] | None = None
    group: str = ""
    run: dict[str, Any] = field(default_factory=dict)


def _loss(objective: str, aggregation: str, ours: dict[str, Any] | None = None, **trl: Any) -> Option:
    return Option(trl, {"objective": objective, "aggregation": aggregation, **(ours or {})}, group="loss")


OPTIONS: dict[str, Option] = {
    "dapo": _loss("grpo", "token-mean", loss_type="dapo"),
    "grpo": _loss("grpo", "seq-mean-token-mean", loss_type="grpo"),
    "bnpo": _loss("grpo", "token-mean", loss_type="bnpo"),
    "dr_grpo": _loss("grpo", "seq-mean-token-sum-norm", loss_type="dr_grpo"),
    "cispo": _loss("cispo", "token-mean", {"objective_kwargs": {"cap": 1.05}}, loss_type="cispo", epsilon_high=1.05),
    "sapo": _loss("sapo", "seq-mean-token-mean", loss_type="sapo"),
    "vespo": _loss("vespo", "token-mean", loss_type="vespo"),
    "gspo": _loss(
        "gspo",
        "seq-mean-token-mean",
        {"epsilon": 0.002},
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon=0.002,
    ),
    "luspo": _loss(
        "gspo",
        "seq-mean-token-sum-norm",
        {"epsilon": 0.002, "aggregation_kwargs": {"length": 1}},
        loss_type="luspo",
        importance_sampling_level="sequence",
        epsilon=0.002,
    ),
    "epsilon": Option({"epsilon": 0.01, "epsilon_high": 0.03}, group="epsilon"),
    "delta": Option({"delta": 1.3}, {"objective_kwargs": {"dual_clip": 1.3}}, group="delta"),
    "beta": Option({"beta": 0.1}, group="kl"),
    "beta-plain": Option({"beta": 0.1, "use_bias_correction_kl": False}, group="kl"),
    "sync-ref": Option(
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}, group="kl"
    ),
    "iterations": Option({"num_iterations": 2}),
    "accumulation": Option({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, group="schedule"),
    "generation": Option({"steps_per_generation": 3}, group="schedule"),
    "on-policy": Option({"steps_per_generation": 1}, group="schedule"),
    "truncated": Option({"mask_truncated_completions": True}),
    "quantile": Option({"top_entropy_quantile": 0.5}),
    "entropy": Option({"entropy_coef": 0.05}, group="entropy"),
    "adaptive": Option(
        {
            "use_adaptive_entropy": True,
            "entropy_coef": 0.2,
            "entropy_coef_delta": 0.1,
            "entropy_coef_max": 0.4,
            "entropy_target": 3.95,
        },
        group="entropy",
    ),
    "off-policy-mask": Option({"off_policy_mask_threshold": 1e-3}),
    "scale-batch": Option({"scale_rewards": "batch"}, group="scale"),
    "scale-none": Option({"scale_rewards": "none"}, group="scale"),
    "normalize-then-sum": Option({"multi_objective_aggregation": "normalize_then_sum"}, group="scale"),
    "reward-weights": Option({"reward_weights": [0.3, -1.0]}),
    "temperature": Option({"temperature": 0.7}),
    "head-float32": Option({"cast_lm_head_to_fp32": True}, group="model", run={"model": "untied"}),
    "experts": Option({"router_aux_loss_coef": 0.5}, group="model", run={"model": "experts"}),
    "lora": Option({}, group="model", run={"lora": True}),
    # what dropout draws depends on the order of rows
    "dropout": Option({}, {"sort_by_length": False}, group="model", run={"model": "dropout"}),
    "no-dropout": Option({"disable_dropout": True}, group="model", run={"model": "dropout"}),
    "sampler": Option({}, group="sampler", run={"sampler": True}),
    "vllm-token-truncate": Option(
        {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.02},
        group="sampler",
        run={"sampler": True, "vllm": True},
    ),
    "vllm-token-mask": Option(
        {"vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_max": 1.05},
        group="sampler",
        run={"sampler": True, "vllm": True},
    ),
    "vllm-sequence-truncate": Option(
        {
            "vllm_importance_sampling_mode": "sequence_truncate",
            "vllm_importance_sampling_clip_min": 0.98,
            "vllm_importance_sampling_clip_max": 1.02,
        },
        group="sampler",
        run={"sampler": True, "vllm": True},
    ),
    "vllm-sequence-mask": Option(
        {"vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 1.05},
        group="sampler",
        run={"sampler": True, "vllm": True},
    ),
    "tool-mask": Option({}, run={"tools": True}),
    "pad-to-multiple": Option({"pad_to_multiple_of": 8}),
    "checkpointing": Option({"gradient_checkpointing": True}),
    "clipped-gradient": Option({"max_grad_norm": 0.7}),
    "unscored": Option({}, run={"unscored": True}),
}

COVERED = [
    name
    for name in OPTIONS
    if name
    not in {
        *("luspo", "scale-batch", "scale-none", "no-dropout", "head-float32"),
        *("vllm-token-mask", "vllm-sequence-truncate", "on-policy", "generation", "sync-ref"),
    }
]
"""Options of the test suite. The others are near relatives, left to the soak."""

PAIRS = [
    (a, b)
    for a, b in itertools.combinations(OPTIONS, 2)
    if not OPTIONS[a].group or OPTIONS[a].group != OPTIONS[b].group
]


def why_not(names: frozenset[str]) -> str | None:
    """Why these options are no comparison: TRL or we refuse them together, or they mean different things on purpose."""
    losses = [name for name in names if OPTIONS[name].group == "loss"] or ["dapo"]
    (loss,) = losses
    vllm = any(name.startswith("vllm") for name in names)
    if "delta" in names and loss not in HARD_CLIP:
        return "TRL's `delta` is a field of its hard clip; for other losses it is ignored there, or has no field here"
    if "epsilon" in names and loss not in HARD_CLIP | {"gspo", "luspo"}:
        return "TRL's `epsilon` is of its hard clip; other losses ignore it, and here it is refused"
    if "epsilon" in names and loss in {"gspo", "luspo"}:
        return "the loss sets it already"
    if "sync-ref" in names and "lora" in names:
        return "TRL refuses `sync_ref_model` with PEFT"
    if "head-float32" in names and "lora" in names:
        return "TRL's `cast_lm_head_to_fp32` looks for `model.lm_head` inside the adapter"
    if vllm and loss == "vespo":
        return "TRL folds its sampler correction into the weight of VESPO; here it is a factor of its own"
    if "dropout" in names and names & {"truncated", "unscored"}:
        return "what dropout draws depends on padding and rows, which are trimmed and left out here"
    if "truncated" in names and loss in SEQUENCE_MEANS:
        return "TRL's mean over responses counts those that are masked; ours does not"
    return None


def covering(names: Iterable[str]) -> list[frozenset[str]]:
    """Few sets of these options that hold every legal pair of them between them."""
    order = sorted(names)
    legal = [frozenset(pair) for pair in PAIRS if why_not(frozenset(pair)) is None]
    left = {pair for pair in legal if pair <= set(order)}
    rows = []
    while left:
        row = set(min(left, key=lambda pair: (-sum(bool(OPTIONS[name].group) for name in pair), sorted(pair))))
        candidates = [name for name in order if name not in row]
        while candidates:
            gain = {name: sum(frozenset((name, other)) in left for other in row) for name in candidates}
            best = max(candidates, key=lambda name: (gain[name], name))
            candidates.remove(best)
            group = OPTIONS[best].group
            taken = group and any(OPTIONS[other].group == group for other in row)
            if gain[best] and not taken and _joins(best, row):
                row.add(best)
        left -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        rows.append(frozenset(row))
    return rows


def _joins(name: str, row: set[str]) -> bool:
    if why_not(frozenset({*row, name})) is not None:
        return False
    return all(why_not(frozenset((name, other))) is None for other in row)


# --- the models, the data, the completions ----------------------------------------------------------------------------

_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def save_models(folder: Any) -> None:
    """The policies, and beside each another model as its reference."""
    tokenizer = character_tokenizer()
    kinds = {
        "dense": Qwen3Config(**_SMALL, vocab_size=len(tokenizer)),
        "untied": Qwen3Config(**_SMALL, vocab_size=len(tokenizer), tie_word_embeddings=False),
        "experts": Qwen3MoeConfig(
            **_SMALL, vocab_size=len(tokenizer), moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
        ),
        "dropout": GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=64,
            n_embd=16,
            n_layer=1,
            n_head=2,
            initializer_range=0.3,
            attn_pdrop=0.0,
            embd_pdrop=0.2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        ),
    }
    for name, config in kinds.items():
        for seed, role in enumerate(("policy", "reference")):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name / role)


_LENGTHS = (6, 4, 3, 5)  # the first of every group is cut off: it has no end token


class Rollouts:
    """Completions of random tokens that depend on how often it was called, and nothing else."""

    def __init__(self, *, sampler: bool, tools: bool) -> None:
        self.sampler, self.tools = sampler, tools
        self.calls = 0

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.calls)
        self.calls += 1
        completions = []
        for i in range(len(prompts)):
            length = _LENGTHS[i % 4]
            ids = torch.randint(3, 98, (length,), generator=generator).tolist()
            completions.append(ids if length == max(_LENGTHS) else [*ids[:-1], 1])
        prompt_ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        out: dict[str, Any] = {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}
        if self.sampler:
            out["logprobs"] = [self._logprob(trainer, *ids) for ids in zip(prompt_ids, completions, strict=True)]
            noise = torch.Generator().manual_seed(100 + self.calls)
            out["logprobs"] = [(x + 0.05 * torch.randn(len(x), generator=noise)).tolist() for x in out["logprobs"]]
        if self.tools:
            out["env_mask"] = [[int(i != 1) for i in range(len(ids))] for ids in completions]
        return out

    @staticmethod
    @torch.no_grad()
    def _logprob(trainer: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
        was = trainer.model.training
        trainer.model.eval()
        logits = trainer.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        trainer.model.train(was)
        logprob = (logits.float() / trainer.temperature).log_softmax(-1)
        return logprob.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def rewards(unscored: bool) -> list[Any]:
    """Two, which differ within every group; with `unscored`, each leaves some completions out."""

    def first(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
        found: list[float | None] = [(31 * sum(ids) % 97) / 97 for ids in completion_ids]
        return [None if unscored and i % 4 == 1 else value for i, value in enumerate(found)]

    def second(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
        found: list[float | None] = [(17 * ids[0] % 53) / 53 for ids in completion_ids]
        return [None if unscored and i % 8 in (1, 6) else value for i, value in enumerate(found)]

    return [first, second]


@dataclass
class Run:
    """Log rows of the steps, and the parameters after them."""

    rows: list[dict[str, Any]]
    parameters: torch.Tensor
    fused: bool = False


def run(
    trainer_class: type,
    folder: Any,
    output: Any,
    options: dict[str, Any],
    *,
    model: str = "dense",
    lora: bool = False,
    sampler: bool = False,
    vllm: bool = False,
    tools: bool = False,
    unscored: bool = False,
) -> Run:
    """Six optimiser steps."""
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(folder / model / "policy")
    policy.config._name_or_path = str(folder / model / "reference")  # where TRL loads the reference from
    config_class = GRPOConfig if trainer_class is GRPOTrainer else DGPOConfig
    extra: dict[str, Any] = {}
    if lora:
        import peft

        extra["peft_config"] = peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        )
    settings = {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "steps_per_generation": 2,
        "max_completion_length": max(_LENGTHS),
        # GPT-2 has no norm of queries and keys: with 0.2 and some options stock itself ends at NaN
        "learning_rate": 0.05 if model == "dropout" else 0.2,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 1e9,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "shuffle_dataset": False,
        "max_steps": STEPS,
        "seed": 7,
    }
    # what dropout draws depends on the width of the padding, which we trim
    prompts = [f"{i}+{i}=" if model == "dropout" or i % 2 else f"{i}=" for i in range(10, 42)]
    with (
        warnings.catch_warnings(),
        mock.patch.object(grpo_trainer, "shuffle_sequence_dict", copy.copy),
        mock.patch("accelerate.utils.memory.gc.collect"),  # at the beginning of every `train`: half of the time
    ):
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            policy,
            rewards(unscored),
            config_class(output_dir=str(output), **{**settings, **options}),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=character_tokenizer(),
            rollout_func=Rollouts(sampler=sampler, tools=tools),
            **extra,
        )
        if vllm:  # it is not installed: the completions and their log-probs come from the rollout
            trainer.use_vllm, trainer._last_loaded_step = True, -1
            trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    parameters = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    fused = isinstance(trainer, DGPOTrainer) and trainer._step_loss.heads.fused
    return Run(rows=rows, parameters=parameters, fused=fused)


def compare(names: frozenset[str], folder: Any, output: Any, *, fused: bool = True) -> tuple[Run, Run]:
    """The runs of TRL and of ours under these options."""
    trl: dict[str, Any] = {}
    ours: dict[str, Any] = {"objective": "grpo", "aggregation": "token-mean", "fused_loss": fused}
    extra: dict[str, Any] = {}
    # the loss first: what an option says of the objective's fields adds to it
    for name in sorted(names, key=lambda name: OPTIONS[name].group != "loss"):
        option = OPTIONS[name]
        trl |= option.trl
        ours |= option.trl if option.ours is None else option.ours
        extra |= option.run
    return (
        run(GRPOTrainer, folder, output, {"loss_type": "dapo", **trl}, **extra),
        run(DGPOTrainer, folder, output, ours, **extra),
    )
