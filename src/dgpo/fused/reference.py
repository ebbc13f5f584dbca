"""The naive version: all logits, `log_softmax`, `policy_loss`. Defines what is computed; tests compare with it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dgpo.fused.inputs import Inputs
from dgpo.fused.result import LinearPolicyLoss
from dgpo.loss import loss_of


def reference(inputs: Inputs) -> LinearPolicyLoss:
    """Holds N x V logits several times over; any derivative, every valid token computed.

    The product and the bias are of the operands' dtype, everything after them float32 (float64 for float64).
    """
    layout = inputs.layout
    valid = layout.unpad(inputs.tokens.mask).flatten()
    # NaN in padding would reach lm_head's gradient as 0 · NaN
    hidden = torch.where(valid.unsqueeze(1), inputs.hidden, 0.0)
    token_ids = torch.where(valid, inputs.token_ids, 0)

    product = F.linear(hidden, inputs.lm_head, inputs.bias).to(inputs.tokens.dtype)
    logprob, entropy = (layout.pad(values.view(layout.shape)) for values in inputs.head.scores(product, token_ids))
    mask = inputs.tokens.mask
    batch = inputs.batch(logprob, entropy, mask)
    loss = loss_of(inputs.spec, batch, totals=inputs.totals, entropy=entropy, ref_logprob=inputs.ref_logprob)
    return LinearPolicyLoss.of(loss, logprob, entropy, mask, layout)
