"""Pairs of policies within a generation of a run, and the gradient of each prompt under every method.

The stack trains many members at once; here its members are the prompts. With the same parameters in each, one backward
pass gives the gradient of every prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from engine import Optimised, Setting, adam, drawn, generate, gradient, shape_of
from gradient_moments import Blocks, Moments
from problems import END, Problems
from stacked import Shape, logits, sample
from torch import Tensor

from dgpo import TokenBatch
from dgpo.advantages import group_advantage
from dgpo.aggregation import StepTotals, TokenMean
from dgpo.loss import loss_of
from dgpo.objectives import Objective
from dgpo.objectives import make as objective_of
from dgpo.spec import LossSpec

FRESH_STREAM = 1_000
"""Added to a state's update for the prompts and draws of its gradients, beyond the updates of a run."""


def states(
    setting: Setting, start: Tensor, seeds: list[int], rate: float, olds: Sequence[int], positions: Sequence[int]
) -> dict[tuple[int, int], Tensor]:
    """(update of π_old, updates since) -> parameters [S, size]; 0 updates since is π_old itself.

    A generation begins at every π_old: the one before it ends there, however many of its updates are left.
    """
    shape, state = shape_of(setting.problems), Optimised.start(start)
    gradients, rates = torch.empty_like(start), torch.full((len(seeds),), rate).to(start)
    ends = (*olds, olds[-1] + max(positions))
    found = {}
    while state.update < ends[-1]:
        until = replace(setting, updates=min(end for end in ends if end > state.update))
        for batch in generate(until, shape, state.parameters, seeds, state.update):
            for old in olds:
                if state.update - old in (0, *positions):
                    found[old, state.update - old] = state.parameters.clone()
            gradient(setting, shape, state.parameters, batch, gradients)
            adam(state, gradients, rates, gradients.isfinite().all(1))
            state.update += 1
    return found | {(olds[-1], max(positions)): state.parameters.clone()}


@dataclass(frozen=True)
class Fresh:
    """N prompts with G responses each from π_old: prompts [N, L], responses [N, G, T], the rest [N, G, T] or [N, G]."""

    prompts: Tensor
    responses: Tensor
    mask: Tensor
    old_logprob: Tensor
    advantage: Tensor


def fresh(problems: Problems, shape: Shape, old: Tensor, seed: int, update: int, prompts: int, group: int) -> Fresh:
    """Samples of the policy with parameters `old` [size]."""
    asked, right, uniform = drawn(problems, seed, FRESH_STREAM + update, prompts, group)
    responses, logprob, mask = sample(shape, shape.views(old[None]), asked[None], uniform[None], END)
    reward = (responses[0] == right.unsqueeze(1)).all(-1).to(old.dtype)
    advantage = group_advantage(reward.flatten(), group).view(prompts, group)
    return Fresh(asked, responses[0], mask[0], logprob[0], advantage)


@dataclass(frozen=True)
class Bins:
    """Bins of the ratio, first those of A < 0 and then those of A > 0.

    Attributes:
        edges: ascending log ratios between the bins of one sign.
    """

    edges: Tensor

    def __len__(self) -> int:
        return 2 * (len(self.edges) + 1)

    def of(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bin of every token; -1 where A = 0 or masked."""
        index = torch.bucketize(tokens.log_ratio.detach(), self.edges.to(tokens.log_ratio), right=True)
        index = index + (tokens.advantage > 0) * (len(self.edges) + 1)
        return torch.where(tokens.mask & (tokens.advantage != 0), index, -1)


@dataclass(frozen=True)
class Found:
    """What one pair of policies gives.

    Attributes:
        moments: of the prompts' gradients.
        tokens: [Q] tokens of every bin.
        weights: [objectives, Q] sums of the objectives' weights over the tokens of every bin.
        log_ratio: [Q] sum of the log ratio.
    """

    moments: Moments
    tokens: Tensor
    weights: Tensor
    log_ratio: Tensor


def token_batch(data: Fresh, logprob: Tensor, rows: Tensor | slice) -> TokenBatch:
    """The responses of these prompts as rows, logprob [prompts, G, T]."""
    old, advantage, mask = data.old_logprob[rows], data.advantage[rows], data.mask[rows]
    return TokenBatch(logprob.flatten(0, 1), old.flatten(0, 1), advantage.flatten(), mask.flatten(0, 1))


def logprob_of(shape: Shape, parameters: dict[str, Tensor], prompts: Tensor, responses: Tensor) -> Tensor:
    """[S, P, G, T] of the responses to the prompts [S, P, L] of every member."""
    scores = logits(shape, parameters, prompts, responses).log_softmax(-1)
    return scores.gather(-1, responses.unsqueeze(-1)).squeeze(-1)


def calibrated(objective: Objective, data: Fresh, logprob: Tensor, update: int) -> list[Objective]:
    """The objective of every update of `update` consecutive prompts; the same for all unless it reads its batch."""
    N = len(data.prompts)
    pieces = [slice(i, i + update) for i in range(0, N, update)]
    if "batch" not in objective.reads:
        return [objective] * len(pieces)
    return [objective.calibrate(token_batch(data, logprob[piece], piece)) for piece in pieces]


def gradients(
    shape: Shape,
    flat: Tensor,
    data: Fresh,
    rows: Tensor,
    columns: Sequence[Sequence[Objective]],
    bins: Bins,
    update: int,
) -> Iterator[tuple[int, Tensor]]:
    """Column -> gradients [prompts, size] of the loss of every prompt in `rows`; columns of zeros are left out.

    The loss is the token mean with the mean number of tokens per prompt, so that the mean over all prompts is the
    gradient of the token mean over all.

    Args:
        shape, flat: parameters [size] of π.
        data: from π_old.
        rows: [prompts] indices.
        columns: for every method the objectives of all updates; the bins follow, under importance sampling.
        bins: of the ratio.
        update: prompts of an update.
    """
    copies = flat.expand(len(rows), -1).contiguous()
    leaves = {name: view.detach().requires_grad_() for name, view in shape.views(copies).items()}
    # one member per prompt
    logprob = logprob_of(shape, leaves, data.prompts[rows].unsqueeze(1), data.responses[rows].unsqueeze(1)).squeeze(1)
    tokens = token_batch(data, logprob, rows)
    totals = StepTotals(tokens=data.mask.sum() / len(data.mask), sequences=data.mask.shape[1])
    bin_of = bins.of(tokens)

    def of(objective: Objective, batch: TokenBatch) -> Tensor:
        return loss_of(LossSpec(objective=objective, aggregation=TokenMean()), batch, totals=totals).value

    def flattened(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
        return torch.cat([part.flatten(1) for part in found], 1)

    for index, objectives in enumerate(columns):
        if all(objective is objectives[0] for objective in objectives):
            value = of(objectives[0], tokens)
        else:
            updates = rows // update
            parts = [
                of(objectives[i], token_batch(data, logprob[updates == i], rows[updates == i]))
                for i in updates.unique().tolist()
            ]
            value = torch.stack(parts).sum()
        yield index, flattened(value)
    reference = objective_of("is")
    for index in bin_of.unique().tolist():
        if index >= 0:
            chosen = TokenBatch(tokens.logprob, tokens.old_logprob, tokens.advantage, bin_of == index)
            yield len(columns) + index, flattened(of(reference, chosen))


def measure(
    shape: Shape,
    flat: Tensor,
    data: Fresh,
    methods: Sequence[Objective],
    curves: Sequence[Objective],
    bins: Bins,
    *,
    update: int,
    block: int,
    resamples: int,
    seed: int,
) -> Found:
    """Moments of the gradients under every method, the first being importance sampling, and of every bin.

    Args:
        shape, flat: parameters [size] of π.
        data: N prompts from π_old.
        methods: those whose gradients are computed.
        curves: further objectives, whose mean weights per bin are computed.
        bins: of the ratio.
        update: prompts of an update, which an objective that reads its batch is calibrated on; divides `block`.
        block: prompts of a block of the bootstrap; divides N.
        resamples, seed: of the bootstrap.
    """
    N = len(data.prompts)
    with torch.no_grad():
        logprob = logprob_of(shape, shape.views(flat[None]), data.prompts[None], data.responses[None])[0]
        everything = token_batch(data, logprob, slice(None))
        bin_of = bins.of(everything)
        counted = bin_of >= 0
        columns = [calibrated(objective, data, logprob, update) for objective in methods]

        def summed(values: Tensor) -> Tensor:
            """[Q] sums over the tokens of every bin."""
            return torch.zeros(len(bins), dtype=torch.float64).index_add_(0, bin_of[counted], values[counted].double())

        weights = []
        for column in [*columns, *([curve] for curve in curves)]:
            if all(objective is column[0] for objective in column):
                weights.append(summed(column[0].weight(everything)))
            else:
                pieces = [slice(i * update, (i + 1) * update) for i in range(len(column))]
                batches = [token_batch(data, logprob[piece], piece) for piece in pieces]
                weights.append(summed(torch.cat([o.weight(b) for o, b in zip(column, batches, strict=True)])))
    blocks = Blocks(len(methods), len(bins), N // block, block, shape.size, flat.dtype)
    informative = (data.advantage != 0).any(1)
    for i in range(N // block):
        rows = i * block + informative[i * block : (i + 1) * block].nonzero().squeeze(1)
        if len(rows):
            found = torch.zeros(len(methods) + len(bins), len(rows), shape.size, dtype=flat.dtype)
            for column, values in gradients(shape, flat, data, rows, columns, bins, update):
                found[column] = values
            blocks.add(i, found)
    return Found(
        blocks.moments(resamples, seed),
        summed(torch.ones_like(logprob).flatten(0, 1)),
        torch.stack(weights),
        summed(everything.log_ratio),
    )
