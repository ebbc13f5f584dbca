#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-1.5B on DAPO-Math-17k with verl 0.9: recipes/dapo-math/1.5b-*.yaml on the papers' engine.
# NOT A RESULT: we have not run it. What is tested: verl's own configuration takes every override.
#
#   pip install 'verl[vllm,fsdp]==0.9.1' '.[verl]'   # in a clone, on every node; not run by us
#   python recipes/verl/data.py recipes/dapo-math/1.5b-dgpo.yaml data/dapo-math.parquet
#   dgpo doctor --engine verl
#   bash recipes/verl/dapo-math-1.5b.sh dgpo                            # or maspo, grpo; then any override of verl
#   DRY_RUN=1 bash recipes/verl/dapo-math-1.5b.sh dgpo                  # print the command
#
# Hardware: 8 GPUs of 80 GB, vLLM on the same ones (it sleeps while the trainer updates). Two nodes: trainer.nnodes=2.
# Memory:   GiB per GPU, computed: weights 0.8 = 4 B x 1,777,088,000 parameters / 8 ranks; gradients 0.8 = 4 B x
#           1,777,088,000 parameters / 8 ranks; optimiser 1.7 = 2 x 4 B x 1,777,088,000 parameters / 8 ranks; gathered
#           layers 1.1 = 2 B x (2 x 46,797,824 of a layer + 233,373,696 of the head) + 2 B x (46,797,824 of a layer +
#           233,373,696 of the head) of gradients before they are scattered; checkpoints 3.3 = 2 B x 1,536 x 28 layers
#           x 40,960 tokens; activations 6.2 = (108,600 B x 1 layer + 3 x 2 B x 8,960 of gradients) x 40,960 tokens;
#           vLLM 39.5 = 0.5 x 79 GiB; verl's fused kernels 2.0 = 5 x 4 B x 512 tokens x 151,936 logits + 2 B x
#           233,373,696 of the head + 2 B x 40,960 tokens x 1,536; reduction 0.9 = 4 B x 233,373,696 of the head.
#           Together 16.8 in an update, 42.0 in generation, of 79. As in recipes/dapo-math/1.5b-dgpo.yaml: float32
#           weights and Adam (fsdp_config.model_dtype), bfloat16 products. Not as there: attention is flash; rows are
#           packed into at most 40,960 tokens; log-probs come from verl's fused kernels; gradients are reduced in
#           float32.
# Time:     computed, not measured, with every response at full length: an update 5 x 3,967,942,656 FLOPs a token x
#           8,192 completions x (2,048 + 8,192) tokens / 16 updates / (35% x 8 GPUs x 989 TFLOP/s) = 37.56 s; sampling
#           a generation 3,967,942,656 FLOPs a token x 8,192 completions x (2,048 + 8,192) tokens / (10% x 8 GPUs x
#           989 TFLOP/s) = 420.7 s; the run 1,584 updates x 37.56 s + 99 generations x 420.7 s = 28 h on 8 H100.
# Expect:   unknown.

SIZE=1.5B
DGPO_N=2                # [code] README: 1; 1.5B can use 2
MASPO_ALPHA=0.5         # [code] README: 0.3; 1.5B can use 0.5
TOKENS_PER_GPU=40960    # [ours] of a micro-batch
ROLLOUT_TP=1            # [ours]
ROLLOUT_MEMORY=0.5      # [ours]
. "$(dirname "${BASH_SOURCE[0]}")/dapo-math.sh"
