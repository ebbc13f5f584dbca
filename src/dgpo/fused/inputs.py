"""The arguments of `linear_policy_loss`, checked once, with everything per token as [B, T]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import Aggregation, StepTotals, TokenMean
from dgpo.checks import check_tensor
from dgpo.correction import Correction
from dgpo.fields import check_value
from dgpo.fused.layout import Layout
from dgpo.loss import SEQUENCE_KL, check_terms
from dgpo.objectives import Objective
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What both backends read.

    Attributes:
        hidden: [N, H], with gradient; N = B · T, or the tokens of packed sequences.
        lm_head: [V, H], with gradient.
        bias: [V] with gradient, or None.
        token_ids: [N], int64.
        layout: between [N] and [B, T].
        tokens: [B, T]; its `logprob` is a placeholder, and `old_logprob` too where `on_policy`.
        on_policy: True if no old_logprob was given.
        ref_logprob: [B, T] or None.

    The others are those of `policy_loss`, names resolved.
    """

    hidden: Tensor
    lm_head: Tensor
    bias: Tensor | None
    token_ids: Tensor
    layout: Layout
    tokens: TokenBatch
    on_policy: bool
    ref_logprob: Tensor | None
    objective: Objective
    aggregation: Aggregation
    totals: StepTotals
    correction: Correction | None
    kl_coef: float
    kl: str
    entropy_coef: float
    entropy_aggregation: Aggregation | None
    temperature: float
    softcap: float | None

    @property
    def reads_response(self) -> bool:
        """Whether the gradient at a token reads log-probs of its whole response."""
        return "response" in self.objective.reads or (self.kl_coef != 0 and self.kl in SEQUENCE_KL)

    def loss_arguments(self) -> dict[str, Any]:
        """Keywords of `policy_loss` on [B, T], without logprob and entropy."""
        return {
            "old_logprob": None if self.on_policy else self.tokens.old_logprob,
            "advantage": self.tokens.advantage,
            "mask": self.tokens.mask,
            "objective": self.objective,
            "aggregation": self.aggregation,
            "totals": self.totals,
            "rollout_logprob": self.tokens.rollout_logprob,
            "correction": self.correction,
            "ref_logprob": self.ref_logprob,
            "kl_coef": self.kl_coef,
            "kl": self.kl,
            "entropy_coef": self.entropy_coef,
            "entropy_aggregation": self.entropy_aggregation,
        }


def check_inputs(
    hidden: Tensor,
    lm_head: Tensor,
    token_ids: Tensor,
    old_logprob: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    *,
    objective: str | Objective,
    aggregation: str | Aggregation,
    totals: StepTotals | None,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    rollout_logprob: Tensor | None,
    correction: str | Correction | None,
    ref_logprob: Tensor | None,
    kl_coef: float,
    kl: str,
    entropy_coef: float,
    entropy_aggregation: str | Aggregation | None,
    cu_seqlens: Tensor | None,
) -> Inputs:
    """Arguments as in `linear_policy_loss`.

    Raises:
        TypeError: an argument that is not a tensor, or of a wrong dtype or kind.
        ValueError: shapes or devices that do not fit, token ids outside the vocabulary (verified on the CPU only), a
            number outside its range, something that needs sequences without `cu_seqlens`.
    """
    chosen, how, bonus, rho = check_terms(
        objective=objective,
        aggregation=aggregation,
        entropy_aggregation=entropy_aggregation,
        correction=correction,
        totals=totals,
        kl_coef=kl_coef,
        kl=kl,
        has_reference=ref_logprob is not None,
        entropy_coef=entropy_coef,
    )
    check_value("temperature", temperature, "(0, inf)")
    if softcap is not None:
        check_value("softcap", softcap, "(0, inf)")
    _check_matrices(hidden, lm_head, token_ids, bias)
    anchor = ("hidden", hidden.device)
    if totals is not None:
        totals.check_device(*anchor)

    layout = Layout.of(token_ids.shape, cu_seqlens, hidden.device)
    per_sequence = isinstance(advantage, Tensor) and advantage.dim() == 1 and len(token_ids.shape) == 2
    if isinstance(advantage, Tensor) and layout.places is not None and advantage.shape == (layout.B,):
        per_sequence = advantage.shape != token_ids.shape  # with as many responses as tokens, both readings are one
    if not layout.sequences:
        _check_needs_no_sequences(token_ids, advantage, chosen, how, rho)
        if kl_coef != 0 and kl in SEQUENCE_KL:
            raise ValueError(f"kl = {kl!r} needs to know where sequences end: pass cu_seqlens [B + 1], got None")
        if bonus is not None and not isinstance(bonus, TokenMean):
            raise ValueError(
                f"the entropy_aggregation {type(bonus).__name__} needs to know where sequences end: pass cu_seqlens "
                "[B + 1], got None"
            )

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
    tokens = TokenBatch(
        torch.zeros(valid.shape, dtype=torch.float64 if exact else torch.float32, device=hidden.device),
        optional("old_logprob", old_logprob),
        advantage if per_sequence else per_token("advantage", advantage, "real"),
        valid,
        rollout_logprob=optional("rollout_logprob", rollout_logprob),
    )
    if rho is not None:
        rho.check(tokens)
    for coefficients in (how, bonus):
        if coefficients is not None:
            coefficients.check(tokens.mask)
    reference = optional("ref_logprob", ref_logprob)
    _check_ids(token_ids, layout.unpad(tokens.mask), len(lm_head))
    return Inputs(
        hidden=hidden.reshape(-1, hidden.shape[-1]),
        lm_head=lm_head,
        bias=bias,
        token_ids=token_ids.reshape(-1).long().contiguous(),
        layout=layout,
        tokens=tokens,
        on_policy=old_logprob is None,
        ref_logprob=None if reference is None else tokens.masked("ref_logprob", reference).detach(),
        objective=chosen,
        aggregation=how,
        totals=totals or StepTotals.of(tokens.mask),
        correction=rho,
        kl_coef=kl_coef,
        kl=kl,
        entropy_coef=entropy_coef,
        entropy_aggregation=bonus,
        temperature=temperature,
        softcap=softcap,
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


def _check_needs_no_sequences(
    token_ids: Tensor, advantage: Tensor, objective: Objective, how: Aggregation, rho: Correction | None
) -> None:
    needs = []
    if "response" in objective.reads:
        needs.append(f"the objective {type(objective).__name__}, whose weights read the whole response,")
    if not isinstance(how, TokenMean):
        needs.append(f"the aggregation {type(how).__name__}")
    if rho is not None and rho.level not in ("none", "token"):
        needs.append(f"the correction {type(rho).__name__} (not of level 'token')")
    if isinstance(advantage, Tensor) and advantage.shape != token_ids.shape:
        needs.append(f"an advantage of shape {tuple(advantage.shape)} for token_ids of {tuple(token_ids.shape)}")
    if needs:
        raise ValueError(f"{', '.join(needs)} needs to know where sequences end: pass cu_seqlens [B + 1], got None")


def _check_ids(token_ids: Tensor, mask: Tensor, vocabulary: int) -> None:
    if token_ids.device.type != "cpu":
        return
    wrong = mask & ((token_ids < 0) | (token_ids >= vocabulary))
    if wrong.any():
        place = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"token_ids{list(place)} = {int(token_ids[place])} at a valid position; expected 0 .. {vocabulary - 1}, as "
            f"lm_head has {vocabulary} rows ({int(wrong.sum())} such tokens)"
        )
