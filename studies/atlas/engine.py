"""Reinforcement learning of many small transformers at once, with the library's objectives, advantages and aggregation.

A member is one run: its parameters, learning rate, prompts and random numbers. Members share products and nothing else.
Random numbers are functions of (seed of the member, update), so that the prompts and draws of an update are the same
for every method, learning rate and number of updates per generation, and a resumed run needs no state of a generator.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from problems import END, VOCABULARY, Problems
from stacked import Shape, logits, sample
from torch import Tensor

from dgpo import TokenBatch, kl
from dgpo.advantages import group_advantage
from dgpo.aggregation import Aggregation, StepTotals, TokenMean
from dgpo.files import write_bytes_atomic
from dgpo.loss import loss_of
from dgpo.objectives import Objective
from dgpo.regions import REGIONS, regions
from dgpo.spec import LossSpec

MAX_GRAD_NORM = 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-8
METRICS = (
    "reward",
    "entropy",
    "grad_norm",
    "kl_old",
    "ess",
    "ratio_ess",
    "largest_weight",
    "informative",
    *(f"fraction/{name}" for name in REGIONS),
    *(f"mass/{name}" for name in REGIONS),
)
"""What is recorded of every update and member; README.md defines them."""
EVALUATED = 128
"""Problems of an evaluation, the same for every member of a task."""
EVALUATION_STREAM = 4_000_000_000
"""Seed of those problems, beyond the seeds of every update and start; torch reads 32 bits of it."""


@dataclass(frozen=True)
class Setting:
    """What all members of a stack have in common.

    Attributes:
        problems: the task.
        objective: the method.
        updates: optimiser steps.
        updates_per_generation: k; every k updates, k mini-batches are sampled from one policy.
        prompts, group: P prompts with G responses make a mini-batch.
        evaluate_every: updates between two evaluations.
    """

    problems: Problems
    objective: Objective
    updates: int = 256
    updates_per_generation: int = 1
    prompts: int = 8
    group: int = 8
    evaluate_every: int = 16


@dataclass
class Optimised:
    """S members and the state of their optimiser.

    Attributes:
        parameters, first, second: [S, size] weights and Adam's moments.
        update: updates done.
    """

    parameters: Tensor
    first: Tensor
    second: Tensor
    update: int

    @classmethod
    def start(cls, parameters: Tensor) -> Optimised:
        """Before the first update."""
        return cls(parameters.clone(), torch.zeros_like(parameters), torch.zeros_like(parameters), 0)


@dataclass
class State(Optimised):
    """A stack of S members after `update` updates of a setting.

    Attributes:
        metrics: [updates, S, len(METRICS)], NaN from `update` on.
        scores: [evaluations, S] mean probability of the right answer; row 0 is the start.
        skipped: [S] updates that were left out because a gradient was not finite.
    """

    metrics: Tensor
    scores: Tensor
    skipped: Tensor

    @classmethod
    def of(cls, setting: Setting, parameters: Tensor) -> State:
        """Before the first update."""
        members = len(parameters)
        return cls(
            **vars(Optimised.start(parameters)),
            metrics=torch.full((setting.updates, members, len(METRICS)), torch.nan),
            scores=torch.full((setting.updates // setting.evaluate_every + 1, members), torch.nan),
            skipped=torch.zeros(members, dtype=torch.long),
        )

    def save(self, path: Path) -> None:
        """Atomically."""
        content = io.BytesIO()
        torch.save(vars(self), content)
        write_bytes_atomic(path, content.getbuffer())

    @classmethod
    def load(cls, path: Path, device: torch.device) -> State:
        """What `save` wrote."""
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("parameters", "first", "second"):
            saved[name] = saved[name].to(device)
        return cls(**saved)


@dataclass(frozen=True, kw_only=True, eq=False)
class PerMember(Aggregation):
    """An aggregation within each member: rows are S equal blocks, and every block is normalised by its own totals."""

    members: int
    within: Aggregation

    def coefficient(self, mask: Tensor, totals: StepTotals, dtype: torch.dtype = torch.float32) -> Tensor:
        blocks = mask.chunk(self.members)
        return torch.cat([self.within.coefficient(block, StepTotals.of(block), dtype) for block in blocks])


@dataclass(frozen=True)
class MiniBatch:
    """Rows of S members: prompts [S, P, L], responses [S, P, G, T], the rest [S·P·G, T] or [S·P·G]."""

    prompts: Tensor
    responses: Tensor
    mask: Tensor
    reward: Tensor
    advantage: Tensor
    old_logprob: Tensor | None


def shape_of(problems: Problems, width: int = 32, layers: int = 2, heads: int = 2) -> Shape:
    """The transformer of the atlas for a task."""
    return Shape(VOCABULARY, width, layers, heads, problems.prompt, problems.response)


def drawn(problems: Problems, seed: int, update: int, prompts: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts [P, L], right answers [P, T] and uniform numbers [P, G, T] of one update of one member."""
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + update)
    asked, right = problems.draw(prompts, generator)
    return asked, right, torch.rand(prompts, group, problems.response, generator=generator)


def evaluation_problems(problems: Problems) -> tuple[Tensor, Tensor]:
    """Prompts [N, L] and right answers [N, T] of every evaluation."""
    return problems.draw(EVALUATED, torch.Generator().manual_seed(EVALUATION_STREAM))


@torch.no_grad()
def answer_probability(shape: Shape, flat: Tensor, prompts: Tensor, right: Tensor) -> Tensor:
    """[S, N] probability of the right answer to each of N prompts, for each member."""
    members = len(flat)
    prompts, right = (t.to(flat.device).expand(members, *t.shape) for t in (prompts, right))
    scores = logits(shape, shape.views(flat), prompts, right.unsqueeze(2)).log_softmax(-1)
    return scores.gather(-1, right[:, :, None, :, None]).squeeze(-1).sum(-1).exp().squeeze(-1)


def generate(setting: Setting, shape: Shape, parameters: Tensor, seeds: list[int], update: int) -> list[MiniBatch]:
    """The mini-batches of the generation that begins at this update, sampled from one policy."""
    k, P, G = setting.updates_per_generation, setting.prompts, setting.group
    views = shape.views(parameters)
    batches = []
    for j in range(min(k, setting.updates - update)):
        # one mini-batch at a time: the same draws in smaller pieces stay in the cache
        parts = [drawn(setting.problems, seed, update + j, P, G) for seed in seeds]
        prompts, right, uniform = (torch.stack(part).to(parameters.device) for part in zip(*parts, strict=True))
        responses, logprob, mask = sample(shape, views, prompts, uniform, END)
        reward = (responses == right.unsqueeze(2)).all(-1).to(parameters.dtype).flatten()
        batches.append(
            MiniBatch(
                prompts,
                responses,
                mask.flatten(0, 2),
                reward,
                group_advantage(reward, G),
                # the policy has not moved before the first mini-batch: None makes every ratio exactly 1
                None if j == 0 else logprob.flatten(0, 2),
            )
        )
    return batches


def spec_of(objective: Objective, members: int) -> LossSpec:
    """Token mean within every member; a method that reads the batch is called for one member at a time."""
    return LossSpec(objective=objective, aggregation=PerMember(members=members, within=TokenMean()))


def gradient(setting: Setting, shape: Shape, parameters: Tensor, batch: MiniBatch, into: Tensor) -> dict[str, Tensor]:
    """Write the gradient of the loss of every member to `into` [S, size]; return its metrics, [S] each."""
    members = len(parameters)
    leaves = {name: view.detach().requires_grad_() for name, view in shape.views(parameters).items()}
    scores = logits(shape, leaves, batch.prompts, batch.responses).log_softmax(-1).flatten(0, 2)
    logprob = scores.gather(-1, batch.responses.flatten(0, 2).unsqueeze(-1)).squeeze(-1)
    tokens = TokenBatch(logprob, batch.old_logprob, batch.advantage, batch.mask)
    if "batch" in setting.objective.reads:
        rows = [slice(i * len(logprob) // members, (i + 1) * len(logprob) // members) for i in range(members)]
        pieces = [
            TokenBatch(
                logprob[row],
                None if batch.old_logprob is None else batch.old_logprob[row],
                batch.advantage[row],
                batch.mask[row],
            )
            for row in rows
        ]
    else:
        pieces = [tokens]
    spec = spec_of(setting.objective, members // len(pieces))
    losses = [loss_of(spec, piece) for piece in pieces]
    torch.stack([loss.value for loss in losses]).sum().backward()
    for name, view in shape.views(into).items():
        found = leaves[name].grad
        assert found is not None
        view.copy_(found)

    with torch.no_grad():
        per_member = (members, -1)
        mask = tokens.mask.view(per_member)
        count = mask.sum(1).clamp(min=1)
        weight = torch.cat([loss.weight for loss in losses])
        size = weight.abs().view(per_member)
        mass = (tokens.advantage * weight).abs().view(per_member)
        entropy = -(scores.exp() * scores).sum(-1)
        groups = batch.advantage.view(members, -1, setting.group)
        ratio = torch.where(mask, tokens.ratio.view(per_member), 0.0)
        metrics = {
            "reward": batch.reward.view(per_member).mean(1),
            "entropy": (entropy.view(per_member) * mask).sum(1) / count,
            "grad_norm": into.norm(dim=1),
            "kl_old": kl.k3(tokens.old_logprob, tokens.logprob).view(per_member).sum(1) / count,
            "ess": _effective_share(size, count),
            "ratio_ess": _effective_share(ratio, count),
            "informative": (groups != 0).any(-1).to(size.dtype).mean(1),
            "largest_weight": size.amax(1),
        }
        found_regions = [regions(piece, setting.objective.calibrate(piece).boundaries(piece)) for piece in pieces]
        for name in REGIONS:
            region = torch.cat([found[name] for found in found_regions]).view(per_member)
            metrics[f"fraction/{name}"] = region.sum(1) / count
            metrics[f"mass/{name}"] = (mass * region).sum(1) / mass.sum(1).clamp(min=torch.finfo(mass.dtype).tiny)
    return metrics


def _effective_share(size: Tensor, count: Tensor) -> Tensor:
    """(Σx)² / (N·Σx²) of every row, as `weight/ess` of `policy_loss`."""
    return size.sum(1).square() / (count * size.square().sum(1)).clamp(min=torch.finfo(size.dtype).tiny)


def adam(state: Optimised, gradients: Tensor, learning_rate: Tensor, usable: Tensor) -> None:
    """One step of Adam without weight decay for the members in `usable` [S], each with its gradient norm clipped."""
    norm = gradients.norm(dim=1, keepdim=True)
    gradients = gradients * (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1)
    step = state.update + 1
    first = state.first.lerp(gradients, 1 - BETAS[0])
    second = state.second * BETAS[1] + (1 - BETAS[1]) * gradients.square()
    root = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    moved = state.parameters - learning_rate[:, None] * (first / (1 - BETAS[0] ** step)) / root
    if bool(usable.all()):
        state.first, state.second, state.parameters = first, second, moved
        return
    keep = usable[:, None]
    state.first = torch.where(keep, first, state.first)
    state.second = torch.where(keep, second, state.second)
    state.parameters = torch.where(keep, moved, state.parameters)


def train(
    setting: Setting,
    shape: Shape,
    start: Tensor,
    seeds: list[int],
    learning_rate: Tensor,
    checkpoint: Path | None = None,
    save_every: int = 128,
) -> State:
    """Train S members.

    Args:
        setting: task, method and sizes.
        shape: of one member.
        start: [S, size] parameters; their dtype and device are those of the run.
        seeds: of the members' prompts and draws.
        learning_rate: [S], constant.
        checkpoint: a file that is written every `save_every` updates, at the end of a generation, and resumed from.
        save_every: a multiple of the updates per generation.

    Returns:
        The state after the last update.
    """
    if checkpoint is not None and checkpoint.exists():
        state = State.load(checkpoint, start.device)
    else:
        state = State.of(setting, start)
    asked, right = evaluation_problems(setting.problems)
    rate = learning_rate.to(start)
    gradients = torch.empty_like(start)

    def evaluate() -> None:
        found = answer_probability(shape, state.parameters, asked, right).mean(1)
        state.scores[state.update // setting.evaluate_every] = found.cpu()

    if state.update == 0:
        evaluate()
    while state.update < setting.updates:
        for batch in generate(setting, shape, state.parameters, seeds, state.update):
            metrics = gradient(setting, shape, state.parameters, batch, gradients)
            usable = gradients.isfinite().all(1)
            adam(state, gradients, rate, usable)
            state.metrics[state.update] = torch.stack([metrics[name] for name in METRICS], -1).cpu()
            state.skipped += (~usable).cpu()
            state.update += 1
            if state.update % setting.evaluate_every == 0:
                evaluate()
        if checkpoint is not None and state.update % save_every == 0:
            state.save(checkpoint)
    return state
