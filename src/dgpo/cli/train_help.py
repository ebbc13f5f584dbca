"""What `dgpo train --help` shows: the flags of dgpo, and those of TRL that most runs set."""

from __future__ import annotations

import dataclasses

from trl import GRPOConfig

from dgpo.cli.parser import Groups
from dgpo.cli.train_arguments import TrainArguments
from dgpo.training import DGPOConfig

_COMMON = {
    "model and data": (
        *("model_name_or_path", "task", "dataset", "dataset_config", "dataset_split", "columns", "prompt_template"),
        *("chat", "no_chat", "data_dir", "rewards", "reward_weights"),
    ),
    "objective": (
        *("objective", "objective_kwargs", "aggregation", "aggregation_kwargs", "advantage", "advantage_kwargs"),
        *("correction", "preset", "beta", "positive_nll_coef"),
    ),
    "schedule and sampling": (
        *("learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("steps_per_generation", "num_generations", "max_completion_length", "temperature", "dynamic_sampling"),
        *("dynamic_sampling_rewards", "max_num_gen_batches", "seed"),
    ),
    "speed and memory": ("fused_loss", "bf16", "gradient_checkpointing", "use_vllm", "vllm_mode", "use_peft"),
    "output": (
        *("output_dir", "overwrite_output_dir", "resume", "save_steps", "logging_steps", "report_to", "record"),
        *("record_overwrite", "record_every", "record_limit_mb", "record_sum_pi_squared", "record_completions"),
    ),
    "evaluation during training": (
        *("eval_benchmarks", "eval_benchmark_steps", "eval_benchmark_on_start", "eval_benchmark_kwargs"),
        *("eval_dataset", "dataset_test_split"),
    ),
    "plan of a run": ("dry_run", "accelerate_config", "num_gpus", "gpu"),
}
_ELSEWHERE = "resuming, and other flags of dgpo"

TEXTS = {
    "model_name_or_path": "Model to train: a hub name or a folder.",
    "output_dir": "Folder for the model, checkpoints and log.",
    "reward_weights": "Weight of each reward (default: 1 each).",
    "beta": "Coefficient of the KL to the reference model, which is loaded only if it is not 0.",
    "learning_rate": "Learning rate after the warm-up, if there is one.",
    "max_steps": "Number of optimiser updates; -1 for --num_train_epochs passes over the data.",
    "per_device_train_batch_size": "Completions per GPU in one forward and backward pass.",
    "gradient_accumulation_steps": "Passes per optimiser update.",
    "steps_per_generation": (
        "Passes that one generation of completions serves (default: 4 x gradient_accumulation_steps, which is 4 "
        "updates; 1 x of it if num_iterations > 1)."
    ),
    "num_generations": "Completions per prompt, the group of an advantage.",
    "max_completion_length": "Longest completion in tokens.",
    "temperature": "Sampling temperature.",
    "seed": "Seed of the run.",
    "bf16": "Compute in bfloat16 where the weights are float32 (default: true, unless fp16 is set).",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, more time.",
    "use_vllm": "Generate with vLLM.",
    "vllm_mode": "server: on separate GPUs, started with trl vllm-serve; colocate: on the GPUs that train.",
    "use_peft": "Train a LoRA adapter; --help-all lists its flags, lora_r and others.",
    "save_steps": "Updates between checkpoints; below 1, a share of the run.",
    "logging_steps": "Updates between lines of the log; below 1, a share of the run.",
    "report_to": "Trackers: wandb, tensorboard, trackio, ..., all or none.",
}
"""What the flags of TRL in `_COMMON` do in a run of ours, shorter than in TRL."""


def groups() -> Groups:
    """Title -> flags. A field of ours that is in no group of `_COMMON` has a last group, so that none is hidden."""
    listed = {name for names in _COMMON.values() for name in names}
    trl = {field.name for field in dataclasses.fields(GRPOConfig)}
    own = [field.name for cls in (TrainArguments, DGPOConfig) for field in dataclasses.fields(cls)]
    return _COMMON | {_ELSEWHERE: [name for name in own if name not in listed | trl]}
