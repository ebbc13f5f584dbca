#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-7B on DAPO-Math-17k with verl 0.9: recipes/dapo-math/7b-*.yaml on the papers' engine.
# NOT A RESULT: we have not run it. What is tested: verl's own configuration takes every override.
#
#   pip install 'verl[vllm,fsdp]==0.9.1' '.[verl]'   # in a clone, on every node; not run by us
#   python recipes/verl/data.py recipes/dapo-math/7b-dgpo.yaml data/dapo-math.parquet
#   dgpo doctor --engine verl
#   bash recipes/verl/dapo-math-7b.sh dgpo                            # or maspo, grpo; then any override of verl
#   DRY_RUN=1 bash recipes/verl/dapo-math-7b.sh dgpo                  # print the command
#
# Hardware: 8 GPUs of 80 GB, vLLM on the same ones (it sleeps while the trainer updates). Two nodes: trainer.nnodes=2.
# Memory:   GiB per GPU, computed: weights 3.5 = 4 B x 7,615,616,512 parameters / 8 ranks; gradients 3.5 = 4 B x
#           7,615,616,512 parameters / 8 ranks; optimiser 7.1 = 2 x 4 B x 7,615,616,512 parameters / 8 ranks; gathered
#           layers 3.3 = 2 B x (2 x 233,057,792 of a layer + 544,997,376 of the head) + 2 B x (233,057,792 of a layer
#           + 544,997,376 of the head) of gradients before they are scattered; checkpoints 3.8 = 2 B x 3,584 x 28
#           layers x 20,480 tokens; activations 6.7 = (237,688 B x 1 layer + 3 x 2 B x 18,944 of gradients) x 20,480
#           tokens; vLLM 39.5 = 0.5 x 79 GiB; verl's fused kernels 2.6 = 5 x 4 B x 512 tokens x 152,064 logits + 2 B x
#           544,997,376 of the head + 2 B x 20,480 tokens x 3,584; reduction 2.0 = 4 B x 544,997,376 of the head.
#           Together 32.7 in an update, 50.1 in generation, of 79. As in recipes/dapo-math/7b-dgpo.yaml: float32
#           weights and Adam (fsdp_config.model_dtype), bfloat16 products. Not as there: attention is flash; rows are
#           packed into at most 20,480 tokens; log-probs come from verl's fused kernels; gradients are reduced in
#           float32.
# Time:     computed, not measured, with every response at full length: an update 5 x 16,195,780,608 FLOPs a token x
#           8,192 completions x (2,048 + 8,192) tokens / 16 updates / (35% x 8 GPUs x 989 TFLOP/s) = 153.3 s; sampling
#           a generation 16,195,780,608 FLOPs a token x 8,192 completions x (2,048 + 8,192) tokens / (10% x 8 GPUs x
#           989 TFLOP/s) = 1,717 s; the run 1,584 updates x 153.3 s + 99 generations x 1,717 s = 4.8 days on 8 H100.
# Expect:   unknown.

SIZE=7B
DGPO_N=1                # [code] README: 1; 1.5B can use 2
MASPO_ALPHA=0.3         # [code] README: 0.3; 1.5B can use 0.5
TOKENS_PER_GPU=20480    # [ours] of a micro-batch
ROLLOUT_TP=1            # [ours]
ROLLOUT_MEMORY=0.5      # [ours]
. "$(dirname "${BASH_SOURCE[0]}")/dapo-math.sh"
