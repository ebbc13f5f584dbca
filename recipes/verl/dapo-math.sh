# Sourced by dapo-math-{1.5b,7b,14b}.sh, which set SIZE, the objectives' fields, and what fits their GPUs. Same setting
# as recipes/dapo-math/*.yaml, where the comments say whose each value is.
#
# Which responses an update sees: TRL draws them from all groups of the generation, and actor.shuffle=True does so here.
# verl 0.9.1 alone takes responses in the order in which they came in, dealt out to the ranks by length, and cuts that
# into updates (read in its source, not run): short responses would come first, and groups be neither whole nor mixed.
set -euo pipefail

objective=${1:?"usage: bash $0 dgpo|maspo|grpo [more overrides of verl]"}
shift
case $objective in
  dgpo) fields=(--n "$DGPO_N" --m 2 --eps_low 0.2 --eps_high 0.2) ;;
  maspo) fields=(--sigma_base 1.0 --alpha "$MASPO_ALPHA" --beta_pos 0.03 --beta_neg 0.03) ;;
  grpo) fields=(--eps_low 0.2 --eps_high 0.2 --dual_clip 3.0) ;;
  *) echo "unknown objective '$objective'; expected dgpo, maspo or grpo" >&2; exit 2 ;;
esac
# the loss and the reward, one override per line; an assignment of its own, so that a failure ends the script
printed=$(dgpo verl-overrides --objective "$objective" "${fields[@]}")
mapfile -t plug_in <<< "$printed"

DATA=${DATA:-data/dapo-math.parquet}
command=(
  python -m verl.trainer.main_ppo
  "${plug_in[@]}"
  data.train_files="$DATA"
  data.val_files="$DATA"                                    # verl wants one; no validation is run
  data.train_batch_size=512                                 # prompts of a generation
  data.max_prompt_length=2048
  data.max_response_length=8192
  data.filter_overlong_prompts=True
  actor_rollout_ref.model.path="deepseek-ai/DeepSeek-R1-Distill-Qwen-$SIZE"
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.use_fused_kernels=True            # log-probs without the logits of the batch
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.ppo_mini_batch_size=32            # prompts of an update: 16 updates
  actor_rollout_ref.actor.shuffle=True                      # responses of all groups, as with TRL: see above
  actor_rollout_ref.actor.ppo_epochs=1
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$TOKENS_PER_GPU"
  actor_rollout_ref.actor.loss_agg_mode=token-mean
  actor_rollout_ref.actor.use_kl_loss=False
  actor_rollout_ref.actor.entropy_coeff=0
  actor_rollout_ref.actor.grad_clip=1.0
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.optim.lr_warmup_steps=10          # generations, the first at rate 0; with TRL 160 updates
  actor_rollout_ref.actor.optim.weight_decay=0.0
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=16
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
  actor_rollout_ref.rollout.gpu_memory_utilization="$ROLLOUT_MEMORY"
  actor_rollout_ref.rollout.calculate_log_probs=True
  algorithm.adv_estimator=grpo
  algorithm.norm_adv_by_std_in_grpo=True
  algorithm.use_kl_in_reward=False
  # vLLM is not the trainer. Per token: over thousands of tokens the factor of a whole response would be at its cap or
  # near 0 most of the time (docs/correction.md)
  algorithm.rollout_correction.rollout_is=token
  algorithm.rollout_correction.rollout_is_threshold=2.0
  trainer.n_gpus_per_node=8
  trainer.nnodes=1
  trainer.total_epochs=3
  trainer.save_freq=10                                      # generations
  trainer.test_freq=-1
  trainer.val_before_train=False
  trainer.logger='["console"]'
  trainer.project_name=dapo-math
  trainer.experiment_name="$SIZE-$objective"
  "$@"
)
if [ -n "${DRY_RUN:-}" ]; then
  printf '%s\n' "${command[@]}"
else
  "${command[@]}"
fi
