"""Estimators of KL(p ‖ q) from sampled tokens (Schulman, "Approximating KL divergence", 2020).

All take [B, T] log-probs in nats under p and q of tokens **sampled from p**, the first argument, and return [B, T].
k2, k3 and `cut_mass` see the log ratio clamped to ±`MAX_LOG_RATIO`, with the gradient through the clamp kept.

What their expectations over p are, depending on where p and q are 0:

* k1 is unbiased wherever q > 0 on all tokens that p can draw. Where p = 0 does not matter.
* k3 = k1 - (1 - q/p) needs p to cover q as well: the expectation of q/p is 1 less the mass m that q has where p = 0.
  Under a sampler that cuts its tail (top-p, top-k, min-p) k3 is too small by m, which is most of the KL: it
  gives -log(1 - m) - m, about m²/2, instead of -log(1 - m).
* `cut_mass` is the difference, k1 - k3: its expectation is that mass m, and 0 where p covers q.

A loss or metric that treats tokens of a sampler μ as tokens of π_old or π_θ (the KL term, `kl/old`) assumes that they
are the same policy: no estimator here corrects for μ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo.numerics import expm1_minus
from dgpo.registry import did_you_mean
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch

SEQUENCE_ESTIMATORS = ("k3_sequence_ratio",)
"""Estimators that read the whole response."""

ESTIMATORS = ("k2", "k3", "k3_ratio", *SEQUENCE_ESTIMATORS)
"""Estimators that a loss accepts; k1 is not one, as the expectation of its gradient is 0."""


def k1(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """logprob - ref_logprob: unbiased, signed, and noisier than k3.

    Its gradient has expectation 0, so it is a metric and never a loss.
    """
    return logprob - ref_logprob


def k2(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """(logprob - ref_logprob)² / 2: biased value; on-policy its gradient is that of the KL."""
    return 0.5 * _bounded(logprob - ref_logprob).square()


def cut_mass(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """1 - exp(ref_logprob - logprob): in expectation the probability under the reference of what cannot be sampled."""
    return -torch.expm1(_bounded(ref_logprob - logprob))


def k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref_logprob - logprob: >= 0, unbiased if the sampling policy covers the reference.

    Its gradient is not that of the KL.
    """
    return expm1_minus(_bounded(ref_logprob - logprob))


def k3_ratio(logprob: Tensor, ref_logprob: Tensor, old_logprob: Tensor) -> Tensor:
    """r · k3 with r = exp(logprob - old_logprob), both factors differentiated (TRL's `use_bias_correction_kl`)."""
    return _bounded(logprob - old_logprob).exp() * k3(logprob, ref_logprob)


def k3_sequence_ratio(logprob: Tensor, ref_logprob: Tensor, old_logprob: Tensor, mask: Tensor) -> Tensor:
    """s · k3 with s = exp(mean over the response of logprob - old_logprob), both factors differentiated.

    TRL's `use_bias_correction_kl` at `importance_sampling_level="sequence"`. Its gradient is not that of the KL.
    """
    # [B, 1]; where(), as log-probs of padding may be anything here
    log_ratio = torch.where(mask, logprob - old_logprob, 0.0).sum(-1, keepdim=True)
    return _bounded(log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)).exp() * k3(logprob, ref_logprob)


def check_estimator(kl: str) -> None:
    """Raise ValueError unless `kl` is one of `ESTIMATORS`."""
    if kl not in ESTIMATORS:
        raise ValueError(f"unknown kl {kl!r}{did_you_mean(kl, ESTIMATORS)}; known: {', '.join(ESTIMATORS)}")


def reference_kl(tokens: TokenBatch, ref_logprob: Tensor, kl: str) -> Tensor:
    """κ [B, T], the estimator `kl` of KL(π_θ ‖ π_ref), with gradient; 0 where masked.

    Raises:
        ValueError: an unknown estimator, or a `ref_logprob` of another shape or device.
        TypeError: a `ref_logprob` that is not a floating tensor.
    """
    check_estimator(kl)
    reference = tokens.masked("ref_logprob", ref_logprob).detach()
    if kl == "k2":
        return k2(tokens.logprob, reference)
    if kl == "k3":
        return k3(tokens.logprob, reference)
    if kl == "k3_ratio":
        return k3_ratio(tokens.logprob, reference, tokens.old_logprob)
    return k3_sequence_ratio(tokens.logprob, reference, tokens.old_logprob, tokens.mask)


def _bounded(d: Tensor) -> Tensor:
    # straight-through: the value is clamped, the gradient is that of d
    return d + (d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) - d).detach()
