"""What other commands and frameworks call our flags, for the suggestion after an unknown one."""

from __future__ import annotations

_SAME = {
    "model_name_or_path model": (
        "model model_name_or_path model_name model_path model_id base_model policy checkpoint "
        "pretrained_model_name_or_path hf_model pretrained"
    ),
    "learning_rate": "lr actor_lr actor_learning_rate peak_lr",
    "per_device_train_batch_size batch_size": (
        "batch_size bs train_batch_size micro_batch_size mini_batch_size train_micro_batch_size "
        "per_gpu_train_batch_size ppo_micro_batch_size_per_gpu micro_train_batch_size per_device_batch_size "
        "per_device_eval_batch_size eval_batch_size"
    ),
    "generation_batch_size": "gen_batch_size rollout_batch_size ppo_mini_batch_size",
    "gradient_accumulation_steps": "grad_accum gradient_accumulation grad_acc accumulation_steps",
    "num_train_epochs": "epochs num_epochs total_epochs n_epochs",
    "max_steps updates": (
        "steps num_steps train_steps total_steps max_train_steps total_training_steps iterations max_steps updates"
    ),
    "num_iterations": "ppo_epochs mu inner_epochs num_ppo_epochs",
    "max_completion_length max_new_tokens": (
        "max_new_tokens max_completion_length max_tokens max_length max_response_length response_length "
        "completion_length max_gen_len generate_max_len"
    ),
    "vllm_max_model_length": "max_prompt_length max_model_len vllm_max_model_len max_seq_length",
    "num_generations samples": (
        "n k group_size rollout_n num_samples n_samples num_return_sequences generations n_samples_per_prompt "
        "num_generations samples num_rollouts rollouts"
    ),
    "objective": "loss algo algorithm method loss_mode policy_loss loss_fn policy_loss_type",
    "objective_kwargs": "objective_args clip_ratio_c dual_clip loss_kwargs",
    "advantage": "adv_estimator advantage_estimator advantage_type",
    "aggregation": "loss_agg_mode loss_reduction loss_aggregation normalisation normalization",
    "epsilon": "eps clip clip_range cliprange clip_eps clip_ratio eps_clip clip_ratio_low eps_low",
    "epsilon_high": "clip_ratio_high clip_range_high cliprange_high eps_clip_high clip_high clip_higher eps_high",
    "beta": "kl kl_coef kl_beta kl_loss_coef kl_coeff init_kl_coef kl_penalty",
    "entropy_coef": "entropy_coeff ent_coef entropy entropy_bonus",
    "rewards": "reward reward_funcs reward_func reward_functions reward_function reward_fn rm",
    "dataset": (
        "data dataset_name dataset_path data_path train_file train_files train_data train_dataset prompt_data "
        "dataset_name_or_path"
    ),
    "dataset_split": "split dataset_train_split train_split",
    "eval_dataset": "eval_data val_files validation_file test_file val_data eval_dataset_name",
    "dataset_test_split": "eval_split dataset_eval_split test_split val_split validation_split",
    "task": "benchmark benchmarks tasks env environment eval_benchmarks",
    "prompt_template": "template prompt system_prompt",
    "output_dir out": (
        "out out_dir output output_dir output_path save_dir save_path output_folder default_local_dir ckpt_path"
    ),
    "resume": "continue resume_training resume_from load_checkpoint",
    "save_steps": "save_freq save_every save_interval checkpoint_every",
    "eval_steps": "test_freq eval_freq eval_every eval_interval",
    "logging_steps": "log_every log_freq log_interval log_steps",
    "run_name": "experiment_name exp_name wandb_run_name name",
    "project": "project_name wandb_project",
    "report_to": "wandb log_with logger tensorboard use_wandb",
    "max_grad_norm": "grad_clip gradient_clipping clip_grad max_norm grad_norm_clip",
    "lr_scheduler_type": "scheduler lr_scheduler lr_schedule scheduler_type",
    "warmup_steps": "warmup lr_warmup_steps num_warmup_steps warmup_ratio",
    "optim": "optimizer optimiser",
    "temperature": "temp sampling_temperature rollout_temperature",
    "use_vllm backend": "vllm use_vllm",
    "use_cpu": "cpu no_cuda",
    "num_gpus": "gpus n_gpus n_gpus_per_node ngpus num_processes",
    "use_peft": "lora peft use_lora qlora",
    "lora_r": "lora_rank lora_dim rank",
    "bf16": "precision mixed_precision bfloat16",
    "fp16": "half float16",
    "dtype": "torch_dtype param_dtype",
    "attn_implementation": "attn attention attn_impl flash_attn use_flash_attention_2",
    "dry_run": "plan dryrun estimate",
    "config": "config_file cfg yaml",
}
"""Our names for an option, of which a command has at most one -> names for it elsewhere."""

ALIASES: dict[str, tuple[str, ...]] = {}
for _ours, _theirs in _SAME.items():
    for _word in _theirs.split():
        ALIASES[_word] = (*ALIASES.get(_word, ()), *(name for name in _ours.split() if name != _word))
