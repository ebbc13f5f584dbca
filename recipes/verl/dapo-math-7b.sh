#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-7B on DAPO-Math-17k with verl 0.9: recipes/dapo-math/7b-*.yaml on the engine of the papers.
# NOT A RESULT: we have not run it. What is tested: verl's own configuration takes every override.
#
#   pip install 'dgpo[verl]' vllm                                        # on every node
#   python recipes/verl/data.py recipes/dapo-math/7b-dgpo.yaml data/dapo-math.parquet
#   dgpo doctor --engine verl
#   bash recipes/verl/dapo-math-7b.sh dgpo                            # or maspo, grpo; then any override of verl
#   DRY_RUN=1 bash recipes/verl/dapo-math-7b.sh dgpo                  # print the command
#
# Hardware: 8 GPUs of 80 GB, vLLM on the same ones. Memory about as in recipes/dapo-math/7b-dgpo.yaml: float32 weights
#           and Adam over 8 ranks; log-probs come from verl's fused kernels. Two nodes: trainer.nnodes=2.
# Time:     the same arithmetic; not measured.
# Expect:   unknown.

SIZE=7B
DGPO_N=1                # [code] README: 2 at 1.5B, 1 above
MASPO_ALPHA=0.3         # [code] 0.5 at 1.5B, 0.3 from 7B on
TOKENS_PER_GPU=20480    # [ours] of a micro-batch
ROLLOUT_TP=1            # [ours]
ROLLOUT_MEMORY=0.5      # [ours]
. "$(dirname "${BASH_SOURCE[0]}")/dapo-math.sh"
