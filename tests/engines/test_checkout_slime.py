"""The loss for slime in slime's own `loss_function`, beside slime's policy loss, from a checkout of 624b824a (0.3.1).

    git clone https://github.com/THUDM/slime && git -C slime checkout 624b824a
    DGPO_SLIME=slime pytest tests/engines/test_checkout_slime.py

slime needs Megatron: the groups of its parallelism are stood in for, and so are two modules that import the rest of it.
Everything that computes is slime's.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo import objectives

CHECKOUT = os.environ.get("DGPO_SLIME")
if CHECKOUT is None:
    pytest.skip("needs slime, which is on no package index: DGPO_SLIME=a checkout", allow_module_level=True)

PROMPTS, RESPONSES, V = (2, 1, 3), (6, 3, 9), 11
TOTALS = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
RANKS = [(1, 0), (2, 0), (2, 1)]
"""Context parallelism: size, rank."""


def load_function(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def flags(**changed: Any) -> Namespace:
    defaults = {
        "advantage_estimator": "grpo",
        "allgather_cp": False,
        "calculate_per_token_loss": False,
        "custom_loss_function_path": "dgpo.engines.slime.policy_loss_function",
        "custom_pg_loss_reducer_function_path": None,
        "custom_tis_function_path": None,
        "dgpo_objective": "grpo",
        "dgpo_objective_kwargs": {"dual_clip": None},
        "entropy_coef": 0.0,
        "eps_clip": 0.2,
        "eps_clip_c": None,
        "eps_clip_high": 0.2,
        "get_mismatch_metrics": False,
        "kl_loss_coef": 0.0,
        "kl_loss_type": "low_var_kl",
        "log_probs_chunk_size": -1,
        "loss_type": "policy_loss",
        "qkv_format": "thd",
        "recompute_loss_function": False,
        "rollout_temperature": 0.8,
        "rollout_top_p": 1.0,
        "tis_clip": 1.3,
        "tis_clip_low": 0,
        "use_kl_loss": False,
        "use_opsm": False,
        "use_rollout_logprobs": False,
        "use_tis": False,
        "use_unbiased_kl": False,
    }
    return Namespace(**defaults | changed)


class Slime:
    """slime's two modules on one rank, and a micro-batch for it."""

    def __init__(self, loss: ModuleType, cut: Any, size: int) -> None:
        self.loss, self.cut, self.size = loss, cut, size
        generator = torch.Generator().manual_seed(3)
        self.tokens = [torch.randint(V, (total,), generator=generator) for total in TOTALS]
        old, other, reference = ([-3 * torch.rand(n, generator=generator) - 0.2 for n in RESPONSES] for _ in range(3))
        self.logprobs = {
            "advantages": [torch.full((n,), A) for n, A in zip(RESPONSES, (1.2, -0.7, 0.4), strict=True)],
            "log_probs": old,
            "rollout_log_probs": [(x + 0.3 * y).clamp(max=-1e-3) for x, y in zip(old, other, strict=True)],
            "ref_log_probs": reference,
        }
        # a packed rank has its two chunks of every sequence, padded
        self.length = sum(TOTALS) if size == 1 else sum(2 * -(-total // (2 * size)) for total in TOTALS)

    def run(self, args: Namespace) -> tuple[float, Tensor, dict[str, float]]:
        """Value, gradient by the logits, and what is logged."""
        masks = [torch.ones(n, dtype=torch.int) for n in RESPONSES]
        masks[2][1] = 0
        batch = {name: self.mine(values) for name, values in self.logprobs.items()} | {
            "unconcat_tokens": self.tokens,
            "total_lengths": TOTALS,
            "response_lengths": list(RESPONSES),
            "loss_masks": masks,
            "rollout_mask_sums": [torch.tensor(n) for n in (6.0, 11.0, 11.0)],
        }
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(1, self.length, V, generator=generator, requires_grad=True)
        loss, _, logged = self.loss.loss_function(args, batch, 2, 4, logits)
        loss.backward()
        assert logits.grad is not None
        return loss.item(), logits.grad, dict(zip(logged["keys"], logged["values"][1:].tolist(), strict=True))

    def mine(self, values: list[Tensor]) -> list[Tensor]:
        if self.size == 1:
            return values
        return [self.cut(*one) for one in zip(values, TOTALS, RESPONSES, strict=True)]


@pytest.fixture(params=RANKS, ids=["whole", "rank 0 of 2", "rank 1 of 2"])
def slime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slime]:
    size, rank = request.param
    folder = Path(CHECKOUT)
    mpu = SimpleNamespace(
        get_context_parallel_world_size=lambda: size,
        get_context_parallel_rank=lambda: rank,
        get_tensor_model_parallel_group=lambda: None,
        get_tensor_model_parallel_rank=lambda: 0,
        get_data_parallel_world_size=lambda with_context_parallel=True: size,
    )
    # slime/backends/megatron_utils/__init__.py and slime/utils/{misc,types}.py import all of Megatron, Ray and sglang
    contents: dict[str, dict[str, Any]] = {
        "megatron": {},
        "megatron.core": {"mpu": mpu},
        "slime": {"__path__": [str(folder / "slime")]},
        "slime.backends": {"__path__": [str(folder / "slime/backends")]},
        "slime.backends.megatron_utils": {"__path__": [str(folder / "slime/backends/megatron_utils")]},
        "slime.utils": {"__path__": [str(folder / "slime/utils")]},
        "slime.utils.misc": {"load_function": load_function},
        "slime.utils.types": {"RolloutBatch": dict},
    }
    before = dict(sys.modules)
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update({"__path__": []} | content)
        monkeypatch.setitem(sys.modules, name, module)
    loss = importlib.import_module("slime.backends.megatron_utils.loss")
    cut = importlib.import_module("slime.backends.megatron_utils.cp_utils").slice_log_prob_with_cp
    yield Slime(loss, cut, size)
    for name in set(sys.modules) - set(before):
        if name.startswith("slime."):
            del sys.modules[name]


SWITCHES = [case for case in itertools.product((False, True), repeat=5) if not (case[1] and case[4])]


@pytest.mark.parametrize(("per_token", "tis", "kl", "recompute", "rollout"), SWITCHES)
def test_grpo_is_the_policy_loss_of_slime(
    per_token: bool, tis: bool, kl: bool, recompute: bool, rollout: bool, slime: Slime
) -> None:
    chosen = {
        "calculate_per_token_loss": per_token,
        "use_tis": tis,
        "use_kl_loss": kl,
        "kl_loss_coef": 0.3,
        "use_unbiased_kl": kl,
        "entropy_coef": 0.01 if kl else 0.0,
        "recompute_loss_function": recompute,
        "use_rollout_logprobs": rollout,
    }
    theirs, gradient, logged = slime.run(flags(**chosen))
    ours, our_gradient, our_logged = slime.run(flags(**chosen, loss_type="custom_loss"))
    assert ours == pytest.approx(theirs, rel=2e-6, abs=2e-6)
    torch.testing.assert_close(our_gradient, gradient, atol=1e-6, rtol=0)
    assert gradient.abs().sum() > 0
    for name in ("pg_loss", "entropy_loss", "loss", *(["kl_loss"] if kl else [])):
        assert our_logged[name] == pytest.approx(logged[name], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name in objectives.OBJECTIVES), ("aspo", {"entropy_quantile": 0.8})]
)
def test_an_objective_runs_or_is_refused(name: str, fields: dict[str, Any], slime: Slime) -> None:
    args = flags(loss_type="custom_loss", dgpo_objective=name, dgpo_objective_kwargs=fields)
    objective = objectives.make(name, **fields)
    if "batch" in objective.reads:
        with pytest.raises(ValueError, match="calibrates itself"):
            slime.run(args)
    elif "response" in objective.reads and slime.size > 1:
        with pytest.raises(ValueError, match="reads the whole response"):
            slime.run(args)
    else:
        assert slime.run(args)[1].abs().sum() > 0
