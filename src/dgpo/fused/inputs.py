"""The arguments of `linear_policy_loss`, checked once, with everything per token as [B, T]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.aggregation import StepTotals, TokenMean
from dgpo.checks import check_tensor
from dgpo.counts import counted
from dgpo.fused.head import PLAIN, Head
from dgpo.fused.layout import Layout
from dgpo.kl import SEQUENCE_ESTIMATORS
from dgpo.spec import LossSpec
from dgpo.tokens import TokenBatch

Pick = Callable[[Tensor], Tensor]
"""Selects some of the tokens: [b, t] from [B, T]."""


def everything(values: Tensor) -> Tensor:
    """All tokens."""
    return values


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Checked inputs of every backend.

    Attributes:
        spec: the factors and terms.
        hidden: [N, H], with gradient; N = B · T, or the tokens of packed sequences.
        lm_head: [V, H], with gradient.
        head: what follows the product and `bias`.
        bias: [V] with gradient, or None.
        token_ids: [N], int64.
        layout: between [N] and [B, T].
        tokens: [B, T]; its `logprob` is a placeholder, and `old_logprob` too where `on_policy`.
        on_policy: True if no old_logprob was given.
        ref_logprob: [B, T] or None.
        totals: of the step.
    """

    spec: LossSpec
    hidden: Tensor
    lm_head: Tensor
    head: Head
    bias: Tensor | None
    token_ids: Tensor
    layout: Layout
    tokens: TokenBatch
    on_policy: bool
    ref_logprob: Tensor | None
    totals: StepTotals

    def batch(self, logprob: Tensor, entropy: Tensor, mask: Tensor, pick: Pick = everything) -> TokenBatch:
        """The selected tokens with their log-probs, entropies and mask, [b, t]."""
        tokens = self.tokens
        return TokenBatch(
            logprob,
            None if self.on_policy else pick(tokens.old_logprob),
            pick(tokens.advantage),
            mask,
            rollout_logprob=None if tokens.rollout_logprob is None else pick(tokens.rollout_logprob),
            entropy=entropy,
        )


def check_inputs(
    spec: LossSpec,
    hidden: Tensor,
    lm_head: Tensor,
    token_ids: Tensor,
    old_logprob: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    *,
    totals: StepTotals | None = None,
    bias: Tensor | None = None,
    head: Head = PLAIN,
    rollout_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Inputs:
    """Check arguments, which are those of `linear_policy_loss`.

    Raises:
        TypeError: an argument that is not a tensor, or of a wrong dtype or kind.
        ValueError: shapes or devices that do not fit, token ids outside the vocabulary (verified on the CPU only), a
            number outside its range, something that needs sequences without `cu_seqlens`.
    """
    _check_matrices(hidden, lm_head, token_ids, bias)
    anchor = ("hidden", hidden.device)
    spec.check_call(totals, ref_logprob, anchor)

    layout = Layout.of(token_ids.shape, cu_seqlens, hidden.device)
    per_sequence = isinstance(advantage, Tensor) and advantage.dim() == 1 and len(token_ids.shape) == 2
    if isinstance(advantage, Tensor) and layout.places is not None and advantage.shape == (layout.B,):
        per_sequence = advantage.shape != token_ids.shape  # with as many responses as tokens, both readings are one
    if not layout.sequences:
        _check_needs_no_sequences(spec, token_ids, advantage)

    def per_token(name: str, values: Tensor, kind: str = "floating") -> Tensor:
        check_tensor(name, values, kind, anchor)
        if values.shape != token_ids.shape:
            either = f" or [{layout.B}] (one per response)" if name == "advantage" and layout.sequences else ""
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; expected {tuple(token_ids.shape)}, the shape of token_ids"
                f"{either}"
            )
        return layout.pad(values)

    def optional(name: str, values: Tensor | None) -> Tensor | None:
        return None if values is None else per_token(name, values)

    exact = hidden.dtype == torch.float64  # which autocast leaves alone
    valid = per_token("mask", mask, "mask")
    if per_sequence:
        check_tensor("advantage", advantage, "real", anchor)
    # log-probs are not known yet: zeros stand for their shape, dtype and device
    tokens = TokenBatch(
        torch.zeros(valid.shape, dtype=torch.float64 if exact else torch.float32, device=hidden.device),
        optional("old_logprob", old_logprob),
        advantage if per_sequence else per_token("advantage", advantage, "real"),
        valid,
        rollout_logprob=optional("rollout_logprob", rollout_logprob),
    )
    tokens.anchored(spec.anchor)  # raises without the log-probs of the anchor
    if spec.correction is not None:
        spec.correction.check(tokens)
    for coefficients in (spec.aggregation, spec.entropy_aggregation):
        if coefficients is not None:
            coefficients.check(tokens.mask)
    reference = optional("ref_logprob", ref_logprob)
    _check_ids(token_ids, layout.unpad(tokens.mask), len(lm_head))
    return Inputs(
        spec=spec,
        hidden=hidden.reshape(-1, hidden.shape[-1]),
        lm_head=lm_head,
        head=head,
        bias=bias,
        token_ids=token_ids.reshape(-1).long().contiguous(),
        layout=layout,
        tokens=tokens,
        on_policy=old_logprob is None,
        ref_logprob=None if reference is None else tokens.masked("ref_logprob", reference).detach(),
        totals=totals or StepTotals.of(tokens.mask),
    )


def _check_matrices(hidden: Tensor, lm_head: Tensor, token_ids: Tensor, bias: Tensor | None) -> None:
    check_tensor("hidden", hidden, "floating")
    anchor = ("hidden", hidden.device)
    operands = {"lm_head": lm_head} | ({} if bias is None else {"bias": bias})
    for name, value in operands.items():
        check_tensor(name, value, "floating", anchor)
    check_tensor("token_ids", token_ids, "index", anchor)
    if hidden.dim() not in (2, 3):
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected [B, T, H], or packed [N, H]")
    if lm_head.dim() != 2 or lm_head.shape[1] != hidden.shape[-1] or len(lm_head) == 0:
        raise ValueError(
            f"lm_head has shape {tuple(lm_head.shape)}; expected [V, H] with V >= 1 and H = {hidden.shape[-1]}, as "
            f"hidden has shape {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != lm_head.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected [V] = [{len(lm_head)}]")
    if token_ids.shape != hidden.shape[:-1]:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}; expected {tuple(hidden.shape[:-1])}, as hidden has shape "
            f"{tuple(hidden.shape)}"
        )
    autocast = torch.is_autocast_enabled(hidden.device.type)
    for name, value in operands.items():
        # autocast leaves float64 alone
        if value.dtype != hidden.dtype and (not autocast or torch.float64 in (value.dtype, hidden.dtype)):
            raise TypeError(
                f"hidden has dtype {hidden.dtype} and {name} {value.dtype}; expected one dtype, or torch.autocast"
            )


def _check_needs_no_sequences(spec: LossSpec, token_ids: Tensor, advantage: Tensor) -> None:
    needs, rho, bonus = [], spec.correction, spec.entropy_aggregation
    if "response" in spec.objective.reads:
        needs.append(f"the objective {type(spec.objective).__name__}, whose weights read the whole response,")
    if not isinstance(spec.aggregation, TokenMean):
        needs.append(f"the aggregation {type(spec.aggregation).__name__}")
    if rho is not None and rho.level not in ("none", "token"):
        needs.append(f"the correction {type(rho).__name__} (not of level 'token')")
    if spec.kl_coef != 0 and spec.kl in SEQUENCE_ESTIMATORS:
        needs.append(f"kl = {spec.kl!r}")
    if bonus is not None and not isinstance(bonus, TokenMean):
        needs.append(f"the entropy_aggregation {type(bonus).__name__}")
    if isinstance(advantage, Tensor) and advantage.shape != token_ids.shape:
        needs.append(f"an advantage of shape {tuple(advantage.shape)} for token_ids of {tuple(token_ids.shape)}")
    if needs:
        raise ValueError(f"{', '.join(needs)} needs to know where sequences end: pass cu_seqlens [B + 1], got None")


def _check_ids(token_ids: Tensor, mask: Tensor, vocabulary: int) -> None:
    # on an accelerator the comparison would wait for the device
    if token_ids.device.type != "cpu":
        return
    wrong = mask & ((token_ids < 0) | (token_ids >= vocabulary))
    if wrong.any():
        place = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"token_ids{list(place)} = {int(token_ids[place])} at a valid position; expected 0 .. {vocabulary - 1}, as "
            f"lm_head has {counted(vocabulary, 'row')} ({counted(int(wrong.sum()), 'such token')})"
        )
