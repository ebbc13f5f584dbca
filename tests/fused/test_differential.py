"""Any combination of options on any small batch: both losses against the sum over tokens, written out.

Masks of every kind, rows without a token, batches of one token, advantages of 0, log ratios far beyond every boundary.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dgpo
from dgpo import TokenBatch, objectives
from dgpo.aggregation import StepTotals
from dgpo.correction import Band, Truncate
from dgpo.objectives import OBJECTIVES, Penalty

V, H = 7, 3
F = torch.float64


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """A batch with logits of its own, and a choice of every option."""
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=F)

    bits = draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T))
    mask = torch.tensor(bits).view(B, T)
    hidden, lm_head = normal(B, T, H), normal(V, H, scale=draw(st.sampled_from([0.1, 1.0, 4.0])))
    token_ids = torch.randint(0, V, (B, T), generator=generator)
    logp = (hidden @ lm_head.T).log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))

    def near() -> Tensor:
        return (logp + normal(B, T, scale=spread)).clamp(max=-1e-6)

    values = st.sampled_from([0.0, 1.0, -1.0, 0.3, -2.5])
    per_token = draw(st.booleans())
    count = B * T if per_token else B
    advantage = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=F)
    return {
        "hidden": hidden.requires_grad_(),
        "lm_head": lm_head.requires_grad_(),
        "token_ids": token_ids.masked_fill(~mask, -1),
        "old_logprob": near() if draw(st.booleans()) else None,
        "advantage": advantage.view(B, T) if per_token else advantage,
        "mask": mask,
        "rollout_logprob": near(),
        "ref_logprob": near(),
        "objective": objectives.make(draw(st.sampled_from(list(OBJECTIVES)))),
        "aggregation": draw(st.sampled_from(["token-mean", "seq-mean-token-mean", "length"])),
        "totals": draw(st.sampled_from([None, StepTotals(tokens=11.0, sequences=torch.tensor(3.5))])),
        "correction": draw(
            st.sampled_from([None, Truncate(), Truncate(level="sequence"), Band(), Band(level="sequence")])
        ),
        "kl": draw(st.sampled_from(["k2", "k3", "k3_ratio", "k3_sequence_ratio"])),
        "kl_coef": draw(st.sampled_from([0.0, 0.3])),
        "entropy_coef": draw(st.sampled_from([0.0, 0.2, -0.2])),
        "entropy_aggregation": draw(st.sampled_from([None, "token-mean"])),
    }


def coefficients(how: str, mask: Tensor, totals: StepTotals | None) -> list[list[float]]:
    lengths = mask.sum(1).tolist()
    tokens = max(sum(lengths), 1) if totals is None else float(totals.tokens)
    rows = max(sum(n > 0 for n in lengths), 1) if totals is None else float(totals.sequences)
    each = {"token-mean": lambda n: 1 / tokens, "seq-mean-token-mean": lambda n: 1 / (n * rows)}
    return [[each.get(how, lambda n: 1 / (9.0 * rows))(n) if n else 0.0] * mask.shape[1] for n in lengths]


def clamped(d: Tensor) -> Tensor:
    """±20 in value, with the gradient of d."""
    return d + (d.clamp(-20, 20) - d).detach()


def written_out(given: dict[str, Any], logprob: Tensor, entropy: Tensor) -> Tensor:
    """The docstring of `policy_loss`, token by token. w and φ are the class's, whose formulas have their own test."""
    mask, (B, T) = given["mask"], given["mask"].shape
    old = logprob.detach() if given["old_logprob"] is None else given["old_logprob"]
    A = given["advantage"].view(B, -1).expand(B, T)
    tokens = TokenBatch(logprob.detach(), old, A, mask, entropy=entropy.detach())
    objective = given["objective"].calibrate(tokens)
    w, phi = objective.weight(tokens), objective.potential(tokens)
    pull = objective.penalty(tokens) if objective.penalises else Penalty.quadratic(tokens, 0.0)
    c = coefficients(given["aggregation"], mask, given["totals"])
    c_entropy = coefficients(given["entropy_aggregation"] or given["aggregation"], mask, given["totals"])
    rho, total = given["correction"], torch.zeros((), dtype=F)
    for b in range(B):
        valid = [t for t in range(T) if mask[b, t]]
        gap = {t: float(old[b, t] - given["rollout_logprob"][b, t]) for t in valid}
        moved = clamped(sum((logprob[b, t] - old[b, t] for t in valid), torch.zeros((), dtype=F)) / max(len(valid), 1))
        for t in valid:
            factor = 1.0
            if rho is not None:
                log = sum(gap.values()) if rho.level == "sequence" else gap[t]
                factor = math.exp(max(-20.0, min(20.0, log)))
                factor = min(factor, rho.cap) if isinstance(rho, Truncate) else factor * (0.5 <= factor <= 2)
            x = logprob[b, t]
            total = total - c[b][t] * factor * A[b, t] * (phi[b, t] + w[b, t] * ((x - x.detach()).exp() - 1))
            total = total + c[b][t] * factor * (pull.value[b, t] + pull.slope[b, t] * ((x - x.detach()).exp() - 1))
            d = clamped(given["ref_logprob"][b, t] - x)
            kappa = d**2 / 2 if given["kl"] == "k2" else d.exp() - 1 - d
            if given["kl"] == "k3_ratio":
                kappa = clamped(x - old[b, t]).exp() * kappa
            if given["kl"] == "k3_sequence_ratio":
                kappa = moved.exp() * kappa
            total = total + given["kl_coef"] * c[b][t] * kappa - given["entropy_coef"] * c_entropy[b][t] * entropy[b, t]
    return total


@settings(max_examples=60, deadline=None)
@given(given=problems(), chunk=st.integers(1, 6), full=st.booleans())
def test_both_losses_against_the_sum_over_tokens(given: dict[str, Any], chunk: int, full: bool) -> None:
    leaves = [given["hidden"], given["lm_head"]]
    logp = (leaves[0] @ leaves[1].T).log_softmax(-1)
    ids = given["token_ids"].clamp(min=0)
    logprob, entropy = logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)
    truth = written_out(given, logprob, entropy)
    wanted = (
        torch.autograd.grad(truth, leaves, allow_unused=True, retain_graph=True)
        if truth.requires_grad
        else (None, None)
    )
    expected = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(wanted, leaves, strict=True)]
    size = max(1.0, truth.abs().item(), *(g.abs().max().item() for g in expected))

    options = {key: value for key, value in given.items() if key not in ("hidden", "lm_head", "token_ids")}
    if options["aggregation"] == "length":
        options["aggregation"] = dgpo.aggregation.make("seq-mean-token-sum-norm", length=9.0)
    fused = {**options, **{key: given[key] for key in ("hidden", "lm_head", "token_ids")}, "chunk_tokens": chunk}
    found = {
        "policy_loss": dgpo.policy_loss(logprob, entropy=entropy, **options),
        "reference": dgpo.linear_policy_loss(**fused, backend="reference"),
        "chunked": dgpo.linear_policy_loss(**fused, backend="chunked", statistics="full" if full else "computed"),
    }
    for name, out in found.items():
        torch.testing.assert_close(out.value, truth, rtol=1e-9, atol=1e-11 * size, msg=name)
        assert all(value.isfinite() for value in out.statistics.values()), name
        gradients = torch.autograd.grad(out.value, leaves, retain_graph=True)
        for gradient, exact in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-10 * size, msg=name)


@pytest.mark.soak
@settings(max_examples=3000, deadline=None)
@given(given=problems(), chunk=st.integers(1, 6), full=st.booleans())
def test_many_of_them(given: dict[str, Any], chunk: int, full: bool) -> None:
    test_both_losses_against_the_sum_over_tokens.hypothesis.inner_test(given, chunk, full)  # type: ignore[attr-defined]
