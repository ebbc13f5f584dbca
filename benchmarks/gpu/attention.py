"""Twenty updates in bfloat16 with generated completions, with FlashAttention where it is installed and SDPA otherwise.

First the hidden states of a padded batch against the eager attention in float32; then the run, whose reward must rise,
with the mathematical grader as a second reward.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from statistics import mean

import torch

from dgpo.rewards import MathReward
from gpu.piece import REHEARSAL, Findings, device, pick, run
from gpu.rig import digits, distance, model, trainer

UPDATES = pick(20, 8)


def measure(found: Findings) -> None:
    """A row per check."""
    flash = not REHEARSAL and importlib.util.find_spec("flash_attn") is not None
    attention = "flash_attention_2" if flash else "sdpa"
    with found.part("padded batch"):
        padded(found, attention)
    with found.part("run"), tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(StringIO()):
            options = {
                "max_steps": UPDATES,
                "learning_rate": pick(1e-3, 1e-2),
                "bf16": True,
                "reward_weights": [1.0, 0.0],
            }
            made = trainer(model(attention=attention), folder, reward=[digits, MathReward()], **options)
            made.train()
        rows = [row for row in made.state.log_history if "loss" in row]
        # in the row of a generation's first update
        rewards = [row["rewards/digits/mean"] for row in rows if "rewards/digits/mean" in row]
        third = max(len(rewards) // 3, 1)
        first, last = mean(rewards[:third]), mean(rewards[-third:])
        finite = all(math.isfinite(row[name]) for row in rows for name in ("loss", "grad_norm"))
        found.row(attention=attention, updates=len(rows), reward_first=first, reward_last=last, finite=finite)
        found.check(len(rows) == UPDATES, f"{len(rows)} of {UPDATES} updates")
        found.check(finite, "a loss or a gradient is not finite")
        found.check(last > first, f"the reward went from {first:.3f} to {last:.3f}")
        graded = {name for row in rows for name in row if name.startswith("math_reward/")}
        found.check(bool(graded), "the mathematical grader was not asked")
    said = attention if flash else "sdpa (flash_attn is not installed)"
    ends = [row for row in found.rows if "reward_last" in row]
    found.headline = said + "".join(f": reward {r['reward_first']:.2f} to {r['reward_last']:.2f}" for r in ends)


def padded(found: Findings, attention: str) -> None:
    """Hidden states of the same rows, padded on the left."""
    torch.manual_seed(0)
    rows, length = 4, pick(256, 24)
    ids = torch.randint(3, 90, (rows, length), device=device())
    lengths = torch.tensor([length, length // 2, length // 3, 5], device=device())
    mask = torch.arange(length, device=device()) >= length - lengths[:, None]
    states = {}
    for name, dtype in (("eager", torch.float32), ("eager", torch.bfloat16), (attention, torch.bfloat16)):
        network = model(attention=name).to(device(), dtype).eval()
        with torch.no_grad():
            hidden = network.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        states[name, dtype] = hidden[mask].double()
    exact = states["eager", torch.float32]
    ours, eager = (distance(states[name, torch.bfloat16], exact) for name in (attention, "eager"))
    found.row(case="padded batch in bfloat16 against eager float32", attention=attention, error=ours, eager=eager)
    found.check(ours <= 1.5 * eager + 1e-3, f"{attention}: {ours:.3g} from eager float32, eager bfloat16 {eager:.3g}")


if __name__ == "__main__":
    sys.exit(run(measure))
