"""What the tests of the recipes share: the files, and the numbers that a head must have, those of its dry run.

python tests/cli/recipe_plans.py       write these numbers into the heads
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import warnings
from functools import cache
from pathlib import Path

from trl import ModelConfig

from dgpo.cli.arguments import parse
from dgpo.cli.dry_run import plan_of
from dgpo.cli.parser import Parser
from dgpo.cli.plan_tables import run_time, shown
from dgpo.cli.train_arguments import TrainArguments
from dgpo.plan.arithmetic import quantity
from dgpo.plan.memory import GIB, Term, total
from dgpo.plan.plan import Plan
from dgpo.training import DGPOConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
LAUNCHED = {"accelerate"}
"""Folders whose YAML files are for `accelerate launch`."""
NAMES = sorted(
    str(path.relative_to(RECIPES))
    for path in RECIPES.rglob("*.yaml")
    if path.relative_to(RECIPES).parts[0] not in LAUNCHED
)
PLANNED = [name for name in NAMES if name != "addition.yaml"]
"""Those whose model has a name; that of the addition recipe is a folder that a command makes."""
SIZES = {"1.5b": "1.5B", "7b": "7B", "14b": "14B"}
SAME_PLAN = {
    f"dapo-math/{size}-{method}.yaml": f"dapo-math/{size}-dgpo.yaml" for size in SIZES for method in ("maspo", "grpo")
}
"""Those with another objective alone, and the recipe that they refer to for the numbers."""
OWN_PLAN = [name for name in PLANNED if name not in SAME_PLAN]
"""Those with the numbers of their plan in their heads."""
FLAGS = ["--use_cpu", "--output_dir", "unused"]


def text_of(name: str) -> str:
    return (RECIPES / name).read_text(encoding="utf-8")


@cache
def parsed(name: str) -> tuple[TrainArguments, DGPOConfig, ModelConfig]:
    """As `dgpo train --config` does it; on the CPU, where there may be no GPU to check bf16 against."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*on-policy.*")
        return parse(
            Parser([TrainArguments, DGPOConfig, ModelConfig], prog="dgpo train"),
            ["--config", str(RECIPES / name), *FLAGS],
        )


def head_of(text: str) -> str:
    """The comment at the top, without its marks."""
    lines = text[: text.index("\n\n")].splitlines()
    assert all(line.startswith("#") for line in lines)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def joined(head: str) -> str:
    """The head as one line."""
    return " ".join(head.split())


def dry_run_argv(text: str) -> list[str]:
    """The arguments of the dry run that the head tells to try, without `dgpo train`."""
    found = re.search(r"^ *dgpo train (.*--dry_run.*)$", head_of(text), re.MULTILINE)
    assert found is not None, text[:500]
    return shlex.split(found.group(1))


def planned(argv: list[str]) -> dict[str, str]:
    """Phrases with the plan's numbers: terms of the memory, their sums, what is not held, time, updates."""
    return of_plan(plan_of(argv))


def of_plan(plan: Plan) -> dict[str, str]:
    """See `planned`."""
    assert plan.gpu is not None
    assert plan.update_time is not None
    time = f"computed, not measured, with every response at full length: an update {shown(plan.update_time)}"
    if plan.sampling_time is not None:
        time += f"; sampling a generation {shown(plan.sampling_time)}"
    return {
        "memory": "GiB per GPU, computed: " + listed(plan.memory),
        "sums": together(plan.update_gib, plan.generation_gib, plan.gpu.gib),
        "logits": f"Logits that are never held: {plan.naive_logits.value / GIB:.1f} = {plan.naive_logits}",
        "time": time,
        "run": f"the run {run_time(plan)}",
    }


def listed(terms: tuple[Term, ...]) -> str:
    """The terms with their formulas; what rounds to nothing would only lengthen the line."""
    return "; ".join(f"{term.name} {term.bytes / GIB:.1f} = {term.how}" for term in terms if term.bytes >= 0.05 * GIB)


def together(update: float, generation: float, gpu: float) -> str:
    return f"Together {update:.1f} in an update, {generation:.1f} in generation, of {gpu:g}"


def of_verl(plan: Plan, tokens: int) -> dict[str, str | float]:
    """The phrases of verl's script for a plan of the same model, micro-batches and ranks; `update` is their sum in GiB.

    In the place of our loss are the buffers of verl's fused kernels (torch's backend: five float32 tensors of
    512 tokens x vocabulary at once, gradients in 16 bits), and the float32 gradients of the head that FSDP2 reduces
    (`reduce_dtype`).
    """
    shape, gpu = plan.shape, plan.gpu
    assert shape is not None
    assert gpu is not None
    logits = quantity(5) * quantity(4, "B") * quantity(512, "tokens") * quantity(shape.vocabulary, "logits")
    head = quantity(shape.head, "of the head")
    hidden = quantity(2, "B") * quantity(tokens, "tokens") * quantity(shape.hidden)
    own = (
        Term(name="verl's fused kernels", formula=logits + quantity(2, "B") * head + hidden, phase="update"),
        Term(name="reduction", formula=quantity(4, "B") * head, phase="update"),
    )
    kept = tuple(term for term in plan.memory if term.name != "loss buffers")
    update = total((*kept, *own), "update") / GIB
    phrases = of_plan(plan)
    return {
        "memory": f"GiB per GPU, computed: {listed(kept)}; {listed(own)}",
        "sums": together(update, plan.generation_gib, gpu.gib),
        "time": phrases["time"],
        "run": phrases["run"],
        "update": update,
    }


def under_zero3(argv: list[str]) -> str:
    """The sums with the other accelerate file."""
    plan = plan_of([word.replace("fsdp2-8gpu", "zero3-8gpu") for word in argv])
    assert plan.world.sharding == "ZeRO-3"
    return f"With zero3-8gpu.yaml {plan.update_gib:.1f} and {plan.generation_gib:.1f}"


# --- the scripts of verl, and writing the heads -----------------------------------------------------------------------


def setting(size: str, name: str) -> str:
    """A variable of verl's script."""
    found = re.search(rf"^{name}=(\S+)", text_of(f"verl/dapo-math-{size}.sh"), re.MULTILINE)
    assert found is not None, name
    return found.group(1)


def plan_of_script(size: str) -> Plan:
    """The YAML's, with flash attention, which is verl's default, and vLLM on the same GPUs in the script's share."""
    flags = {
        "attn_implementation": "flash_attention_2",
        "vllm_mode": "colocate",
        "vllm_tensor_parallel_size": setting(size, "ROLLOUT_TP"),
        "vllm_gpu_memory_utilization": setting(size, "ROLLOUT_MEMORY"),
    }
    words = [*(f"--{name}={value}" for name, value in flags.items()), "--vllm_enable_sleep_mode"]
    return plan_of([*dry_run_argv(text_of(f"dapo-math/{size}-dgpo.yaml")), *words])


def rewritten(text: str, numbers: dict[str, str]) -> str:
    """A file whose head has these numbers in the paragraphs `Memory:` and `Time:`; what follows them there is kept."""
    logits = f" {numbers['logits']}." if "logits" in numbers else ""
    end = r"Logits that are never held: .*?\.(?= [A-Z]|$)" if logits else r"of [\d.]+\.(?= |$)"
    memory = f"{numbers['memory']}. {numbers['sums']}.{logits}"
    text = _paragraph(text, "Memory", rf"GiB per GPU, computed: .*?{end}", memory)
    time = f"{numbers['time']}; {numbers['run']}"
    return _paragraph(
        text,
        "Time",
        r"computed, not measured, .*?(?:updates in all|on (?:one|\d+) (?:RTX )?\w+(?:, and as many that sample)?)",
        time,
    )


def _paragraph(text: str, word: str, old: str, new: str) -> str:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"# {word}:"))
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("#           "))
    body = " ".join(line.removeprefix(f"# {word}:").removeprefix("#").strip() for line in lines[start:end])
    changed, count = re.subn(old, new.replace("\\", r"\\"), body, count=1)
    assert count == 1, body
    filled = textwrap.wrap(
        changed,
        118,
        initial_indent=f"# {word}:".ljust(12),
        subsequent_indent="#".ljust(12),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([*lines[:start], *filled, *lines[end:], ""])


def write_heads() -> None:
    """Bring the numbers in all heads up to date."""
    os.chdir(ROOT)
    for name in OWN_PLAN:
        (RECIPES / name).write_text(rewritten(text_of(name), planned(dry_run_argv(text_of(name)))), encoding="utf-8")
    for size in SIZES:
        name, tokens = f"verl/dapo-math-{size}.sh", int(setting(size, "TOKENS_PER_GPU"))
        phrases = {key: str(value) for key, value in of_verl(plan_of_script(size), tokens).items()}
        (RECIPES / name).write_text(rewritten(text_of(name), phrases), encoding="utf-8")


if __name__ == "__main__":
    write_heads()
