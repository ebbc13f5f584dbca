"""miles, which descends from slime: any objective as its custom loss. Read at radixark/miles@31f1ca96 (2026-08-21).

::

    --loss-type custom_loss --custom-loss-function-path dgpo.engines.miles.policy_loss_function
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
    """miles's policy loss with w of any objective, in its signature: see `dgpo.engines.slime.policy_loss_function`."""
    from miles.backends.training_utils.loss_hub.logit_processors import get_log_probs_and_entropy
    from miles.backends.training_utils.loss_hub.math_utils import compute_approx_kl

    def scores(logits: Tensor, args: Namespace, batch: dict[str, Any]) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = get_log_probs_and_entropy(
            logits, args=args, with_entropy=True, max_seq_lens=batch.get("max_seq_lens"), **lengths_of(batch)
        )
        return found

    return loss_of(Family(name="miles", scores=scores, kl=compute_approx_kl), args, batch, logits, sum_of_sample_mean)
