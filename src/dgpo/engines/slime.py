"""slime: any objective as its custom loss. Read at THUDM/slime@624b824a (0.3.1, 2026-08-21).

::

    --loss-type custom_loss --custom-loss-function-path dgpo.engines.slime.policy_loss_function
    --custom-config-path dgpo.yaml

with a file dgpo.yaml of two lines::

    dgpo_objective: dgpo
    dgpo_objective_kwargs: {n: 2, m: 2}

Log-probs, entropy bonus and KL term are slime's own functions and flags; `--use-tis --tis-clip C` is the correction
`Truncate(cap=C)`, and `--use-rollout-logprobs` the anchor "rollout".

miles and vime descend from slime and call a custom loss as it does: `dgpo.engines.miles` and `dgpo.engines.vime`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dgpo import policy_loss
from dgpo.aggregation import Fixed
from dgpo.correction import Truncate
from dgpo.engines.common import fixed_objective, refuse_ignored
from dgpo.objectives import Objective

Reducer = Callable[[Tensor], Tensor]

IGNORED = {
    "eps_clip": 0.2,
    "eps_clip_high": 0.2,
    "eps_clip_c": None,
    "use_opsm": False,
    "get_mismatch_metrics": False,
    "tis_clip_low": 0,
    "custom_tis_function_path": None,
    "custom_pg_loss_reducer_function_path": None,
}
"""Flags of slime's own policy loss that nothing here reads, with their defaults."""

LOSSES = ("gspo", "cispo")


@dataclass(frozen=True, kw_only=True)
class Family:
    """slime, or an engine that descends from it: what its custom losses call, under the engine's own names.

    Attributes:
        name: of the engine, for messages.
        scores: (logits, args, batch) -> "log_probs" and "entropy", a list of [t] for the responses of the micro-batch.
        kl: its `compute_approx_kl`.
    """

    name: str
    scores: Callable[[Tensor, Namespace, dict[str, Any]], dict[str, list[Tensor]]]
    kl: Callable[..., Tensor]


def policy_loss_function(
    args: Namespace, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Reducer
) -> tuple[Tensor, dict[str, Tensor]]:
    """slime's policy loss with w of any objective, in its signature.

    A reducer of slime is linear, so its derivative is the coefficient c of every token, and whatever it divides by
    (per rollout, per token, a part of a sequence under context parallelism) is kept exactly.

    Args:
        args: slime's, with `dgpo_objective` and optionally `dgpo_objective_kwargs`.
        batch: one micro-batch: lists with one entry per response of `unconcat_tokens`, `total_lengths`,
            `response_lengths`, `advantages`, `log_probs`, `loss_masks`, and what the flags need.
        logits: [1, T, V], float32.
        sum_of_sample_mean: all response tokens, concatenated -> scalar.

    Returns:
        The loss, and what is logged, each entry scaled as slime's own, so that its division gives the mean.

    Raises:
        ValueError: no `dgpo_objective`; a flag of slime that would have no effect; an adaptive objective; one that
            reads the whole response, under context parallelism.
    """
    from slime.backends.megatron_utils.loss import get_log_probs_and_entropy, get_rollout_top_p_logprob_kwargs
    from slime.utils.ppo_utils import compute_approx_kl

    def scores(logits: Tensor, args: Namespace, batch: dict[str, Any]) -> dict[str, list[Tensor]]:
        given = lengths_of(batch) | get_rollout_top_p_logprob_kwargs(args, batch)
        found: dict[str, list[Tensor]] = get_log_probs_and_entropy(logits, args=args, with_entropy=True, **given)[1]
        return found

    return loss_of(Family(name="slime", scores=scores, kl=compute_approx_kl), args, batch, logits, sum_of_sample_mean)


def lengths_of(batch: dict[str, Any]) -> dict[str, Any]:
    """What `get_log_probs_and_entropy` takes of a micro-batch, in slime and its descendants."""
    return {name: batch[name] for name in ("unconcat_tokens", "total_lengths", "response_lengths")}


def loss_of(
    family: Family, args: Namespace, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Reducer
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss_function`, for slime or an engine that descends from it."""
    objective = _objective(family.name, args)
    found = family.scores(logits, args, batch)
    logprob = found["log_probs"]
    if "response" in objective.reads and [len(part) for part in logprob] != list(batch["response_lengths"]):
        raise ValueError(
            f"{family.name}: the weight of {args.dgpo_objective!r} reads the whole response, but context parallelism "
            "leaves only parts of it on this rank; use --context-parallel-size 1 or an objective at token level"
        )
    old = (batch["rollout_log_probs"] if args.use_rollout_logprobs else batch.get("log_probs")) or [
        part.detach() for part in logprob
    ]
    sampler = batch.get("rollout_log_probs")
    c = _coefficients(sum_of_sample_mean, logprob)
    result = policy_loss(
        _rows(logprob),
        _rows(old),
        _rows(batch["advantages"]),
        # c is 0 for padding and for what slime's loss mask leaves out
        _rows(c) != 0,
        objective,
        Fixed(values=_rows(c)),
        rollout_logprob=_rows(sampler) if sampler else None,
        entropy=_rows(found["entropy"]),
        correction=Truncate(cap=args.tis_clip) if args.use_tis else None,
    )
    entropy = sum_of_sample_mean(torch.cat(found["entropy"]))
    loss = result.value - args.entropy_coef * entropy
    logged = {"pg_loss": result.value, "entropy_loss": entropy}
    if args.use_kl_loss:
        logged["kl_loss"] = sum_of_sample_mean(_reference_kl(family, args, logprob, old, batch["ref_log_probs"]))
        loss = loss + args.kl_loss_coef * logged["kl_loss"]
    if not sum(map(len, logprob)):
        loss = loss + 0 * logits.sum()  # a rank without tokens must still take part in the backward pass
    # slime divides what is logged afterwards: a mean enters times its micro-batch's sum of c
    share = torch.cat(c).sum()
    logged |= {"loss": loss} | {f"objective/{key}": value * share for key, value in result.statistics.items()}
    return loss, {key: value.detach() for key, value in logged.items()}


def _objective(engine: str, args: Namespace) -> Objective:
    if not hasattr(args, "dgpo_objective"):
        raise ValueError(f"{engine}: args has no dgpo_objective; set it in the file of --custom-config-path")
    # eps_clip_high is set to eps_clip where it was not given
    refuse_ignored(
        engine,
        # an engine without such a flag has nothing to ignore
        {key: getattr(args, key, default) for key, default in IGNORED.items()},
        IGNORED,
        "Set dgpo_objective and dgpo_objective_kwargs in the file of --custom-config-path",
    )
    if args.advantage_estimator in LOSSES:
        raise ValueError(
            f"{engine}: --advantage-estimator {args.advantage_estimator} also selects {engine}'s loss, which has no "
            "effect here; use grpo, which computes the same advantages"
        )
    if args.use_tis and args.use_rollout_logprobs:
        raise ValueError(
            f"{engine}: --use-rollout-logprobs takes the ratio against the sampler, so that --use-tis would count the "
            "same difference twice; set one of them"
        )
    return fixed_objective(engine, args.dgpo_objective, getattr(args, "dgpo_objective_kwargs", None), entropy=True)


def _coefficients(reduce: Reducer, like: Sequence[Tensor]) -> list[Tensor]:
    flat = torch.zeros_like(torch.cat(list(like)), requires_grad=True)
    # under --recompute-loss-function the hooks of the checkpoint would compute the whole loss a second time for this
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
        (c,) = torch.autograd.grad(reduce(flat), flat)
    return list(c.split([len(part) for part in like]))


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """[B, T] of B responses of several lengths, padded with 0."""
    return pad_sequence(list(parts), batch_first=True)


def _reference_kl(
    family: Family, args: Namespace, logprob: list[Tensor], old: list[Tensor], reference: list[Tensor]
) -> Tensor:
    new = torch.cat(logprob)
    ratio = (new - torch.cat(old)).exp() if args.use_unbiased_kl else None
    return family.kl(new, torch.cat(reference), kl_loss_type=args.kl_loss_type, importance_ratio=ratio)
