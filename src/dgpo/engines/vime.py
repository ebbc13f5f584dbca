"""vime, which descends from slime: any objective as its custom loss. Read at vllm-project/vime@0696c9bd.

::

    --loss-type custom_loss --custom-loss-function-path dgpo.engines.vime.policy_loss_function
    --custom-config-path dgpo.yaml

Everything else is as in `dgpo.engines.slime`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import Tensor

from dgpo.engines.slime import Family, Reducer, lengths_of, loss_of


def policy_loss_function(
    args: Namespace, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Reducer
) -> tuple[Tensor, dict[str, Tensor]]:
    """vime's policy loss with w of any objective, in its signature: see `dgpo.engines.slime.policy_loss_function`."""
    from vime.backends.megatron_utils.loss import get_log_probs_and_entropy
    from vime.utils.ppo_utils import compute_approx_kl

    def scores(logits: Tensor, args: Namespace, batch: dict[str, Any]) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = get_log_probs_and_entropy(
            logits, args=args, with_entropy=True, max_seq_lens=batch.get("max_seq_lens"), **lengths_of(batch)
        )[1]
        return found

    return loss_of(Family(name="vime", scores=scores, kl=compute_approx_kl), args, batch, logits, sum_of_sample_mean)
