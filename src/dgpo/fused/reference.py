"""The naive version: all logits, `log_softmax`, `policy_loss`. What is computed, and the truth of the tests."""

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
    hidden = torch.where(valid.unsqueeze(1), inputs.hidden, 0.0)
    token_ids = torch.where(valid, inputs.token_ids, 0)

    raw = F.linear(hidden, inputs.lm_head, inputs.bias).to(inputs.tokens.dtype)
    capped = raw if inputs.softcap is None else inputs.softcap * torch.tanh(raw / inputs.softcap)
    logp = F.log_softmax(capped / inputs.temperature, dim=-1)
    logprob = layout.pad(logp.gather(1, token_ids.unsqueeze(1)).view(layout.shape))
    p = logp.exp()
    entropy = layout.pad(-(p * torch.where(p > 0, logp, 0.0)).sum(-1).view(layout.shape))

    mask = inputs.tokens.mask
    batch = inputs.batch(logprob, entropy, mask)
    loss = loss_of(inputs.spec, batch, totals=inputs.totals, entropy=entropy, ref_logprob=inputs.ref_logprob)
    return LinearPolicyLoss.of(loss, logprob, entropy, mask, layout)
