#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-14B on DAPO-Math-17k with verl 0.9: recipes/dapo-math/14b-*.yaml on the papers' engine.
# NOT A RESULT: we have not run it. What is tested: verl's own configuration takes every override.
#
#   pip install 'verl[vllm,fsdp]==0.9.1' '.[verl]'   # in a clone, on every node; not run by us
#   python recipes/verl/data.py recipes/dapo-math/14b-dgpo.yaml data/dapo-math.parquet
#   dgpo doctor --engine verl
#   bash recipes/verl/dapo-math-14b.sh dgpo                            # or maspo, grpo; then any override of verl
#   DRY_RUN=1 bash recipes/verl/dapo-math-14b.sh dgpo                  # print the command
#
# Hardware: 8 GPUs of 80 GB, vLLM on the same ones (it sleeps while the trainer updates). Two nodes: trainer.nnodes=2.
# Memory:   GiB per GPU, computed: weights 6.9 = 4 B x 14,770,033,664 parameters / 8 ranks; gradients 6.9 = 4 B x
#           14,770,033,664 parameters / 8 ranks; optimiser 13.8 = 2 x 4 B x 14,770,033,664 parameters / 8 ranks;
#           gathered layers 4.4 = 2 B x (2 x 275,268,608 of a layer + 778,567,680 of the head) + 2 B x (275,268,608 of
#           a layer + 778,567,680 of the head) of gradients before they are scattered; checkpoints 4.7 = 2 B x 5,120 x
#           48 layers x 10,240 tokens; activations 3.0 = (233,640 B x 1 layer + 3 x 2 B x 13,824 of gradients) x
#           10,240 tokens; vLLM 39.5 = 0.5 x 79 GiB; verl's fused kernels 3.0 = 5 x 4 B x 512 tokens x 152,064 logits
#           + 2 B x 778,567,680 of the head + 2 B x 10,240 tokens x 5,120; reduction 2.9 = 4 B x 778,567,680 of the
#           head. Together 45.6 in an update, 60.1 in generation, of 79. As in recipes/dapo-math/14b-dgpo.yaml:
#           float32 weights and Adam (fsdp_config.model_dtype), bfloat16 products. Not as there: attention is flash;
#           rows are packed into at most 10,240 tokens; log-probs come from verl's fused kernels; gradients are
#           reduced in float32. And vLLM has no GPUs of its own.
# Time:     computed, not measured, with every response at full length: an update 5 x 33,014,415,360 FLOPs a token x
#           8,192 completions x (2,048 + 8,192) tokens / 16 updates / (35% x 8 GPUs x 989 TFLOP/s) = 312.5 s; sampling
#           a generation 33,014,415,360 FLOPs a token x 8,192 completions x (2,048 + 8,192) tokens / (10% x 8 GPUs x
#           989 TFLOP/s) = 3,500 s; the run 1,584 updates x 312.5 s + 99 generations x 3,500 s = 9.7 days on 8 H100.
# Expect:   unknown.

SIZE=14B
DGPO_N=1                # [code] README: 1; 1.5B can use 2
MASPO_ALPHA=0.3         # [code] README: 0.3; 1.5B can use 0.5
TOKENS_PER_GPU=10240    # [ours] of a micro-batch
ROLLOUT_TP=2            # [ours]
ROLLOUT_MEMORY=0.5      # [ours]
. "$(dirname "${BASH_SOURCE[0]}")/dapo-math.sh"
