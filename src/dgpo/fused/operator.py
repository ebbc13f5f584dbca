"""linear_policy_loss: `policy_loss` straight from hidden states, without the logits of more than a chunk of tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor

from dgpo.aggregation import Aggregation, StepTotals
from dgpo.correction import Correction
from dgpo.fused.backends import CHUNK_BYTES, make_middle, tokens_per_chunk
from dgpo.fused.chunked import Operands, chunked
from dgpo.fused.head import Head
from dgpo.fused.inputs import check_inputs
from dgpo.fused.reference import reference
from dgpo.fused.result import LinearPolicyLoss
from dgpo.objectives import Objective
from dgpo.registry import did_you_mean
from dgpo.spec import LossSpec

BACKENDS = ("auto", "reference", "chunked", "triton")
STATISTICS = ("computed", "full")

__all__ = ["BACKENDS", "CHUNK_BYTES", "STATISTICS", "linear_policy_loss"]


P = ParamSpec("P")


def _outside_of_graphs(loss: Callable[P, LinearPolicyLoss]) -> Callable[P, LinearPolicyLoss]:
    """The loss, hidden from torch.compile if that has been imported; importing it only to ask would be slow."""

    disabled: list[Callable[P, LinearPolicyLoss]] = []

    @wraps(loss)
    def call(*args: P.args, **kwargs: P.kwargs) -> LinearPolicyLoss:
        if "torch._dynamo" not in sys.modules:
            return loss(*args, **kwargs)
        if not disabled:  # once: it formats the stack that it is called from, which takes as long as a small loss
            disabled.append(torch.compiler.disable(loss))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return call


@_outside_of_graphs
def linear_policy_loss(
    hidden: Tensor,
    lm_head: Tensor,
    token_ids: Tensor,
    old_logprob: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    *,
    objective: str | Objective = "dgpo",
    aggregation: str | Aggregation = "token-mean",
    totals: StepTotals | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    rollout_logprob: Tensor | None = None,
    correction: str | Correction | None = None,
    anchor: Literal["old", "rollout"] = "old",
    ref_logprob: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
    entropy_coef: float = 0.0,
    entropy_aggregation: str | Aggregation | None = None,
    statistics: Literal["computed", "full"] = "computed",
    kept: int | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_tokens: int | None = None,
    backend: Literal["auto", "reference", "chunked", "triton"] = "auto",
) -> LinearPolicyLoss:
    """`policy_loss` of the log-probs and entropies of these logits, which are never held at once::

        raw = hidden · lm_headᵀ + bias
        z = softcap · tanh(raw / softcap) / temperature        raw / temperature without a softcap
        logprob = z[token_ids] - log Σ exp(z)        entropy = -Σ p log p,  p = softmax(z)

    Value and gradients come out of one sweep over chunks of tokens, with three matrix products each (logits, gradient
    of hidden, gradient of lm_head) and no recomputation; `backward` only scales by grad_output. A tensor that requires
    no gradient costs no product, and without gradients there is one product. Adaptive objectives, and sequence-level
    ones where a response is longer than a chunk, take a fourth.

    Tokens that cannot contribute are dropped before any product: those masked and, without a KL term and an entropy
    bonus, those with advantage 0 (for a sequence-level objective: responses with advantage 0 throughout; for an
    adaptive one only from the products of the gradient). Value and gradient are unchanged, coefficients c are those of
    the full mask. `out.computed` marks the tokens that remain; elsewhere logprob and entropy are NaN and weight is 0.

    Args:
        hidden: [B, T, H], or packed [N, H], with gradient: the state that predicts the token, of the same index.
        lm_head: [V, H], with gradient unless frozen. A sharded weight has to be gathered: call this where the model
            would call its head.
        token_ids: [B, T] or [N], int64 or int32; anything where masked.
        old_logprob: [B, T] or [N]; None means on-policy.
        advantage: [B, T] or [N]; or [B], one per response.
        mask: [B, T] or [N], bool or 0/1.
        objective, aggregation, totals, rollout_logprob, correction, anchor, ref_logprob, kl_coef, kl, entropy_coef: as
            in `policy_loss`, with tensors of the shape of token_ids.
        entropy_aggregation: as in `policy_loss`.
        bias: [V], with gradient, or None.
        temperature: > 0; divides the logits, after the cap.
        softcap: > 0, or None.
        statistics: "computed" takes the statistics over the tokens that were computed. With tokens dropped, every
            fraction, mean and KL of `policy_loss` is then one of tokens with an advantage; `mass/*` is unchanged.
            "full" computes every valid token.
        kept: number of tokens that will be computed, if known: saves the synchronisation that counts them.
        cu_seqlens: [B + 1] offsets of the sequences in [N]. Without it, whatever needs sequences is an error.
        chunk_tokens: maximum number of tokens whose logits are held at once; None takes a budget in bytes,
            `CHUNK_BYTES`.
        backend: "reference" holds all logits and computes every valid token; "chunked" is torch alone; "triton" has
            the elementwise part as kernels; "auto" is "triton" where it runs, "chunked" elsewhere.

    Under torch.autocast the products have its dtype; float16 is refused, because the gradients are computed before a
    loss scale is known. Log-probs and everything after them are float32 (float64 for float64 operands). Gradients are
    summed in float32 and returned in the dtype of their tensors. A CPU has no float32 products of 16-bit operands:
    there the logits and gradients of every chunk are rounded once, as in the naive loss, and with several chunks the
    gradient of lm_head has up to 1.4 times the rounding error of the naive one.

    Under torch.compile the call is a graph break and runs eagerly: its loop must not be unrolled, and no custom
    operator accepts an objective, which is a Python object. So fullgraph=True is not possible.

    Returns:
        `LinearPolicyLoss`: value, weight, statistics, logprob, entropy, computed.

    Raises:
        TypeError, ValueError: if an argument does not fit (the error says what was expected) or a backend cannot run
            here.
        RuntimeError: if a gradient is differentiated again.
    """
    spec = LossSpec.of(
        objective=objective,
        aggregation=aggregation,
        correction=correction,
        anchor=anchor,
        kl=kl,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        entropy_aggregation=entropy_aggregation,
    )
    return linear_loss_of(
        spec,
        *(hidden, lm_head, token_ids, old_logprob, advantage, mask),
        totals=totals,
        bias=bias,
        head=Head(temperature=temperature, softcap=softcap),
        rollout_logprob=rollout_logprob,
        ref_logprob=ref_logprob,
        cu_seqlens=cu_seqlens,
        statistics=statistics,
        kept=kept,
        chunk_tokens=chunk_tokens,
        backend=backend,
    )


@_outside_of_graphs
def linear_loss_of(
    spec: LossSpec,
    *tensors: Any,
    statistics: str = "computed",
    kept: int | None = None,
    chunk_tokens: int | None = None,
    backend: str = "auto",
    **others: Any,
) -> LinearPolicyLoss:
    """`linear_policy_loss` for a specification that is built already.

    Args:
        spec: the factors and terms.
        tensors, others: the arguments of `linear_policy_loss` that `spec` does not hold, by position or by name; with a
            `Head` as `head` in place of temperature and softcap.
        statistics, kept, chunk_tokens, backend: as there.

    Raises:
        TypeError, ValueError: as there.
    """
    _check_choice("statistics", statistics, STATISTICS)
    _check_choice("backend", backend, BACKENDS)
    for name, number, lowest in (("kept", kept, 0), ("chunk_tokens", chunk_tokens, 1)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < lowest):
            raise ValueError(f"{name} = {number!r} is not allowed; expected an int >= {lowest}, or None")

    inputs = check_inputs(spec, *tensors, **others)
    if backend == "reference":
        return reference(inputs)
    device = inputs.hidden.device.type
    # autocast leaves products with out= alone, so its dtype is applied here
    autocast = torch.is_autocast_enabled(device)
    # as autocast itself does, which leaves float64 alone
    lower = autocast and inputs.hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if lower else inputs.hidden.dtype
    if dtype == torch.float16:
        raise ValueError(
            f"hidden has dtype {inputs.hidden.dtype} and the products would be float16, in which gradients vanish "
            "before they can be scaled; expected bfloat16 or float32, or backend='reference'"
        )
    operands = Operands(
        hidden=inputs.hidden.detach().to(dtype),
        lm_head=inputs.lm_head.detach().to(dtype),
        # in its own dtype: it is added to logits that are float32 by then
        bias=None if inputs.bias is None else inputs.bias.detach().contiguous(),
    )
    # the operands have its dtype already; what follows the products must not be lowered
    with torch.autocast(device, enabled=False):
        middle = make_middle(backend, inputs, operands)
        most = chunk_tokens or tokens_per_chunk(operands.lm_head)
        return chunked(inputs, operands, middle, full=statistics == "full", kept=kept, chunk_tokens=most)


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}{did_you_mean(value, known)}; known: {', '.join(known)}")
