"""Metrics of one optimiser step, over all its micro-batches and ranks, in one read from the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dgpo.objectives import OBJECTIVES
from dgpo.objectives.hard_clip import HardClip
from dgpo.tokens import TokenBatch
from dgpo.training.step_loss import MicroBatchLoss
from dgpo.training.trl_options import WEIGHTS

HARD_CLIPS = tuple(loss for loss, names in WEIGHTS.items() if issubclass(OBJECTIVES[names[0]], HardClip))
"""TRL's `loss_type`s with the clipped surrogate, for which it logs `clip_ratio/...`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Metrics of one micro-batch that are reduced alike.

    Attributes:
        values: name -> 0-d tensor. NaN: nothing to measure here; left out of a minimum and a maximum.
        count: 0-d tensor, what a mean is weighted by: the valid tokens, or responses, that the values stand for.
        how: "mean" over micro-batches and ranks, weighted by `count`; or "sum" over micro-batches and mean over ranks.
    """

    values: Mapping[str, Tensor]
    count: Tensor
    how: Literal["mean", "sum"] = "mean"


class StepMetrics:
    """Collects the metrics of micro-batches and reduces them once per optimiser step.

    Means are weighted by the tokens they stand for, so they do not depend on micro-batches or ranks (the shares `mass/`
    and `weight/ess` are such means of per-micro-batch values). A name that ends in `max` gives the largest of all, one
    that ends in `min` the smallest.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[list[str], str]] = []
        self._rows: list[Tensor] = []

    def add(self, *parts: Part) -> None:
        """The metrics of one micro-batch. All micro-batches of a step have the same parts with the same names."""
        self._parts = [(list(part.values), part.how) for part in parts]
        self._rows.append(
            torch.stack([v.to(torch.float32) for part in parts for v in (part.count, *part.values.values())])
        )

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The metrics of everything added since the last call, on all ranks; every rank must call it.

        NaN for a part without any token: TRL leaves NaN out of the mean that it logs, where a 0 would
        pass for a measurement.
        """
        # [ranks · micro-batches, columns]; sums in float64 on the host
        rows = accelerator.gather(torch.stack(self._rows)).cpu().double()
        self._rows.clear()
        found: dict[str, float] = {}
        widths = [1 + len(names) for names, _ in self._parts]
        for (names, how), part in zip(self._parts, rows.split(widths, 1), strict=True):
            counts, values = part[:, :1], part[:, 1:]
            if how == "sum":
                found |= dict(zip(names, (values.sum(0) / accelerator.num_processes).tolist(), strict=True))
                continue
            count = counts.sum()
            # no token anywhere: NaN in place of a division by 0
            share = counts / torch.where(count > 0, count, torch.nan)
            # a micro-batch without a token has nothing to average, whatever its value is
            mean = (torch.where(counts > 0, values, 0.0) * share).sum(0)
            blank = values.isnan() | (counts == 0)
            for column, name in enumerate(names):
                known = values[~blank[:, column], column].tolist()
                if name.endswith("max"):
                    found[name] = max(known, default=math.nan)
                elif name.endswith("min"):
                    found[name] = min(known, default=math.nan)
                else:
                    found[name] = mean[column].item()
        return found


def parts_of(
    found: MicroBatchLoss,
    *,
    left_out: tuple[Tensor | int, Tensor | int] = (0, 0),
    dropped: float = 0.0,
    computed: int,
    real: int,
    kl: Tensor | None,
    bonus_coef: float | None,
    trl: Mapping[str, Any],
) -> list[Part]:
    """The metrics of one micro-batch.

    Args:
        found: its loss, of the responses that went through the policy.
        left_out: valid tokens, and responses with one, that count to this micro-batch but did not go through the
            policy; all of them have A = 0.
        dropped: their share of the responses of the step.
        computed: positions of the forward pass.
        real: those of them that hold a token.
        kl: [b, T] the KL term of the policy; None without one.
        bonus_coef: of the entropy bonus; None without one.
        trl: TRL's options that give the objective's gradient.
    """
    tokens = found.tokens
    assert tokens.entropy is not None
    count = tokens.mask.sum().to(tokens.dtype)
    everything = count + left_out[0]
    values = {f"objective/{name}": value for name, value in found.out.statistics.items()}
    values["entropy"] = tokens.entropy.sum() / count.clamp(min=1)
    if kl is not None:
        values["kl"] = kl.sum() / count.clamp(min=1)
    # the loss did not see the responses that were left out; the share over all of them is below
    values.pop("objective/advantage/zero_fraction")
    of_all = {
        "objective/advantage/zero_fraction": 1
        - ((tokens.advantage != 0) & tokens.mask).sum() / everything.clamp(min=1),
        "objective/rows_dropped": torch.full_like(count, dropped),
    }
    one = torch.ones_like(count)
    padding = {"objective/padding": torch.full_like(count, 1 - real / computed)}
    parts = [
        Part(values=values, count=count),
        Part(values=of_all, count=everything),
        Part(values=padding, count=torch.full_like(count, computed)),
    ]
    if found.aux_loss is not None:
        parts.append(Part(values={"aux_loss": found.aux_loss}, count=one))
    if bonus_coef is not None:
        # out.value holds the bonus already; TRL's policy_loss is without it
        parts.append(Part(values={"policy_loss": found.out.value + bonus_coef * found.bonus}, count=one, how="sum"))
    responses = tokens.mask.any(-1).sum().to(tokens.dtype) + left_out[1]
    return parts + ratio_parts(trl, found.seen, found.out.weight, everything, responses)


def ratio_parts(
    options: Mapping[str, Any], tokens: TokenBatch, weight: Tensor, all_tokens: Tensor, all_responses: Tensor
) -> list[Part]:
    """What TRL logs about its importance ratios: `clip_ratio/...`, `cispo_clip_ratio` or `vespo/phi_seq_mean`.

    Args:
        options: TRL's options that give the objective's gradient (`Objective.elsewhere`); empty where none do, and then
            there is nothing to log.
        tokens: those that went through the policy.
        weight: [B, T] w of them.
        all_tokens: how many valid tokens there are with those of responses that were left out, which have A = 0.
        all_responses: the same of responses with a valid token.
    """
    loss_type = options.get("loss_type")
    if loss_type == "vespo":
        present = tokens.mask.any(-1)
        mean = _row_mean(weight, tokens.mask)[present].mean()
        return [Part(values={"vespo/phi_seq_mean": mean}, count=present.sum())]
    if loss_type == "cispo":
        # masked tokens have advantage 0 and are clipped nowhere
        clipped = (tokens.ratio > options["epsilon_high"]) & (tokens.advantage > 0)
        return [Part(values={"cispo_clip_ratio": clipped.sum() / all_tokens.clamp(min=1)}, count=all_tokens)]
    if loss_type not in HARD_CLIPS:
        return []
    by_response = options.get("importance_sampling_level") == "sequence"
    ratio = tokens.ratio
    if by_response:
        # [B, 1], compared with masks [B, T] below
        ratio = _row_mean(tokens.log_ratio, tokens.mask).nan_to_num().exp().unsqueeze(1)
    low = (ratio < 1 - options["epsilon"]) & (tokens.advantage < 0) & tokens.mask
    high = (ratio > 1 + options["epsilon_high"]) & (tokens.advantage > 0) & tokens.mask
    kinds = {"low": low, "high": high, "region": low | high}
    rows = {name: _row_mean(kind, tokens.mask) for name, kind in kinds.items()}
    count = all_responses if by_response else all_tokens
    sums = {name: (rows[name].nan_to_num() if by_response else kind).sum() for name, kind in kinds.items()}
    values = {f"clip_ratio/{name}_mean": total / count.clamp(min=1) for name, total in sums.items()}
    # responses that were left out are clipped nowhere
    left_out = torch.where(all_responses > tokens.mask.any(-1).sum(), 0.0, torch.nan).to(weight.dtype).view(1)
    smallest = torch.cat([rows["low"], left_out]).nan_to_num(nan=torch.inf).amin()
    largest = torch.cat([rows["high"], left_out]).nan_to_num(nan=-torch.inf).amax()
    # an infinity stands for no response with a token: back to NaN, which `StepMetrics` leaves out
    values["clip_ratio/low_min"] = torch.where(smallest.isinf(), torch.nan, smallest)
    values["clip_ratio/high_max"] = torch.where(largest.isinf(), torch.nan, largest)
    return [Part(values=values, count=count)]


def _row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B] means over the valid tokens; NaN where a row has none."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1)
