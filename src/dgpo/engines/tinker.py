"""Tinker's API: any objective as a custom loss that its client traces. Read and tested: tinker 0.38.0 from PyPI.

::

    from dgpo.engines import tinker as dgpo_tinker

    handle = service_client.create_custom_loss(dgpo_tinker.loss("dgpo", n=2, m=2), dgpo_tinker.RANKS)
    training_client.forward_backward_custom(data, handle)

`create_custom_loss` traces the loss by `torch.fx` into a graph of torch operations. A server that takes such graphs
runs it beside the model; for others the client runs it, and sends the gradient of the log-probs as weights of a
cross-entropy. Either way a datum is one response, and losses of data are added.

A `Datum` holds, in its `loss_fn_inputs`, `target_tokens` and the `INPUTS` below, each [T] like `target_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor

from dgpo.engines.common import fixed_objective
from dgpo.kl import k3
from dgpo.objectives import Objective
from dgpo.tokens import TokenBatch

INPUTS: Mapping[str, str] = {
    "old_logprobs": "log-probs of the policy that the ratio is taken against: what the sampling client returned, or "
    "those of a forward pass before the update",
    "advantages": "A of the response, repeated for each of its tokens",
    "weights": "c of the token, the coefficient of its aggregation: 1 / (tokens of the update) for a token mean; 0 for "
    "tokens of the prompt",
}
"""Keys of `loss_fn_inputs` that a loss of this module reads, and what each holds."""

RANKS: Mapping[str, int] = dict.fromkeys(("logprobs", *INPUTS), 1)
"""`input_ranks` of `create_custom_loss`."""

TracedLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def loss(objective: str | Objective, **fields: Any) -> TracedLoss:
    """Σ_t weights · (the loss of token t) of one datum, as a function that `torch.fx` can trace.

    Value and gradient are those of `policy_loss` with `weights` as coefficients c. Metrics, as means over the data:
    `custom/weight:mean` (mean of w), `custom/weight_zero:mean` (share of tokens with w = 0) and `custom/kl_old:mean`
    (k3 estimate of KL(π_old ‖ π) in nats), each over the tokens of the response.

    Args:
        objective: a name of `objectives.OBJECTIVES`, or an `Objective`.
        fields: of the objective, with a name.

    Raises:
        ValueError: an unknown name or field; an adaptive objective, which calibrates itself on the whole batch, as a
            graph sees one response; one that reads entropy, which Tinker does not provide; one that cannot be traced,
            as `fipo`, whose number of operations depends on the length.
        TypeError: fields beside an instance.
    """
    if isinstance(objective, Objective):
        if fields:
            raise TypeError(f"loss() got an instance, {objective!r}, and fields beside it: {', '.join(fields)}")
        name, method = type(objective).__name__, objective
        _check_instance(method)
    else:
        name, method = objective, fixed_objective("Tinker", objective, fields)

    def traced(
        logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = TracedTokens(logprobs.detach(), old_logprobs, advantages, weights)
        # a graph has no `no_grad`: what carries no gradient is cut off by hand
        w = torch.where(tokens.mask, method.weight(tokens), 0.0).detach()
        phi = torch.where(tokens.mask, method.potential(tokens), 0.0).detach()
        c = torch.where(tokens.mask, weights.unsqueeze(0), 0.0)
        new = torch.where(tokens.mask, logprobs.unsqueeze(0), 0.0)
        step = (new - new.detach()).exp() - 1
        value = -(c * tokens.advantage * (phi + w * step)).sum()
        if method.penalises:
            kappa, slope = (part.detach() for part in method.penalty(tokens))
            value = value + (c * (kappa + slope * step)).sum()
        count = tokens.mask.sum().clamp(min=1)
        metrics = {
            "custom/weight:mean": w.sum() / count,
            "custom/weight_zero:mean": ((w == 0) & tokens.mask).sum() / count,
            "custom/kl_old:mean": k3(tokens.old_logprob, tokens.logprob).sum() / count,
        }
        return value, metrics

    try:
        torch.fx.symbolic_trace(traced)
    except (torch.fx.proxy.TraceError, TypeError) as error:
        raise ValueError(
            f"Tinker: the weight of {method!r} cannot be traced, since it branches on the length or the values of a "
            f"response ({str(error).splitlines()[0]}); use another objective"
        ) from error
    # Tinker names the loss by it
    traced.__name__ = f"dgpo_{name}"
    return traced


class TracedTokens(TokenBatch):
    """One response as an objective sees it, [1, T], of tensors [T] that may not be known yet."""

    traced: ClassVar[bool] = True

    def __init__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor) -> None:
        self.dtype = torch.float32
        self.mask = weights.unsqueeze(0) != 0
        self.logprob = self._only_valid(logprobs)
        self.old_logprob = self._only_valid(old_logprobs)
        self.advantage = self._only_valid(advantages)
        self.rollout_logprob = self.entropy = None

    def _only_valid(self, values: Tensor) -> Tensor:
        return torch.where(self.mask, values.unsqueeze(0), 0.0)


def _check_instance(method: Objective) -> None:
    for what, why in (
        ("batch", "calibrates itself on the whole batch"),
        ("entropy", "reads the entropy of the tokens"),
    ):
        if what in method.reads:
            raise ValueError(
                f"Tinker: {method!r} {why}, and a custom loss sees one response and its log-probs; use an objective "
                "that does not"
            )
