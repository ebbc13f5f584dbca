"""g = d loss/d logprob and h = d loss/d entropy of a token: from `policy_loss` itself, differentiated on [n] numbers.

So no factor and no term of the loss is written twice: whatever `policy_loss` computes from log-probs and
entropies, the gradient of a logit follows from its derivatives by these two numbers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dgpo.aggregation import Fixed
from dgpo.correction import Correction, Given, Level
from dgpo.fused.inputs import Inputs, Pick, everything
from dgpo.loss import PolicyLoss, loss_of
from dgpo.objectives import Objective


def at(places: Tensor) -> Pick:
    """The tokens at these places of the flattened [B, T], as one row [1, n]."""
    return lambda values: values.flatten()[places].unsqueeze(0)


def reach(correction: Correction | None, *, on_policy: bool) -> Level:
    """Which of the current log-probs the ρ of a token depends on: `Correction.level`, or none.

    ρ = π_old/μ contains the current log-probs only on-policy, where π_old is π_θ.
    """
    return "none" if correction is None or not on_policy else correction.level


class Signal:
    """The loss of parts of a batch, which add up to the loss of the whole.

    Coefficients c are those of the full mask. So is ρ, where it is known before any log-prob is.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        spec, tokens = inputs.spec, inputs.tokens
        # a part of the batch keeps the coefficients that it has in the whole
        self._c = spec.aggregation.coefficient(tokens.mask, inputs.totals, tokens.dtype)
        how = spec.entropy_aggregation
        self._c_entropy = None if how is None else how.coefficient(tokens.mask, inputs.totals, tokens.dtype)
        self._rho: Tensor | None = None
        if spec.correction is not None and reach(spec.correction, on_policy=inputs.on_policy) == "none":
            with torch.no_grad():
                self._rho = spec.correction.factor(tokens).to(tokens.dtype).expand(tokens.mask.shape)

    def loss(
        self,
        objective: Objective,
        logprob: Tensor,
        entropy: Tensor,
        mask: Tensor,
        pick: Pick = everything,
        statistics: bool = True,
    ) -> PolicyLoss:
        """The loss of the picked tokens; logprob, entropy and mask are theirs, [b, t]."""
        inputs, reference = self._inputs, self._inputs.ref_logprob
        spec = replace(
            inputs.spec,
            objective=objective,
            aggregation=Fixed(values=pick(self._c)),
            correction=inputs.spec.correction if self._rho is None else Given(values=pick(self._rho)),
            entropy_aggregation=None if self._c_entropy is None else Fixed(values=pick(self._c_entropy)),
        )
        return loss_of(
            spec,
            inputs.batch(logprob, entropy, mask, pick),
            totals=inputs.totals,
            entropy=entropy,
            ref_logprob=None if reference is None else pick(reference),
            statistics=statistics,
        )

    def gradient(
        self, objective: Objective, logprob: Tensor, entropy: Tensor, mask: Tensor, pick: Pick = everything
    ) -> tuple[Tensor, Tensor | None]:
        """g and h [b, t]; h is None without an entropy bonus."""
        bonus = self._inputs.spec.entropy_coef != 0
        # the sweep runs under no_grad; only the loss on these [b, t] numbers is differentiated
        with torch.enable_grad():
            leaves = [logprob.detach().requires_grad_()]
            if bonus:
                leaves.append(entropy.detach().requires_grad_())
            loss = self.loss(objective, leaves[0], leaves[1] if bonus else entropy, mask, pick, statistics=False)
            found = torch.autograd.grad(loss.value, leaves)
        return found[0], found[1] if bonus else None
