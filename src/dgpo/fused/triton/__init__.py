"""The elementwise middle of the fused loss as two Triton kernels between cuBLAS products.

`stats` turns a chunk's logits into log-probs and entropies; the objective's own torch code turns those [n] numbers into
d loss/d logprob and d loss/d entropy; `gradient_` overwrites the logits with their gradient. No objective needs device
code. A chunk is read twice and written once (6 bytes per bf16 logit): its rows are far larger than the L2 cache, so the
second read finds only the rows there that the first read last.

Importing this package does not import triton.
"""

from dgpo.fused.triton.launch import gradient_, stats, unavailable

__all__ = ["gradient_", "stats", "unavailable"]
