#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-7B on DAPO-Math-17k with verl 0.9: recipes/dapo-math/7b-*.yaml on the papers' engine.
# NOT A RESULT: we have not run it. What is tested: verl's own configuration takes every override.
#
#   pip install 'verl[vllm,fsdp]==0.9.1' 'dgpo[verl]'                   # on every node; not run by us
#   python recipes/verl/data.py recipes/dapo-math/7b-dgpo.yaml data/dapo-math.parquet
#   dgpo doctor --engine verl
#   bash recipes/verl/dapo-math-7b.sh dgpo                            # or maspo, grpo; then any override of verl
#   DRY_RUN=1 bash recipes/verl/dapo-math-7b.sh dgpo                  # print the command
#
# Hardware: 8 GPUs of 80 GB, vLLM on the same ones (it sleeps while the trainer updates). Two nodes: trainer.nnodes=2.
# Memory:   GiB per GPU, computed: weights 3.5 = 4 B x 7,615,616,512 parameters / 8 ranks; gradients 3.5 = 4 B x
#           7,615,616,512 parameters / 8 ranks; optimiser 7.1 = 2 x 4 B x 7,615,616,512 parameters / 8 ranks; gathered
#           layers 3.3 = 2 B x (2 layers + head), and gradients of one layer + head before they are scattered;
#           checkpoints 3.8 = 2 B x 3584 x 28 layers x 20,480 tokens; activations 6.7 = 237,688 B per token and layer x
#           20,480 tokens x 1 layer; vLLM 39.5 = gpu_memory_utilization x GPU; verl's fused kernels 2.6 = 20 B x 512
#           tokens x vocabulary, and 2 B x head and hidden states; reduction 2.0 = 4 B x head. Together 32.7 in an
#           update, 50.1 in generation, of 79.
#           As in recipes/dapo-math/7b-dgpo.yaml: float32 weights and Adam (fsdp_config.model_dtype), bfloat16 products.
#           Not as there: attention is flash; rows are packed into at most 20,480 tokens; log-probs come from verl's
#           fused kernels; gradients are reduced in float32.
# Time:     computed, not measured, with every response at full length: a forward pass is f = 1.6e+10 FLOPs a token (2 x
#           weights + attention) and a generation 8,192 x 10,240 tokens; its 16 updates cost 5 f a token, at 35% of 8 x
#           989 TFLOP/s at most 153 s each; sampling 1 f, at 10% 1,717 s. 99 generations, 1,584 updates in all.
# Expect:   unknown.

SIZE=7B
DGPO_N=1                # [code] README: 2 at 1.5B, 1 above
MASPO_ALPHA=0.3         # [code] README: 0.3; 1.5B can use 0.5
TOKENS_PER_GPU=20480    # [ours] of a micro-batch
ROLLOUT_TP=1            # [ours]
ROLLOUT_MEMORY=0.5      # [ours]
. "$(dirname "${BASH_SOURCE[0]}")/dapo-math.sh"
