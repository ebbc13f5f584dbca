"""Batches as verl's workers have them, its configuration with our overrides, and what its loss has to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from dgpo import TokenBatch, objectives
from dgpo.engines.verl_overrides import overrides

PROMPTS = (3, 1, 4, 2, 2, 5, 1, 3)
LENGTHS = (5, 3, 7, 1, 4, 6, 2, 7)
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
SCALE = 9
"""loss_scale_factor"""


@dataclass(frozen=True)
class Batch:
    """[B, T] each, padded on the right. Rows may have masked tokens inside, and one has nothing but those."""

    logprob: Tensor
    old_logprob: Tensor
    advantage: Tensor
    mask: Tensor
    rho: Tensor

    def rows(self, which: Sequence[int]) -> Batch:
        return Batch(*(getattr(self, name)[list(which)] for name in self.__dataclass_fields__))


def make_batch(dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(7)
    shape = (len(LENGTHS), max(LENGTHS))
    old = -torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 0.05
    logprob = (old + 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(max=-0.01)
    advantage = torch.randn((shape[0], 1), generator=generator, dtype=torch.float64).expand(shape).clone()
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    mask[2, 2:4] = False  # what a tool said
    mask[6] = False  # rejected by the rollout correction
    rho = torch.rand(shape, generator=generator, dtype=torch.float64) * 2
    return Batch(*(t.to(dtype) for t in (logprob, old, advantage)), mask, rho.to(dtype))


@cache
def actor_config(*extra: str, objective: str = "dgpo", trainer: str = "ppo_trainer", **fields: Any) -> Any:
    """The actor's configuration: verl's own, composed with our overrides by hydra, built as its workers build it.

    Composing takes a third of a second; all that `ppo_loss` changes in it is `global_batch_info`, which it sets again.
    """
    config = compose_config(*overrides(objective, fields), *extra, trainer=trainer)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def compose_config(*lines: str, trainer: str = "ppo_trainer") -> Any:
    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    with initialize_config_dir(folder, version_base=None):
        return compose(trainer, overrides=["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2", *lines])


def run_ppo_loss(
    config: Any,
    batch: Batch,
    which: Sequence[int],
    *,
    dp_size: int = 1,
    totals: bool = True,
    weights: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """verl's `ppo_loss` forward and backward on some rows; value, gradient by logprob [B, T] of all rows, metrics."""
    leaf = batch.logprob.clone().requires_grad_()
    # the model gives one value per position, of the token after it
    flat = torch.cat(
        [torch.cat([leaf.new_zeros(PROMPTS[i] - 1), leaf[i, : LENGTHS[i]], leaf.new_zeros(1)]) for i in which]
    )
    offsets = torch.tensor([0, *[PROMPTS[i] + LENGTHS[i] for i in which]]).cumsum(0)

    def nested(values: Tensor) -> Tensor:
        return torch.nested.as_nested_tensor([values[i, : LENGTHS[i]] for i in which], layout=torch.jagged)

    tokens = {
        "prompts": torch.nested.as_nested_tensor([torch.zeros(PROMPTS[i]) for i in which], layout=torch.jagged),
        "responses": nested(torch.zeros(batch.mask.shape)),
        "response_mask": nested(batch.mask.long()),
        "old_log_probs": nested(batch.old_logprob),
        "advantages": nested(batch.advantage),
    }
    if weights:
        tokens["rollout_is_weights"] = nested(batch.rho)
    data = TensorDict(tokens, batch_size=[len(which)])
    tu.assign_non_tensor(
        data,
        dp_size=dp_size,
        batch_num_tokens=int(batch.mask.sum()) if totals else None,
        global_batch_size=len(batch.mask) if totals else None,
    )
    output = {"log_probs": torch.nested.nested_tensor_from_jagged(flat, offsets)}
    value, metrics = ppo_loss(config, output, data)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad, metrics


def expected(
    batch: Batch, name: str, mode: str = "token-mean", dp_size: int = 1, weights: bool = False, **fields: Any
) -> tuple[Tensor, Tensor]:
    """Value and gradient by the formulas: Σ cρ(κ - Aφ) and cρ(dκ/dlogprob - Aw) with c of every mode of verl."""
    tokens = TokenBatch(batch.logprob, batch.old_logprob, batch.advantage, batch.mask)
    objective = objectives.make(name, **fields).calibrate(tokens)
    ones = torch.ones_like(batch.logprob)
    lengths = batch.mask.sum(-1, keepdim=True).clamp(min=1)
    count = {
        "token-mean": ones * batch.mask.sum(),
        "token-sum": ones,
        "seq-mean-token-sum": ones * len(batch.mask),
        "seq-mean-token-sum-norm": ones * len(batch.mask) * SCALE,
        "seq-mean-token-mean": ones * len(batch.mask) * lengths,
    }[mode]
    scale = dp_size * batch.mask / count * (batch.rho if weights else 1)
    kappa, slope = objective.penalty(tokens) if objective.penalises else (torch.zeros(()), torch.zeros(()))
    value = scale * (kappa - tokens.advantage * objective.potential(tokens))
    return value.sum(), scale * (slope - tokens.advantage * objective.weight(tokens))
