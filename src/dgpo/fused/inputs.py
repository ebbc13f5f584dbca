"""The arguments of `linear_policy_loss`, checked once, with everything per token as [B, T]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo import aggregation as aggregations
from dgpo import correction as corrections
from dgpo import objectives
from dgpo.aggregation import Aggregation, StepTotals, TokenMean
from dgpo.correction import Correction
from dgpo.fused.layout import Layout
from dgpo.loss import SEQUENCE_KL
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
        return self.objective.reads_response or (self.kl_coef != 0 and self.kl in SEQUENCE_KL)

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
    _check_matrices(hidden, lm_head, token_ids, bias)
    _check_positive("temperature", temperature)
    if softcap is not None:
        _check_positive("softcap", softcap)
    chosen = _resolved("objective", objective, objectives.make, Objective)
    how = _resolved("aggregation", aggregation, aggregations.make, Aggregation)
    rho = None if correction is None else _resolved("correction", correction, corrections.make, Correction)
    bonus = entropy_aggregation
    bonus = None if bonus is None else _resolved("entropy_aggregation", bonus, aggregations.make, Aggregation)
    if totals is not None and not isinstance(totals, StepTotals):
        raise TypeError(f"totals is {totals!r}; expected a StepTotals or None")
    if kl_coef != 0 and ref_logprob is None:
        raise ValueError("kl_coef != 0 needs ref_logprob, of the shape of token_ids, got None")

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

    def per_token(name: str, values: Tensor) -> Tensor:
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} is a {type(values).__name__}; expected a torch.Tensor")
        if values.shape != token_ids.shape:
            either = f" or [{layout.B}] (one per response)" if name == "advantage" and layout.sequences else ""
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; expected {tuple(token_ids.shape)}, the shape of token_ids"
                f"{either}"
            )
        if values.device != hidden.device:
            raise ValueError(f"{name} is on {values.device}; expected {hidden.device}, the device of hidden")
        return layout.pad(values)

    def optional(name: str, values: Tensor | None) -> Tensor | None:
        return None if values is None else per_token(name, values)

    exact = hidden.dtype == torch.float64  # which autocast leaves alone
    valid = per_token("mask", mask)
    tokens = TokenBatch(
        torch.zeros(valid.shape, dtype=torch.float64 if exact else torch.float32, device=hidden.device),
        optional("old_logprob", old_logprob),
        advantage if per_sequence else per_token("advantage", advantage),
        valid,
        rollout_logprob=optional("rollout_logprob", rollout_logprob),
    )
    _check_ids(token_ids, layout.unpad(tokens.mask), len(lm_head))
    return Inputs(
        hidden=hidden.reshape(-1, hidden.shape[-1]),
        lm_head=lm_head,
        bias=bias,
        token_ids=token_ids.reshape(-1).long(),
        layout=layout,
        tokens=tokens,
        on_policy=old_logprob is None,
        ref_logprob=optional("ref_logprob", ref_logprob),
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


def _resolved(name: str, value: Any, make: Any, kind: type) -> Any:
    resolved = make(value) if isinstance(value, str) else value
    if not isinstance(resolved, kind):
        raise TypeError(f"{name} is {value!r}; expected a name or an instance of {kind.__name__}")
    return resolved


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value!r} is not allowed; expected a finite number > 0")


def _check_matrices(hidden: Tensor, lm_head: Tensor, token_ids: Tensor, bias: Tensor | None) -> None:
    given = {"hidden": hidden, "lm_head": lm_head, "token_ids": token_ids} | ({} if bias is None else {"bias": bias})
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
        if value.device != hidden.device:
            raise ValueError(f"{name} is on {value.device}; expected {hidden.device}, the device of hidden")
        if name != "token_ids" and not value.is_floating_point():
            raise TypeError(f"{name} has dtype {value.dtype}; expected a floating dtype")
    if hidden.dim() not in (2, 3):
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected [B, T, H], or packed [N, H]")
    if lm_head.dim() != 2 or lm_head.shape[1] != hidden.shape[-1] or len(lm_head) == 0:
        raise ValueError(
            f"lm_head has shape {tuple(lm_head.shape)}; expected [V, H] with V >= 1 and H = {hidden.shape[-1]}, as "
            f"hidden has shape {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != lm_head.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected [V] = [{len(lm_head)}]")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"token_ids has dtype {token_ids.dtype}; expected int64 or int32")
    if token_ids.shape != hidden.shape[:-1]:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}; expected {tuple(hidden.shape[:-1])}, as hidden has shape "
            f"{tuple(hidden.shape)}"
        )
    if lm_head.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise TypeError(
            f"hidden has dtype {hidden.dtype} and lm_head {lm_head.dtype}; expected one dtype, or torch.autocast"
        )


def _check_needs_no_sequences(
    token_ids: Tensor, advantage: Tensor, objective: Objective, how: Aggregation, rho: Correction | None
) -> None:
    needs = []
    if objective.reads_response:
        needs.append(f"the objective {type(objective).__name__}, whose weights read the whole response,")
    if not isinstance(how, TokenMean):
        needs.append(f"the aggregation {type(how).__name__}")
    if rho is not None and not isinstance(rho, corrections.Given) and getattr(rho, "level", None) != "token":
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
