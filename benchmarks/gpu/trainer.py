"""The trainer on the device: the gradient is the same with the fused loss and without it.

Two updates on one generation, the second off-policy. In float32 both must agree to rounding; in bfloat16 each is
compared with float32. Then LoRA, and gradient checkpointing against none.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from gpu.piece import Findings, run
from gpu.rig import VOCABULARY, distance, gradients, model

AGREE = 1e-4
"""Of two gradients in float32, relative (L2): the second follows a step that differs by rounding already."""
CASES: dict[str, dict[str, Any]] = {
    "dgpo": {"objective": "dgpo"},
    "gspo, by sequence": {"objective": "gspo"},
    "aspo, reads entropies": {"objective": "aspo", "objective_kwargs": {"entropy_quantile": 0.5}},
    "entropy bonus": {"objective": "dgpo", "entropy_coef": 0.02},
}


def measure(found: Findings) -> None:
    """A row per pair of runs that must agree."""
    plain: dict[bool, list[Tensor]] = {}
    for name, options in CASES.items():
        with found.part(name):
            pair = {fused: of(fused, **options) for fused in (True, False)}
            agree(found, name, pair[True], pair[False])
            plain = plain or pair
    with found.part("bfloat16"):
        errors = {}
        for fused in (True, False):
            rounded = of(fused, objective="dgpo", bf16=True)
            errors[fused] = [distance(a, b) for a, b in zip(rounded, plain[False], strict=True)]
            found.row(
                case="dgpo in bfloat16 against float32", fused=fused, first=errors[fused][0], second=errors[fused][1]
            )
        for update, (ours, theirs) in enumerate(zip(errors[True], errors[False], strict=True), 1):
            text = f"bfloat16, update {update}: {ours:.3g} from float32 with the fused loss, {theirs:.3g} without"
            found.check(ours <= 1.2 * theirs + 0.01, text)
    with found.part("LoRA"):
        agree(found, "LoRA", *(of(fused, objective="dgpo", peft_config=adapter()) for fused in (True, False)))
    with found.part("gradient checkpointing"):
        for fused in (True, False):
            less = of(fused, objective="dgpo", gradient_checkpointing=True)
            agree(found, f"gradient checkpointing against none, fused {fused}", less, plain[fused])
    worst = max((row["second"] for row in found.rows if row.get("agree")), default=float("nan"))
    found.headline = f"{len(found.rows)} comparisons; in float32 they differ by {worst:.1g} at most"


def adapter() -> LoraConfig:
    """One whose two factors both have a gradient from the beginning."""
    return LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


def of(fused: bool, **options: Any) -> list[Tensor]:
    """The gradients of both updates.

    Raises:
        RuntimeError: the loss took another path than the one that was asked for, or the second update was on-policy.
    """
    torch.manual_seed(0)
    seen, trainer = gradients(model(VOCABULARY), fused_loss=fused, **options)
    went = trainer._step_loss.heads.fused
    if went != fused:
        raise RuntimeError(f"fused_loss={fused} gave a loss with fused={went}")
    moved = [row["objective/kl/old"] for row in trainer.state.log_history if "objective/kl/old" in row]
    if not moved[1] > 1e-4:
        raise RuntimeError(f"the policy has not moved between the updates: KL {moved}")
    return seen


def agree(found: Findings, name: str, one: list[Tensor], other: list[Tensor]) -> None:
    """A row, and a failure where two runs differ by more than rounding."""
    first, second = (distance(a, b) for a, b in zip(one, other, strict=True))
    right = max(first, second) <= AGREE
    found.row(case=name, dtype="float32", agree=right, first=first, second=second)
    found.check(right, f"{name}: the gradients differ by {first:.3g} and {second:.3g}")


if __name__ == "__main__":
    sys.exit(run(measure))
