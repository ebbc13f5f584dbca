"""What the tests of the recipes share: the files, and the figures that a head must have, those of its dry run."""

from __future__ import annotations

import re
import shlex
import warnings
from functools import cache
from pathlib import Path

from trl import ModelConfig

from dgpo.cli.arguments import parse
from dgpo.cli.dry_run import plan_of
from dgpo.cli.train import TrainArguments
from dgpo.training import DGPOConfig
from dgpo.training.plan import Plan
from dgpo.training.plan_memory import GIB, Term, total

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
FLAGS = ["--use_cpu", "--output_dir", "unused"]


def text_of(name: str) -> str:
    return (RECIPES / name).read_text(encoding="utf-8")


@cache
def parsed(name: str) -> tuple[TrainArguments, DGPOConfig, ModelConfig]:
    """As `dgpo train --config` does it; on the CPU, where there may be no GPU to check bf16 against."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*on-policy.*")
        return parse("dgpo train", [TrainArguments, DGPOConfig, ModelConfig], ["--config", str(RECIPES / name), *FLAGS])


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


def figures(argv: list[str]) -> dict[str, str]:
    """Phrases with the plan's figures: terms of the memory, their sums, what is not held, time, updates."""
    return of_plan(plan_of(argv))


def of_plan(plan: Plan) -> dict[str, str]:
    """See `figures`."""
    assert plan.gpu is not None
    assert plan.update_seconds is not None
    assert plan.update_flops is not None
    length = plan.prompt_tokens + plan.completion_tokens
    assert plan.shape is not None
    forward = plan.shape.forward_flops(length)
    tokens = plan.completions * length
    time = (
        "computed, not measured, with every response at full length: a forward pass is f = "
        f"{forward:.1e} FLOPs a token (2 x weights + attention) and a generation {plan.completions:,} x {length:,} "
        "tokens; its "
        f"{plan.updates_per_generation:g} updates cost {plan.update_flops / forward / tokens:g} f a token, at 35% of "
        f"{plan.world.processes} x {plan.gpu.tflops:g} TFLOP/s at most {plan.update_seconds:,.0f} s each"
    )
    if plan.sampling_seconds is not None:
        time += f"; sampling 1 f, at 10% {plan.sampling_seconds:,.0f} s"
    return {
        "memory": "GiB per GPU, computed: " + listed(plan.memory),
        "sums": together(plan.update_gib, plan.generation_gib, plan.gpu.gib),
        "logits": f"Logits that are never held: {plan.logits_not_held / GIB:.1f}",
        "time": time,
        "run": f"{plan.generations:,.0f} generations, {plan.updates:,} updates in all",
    }


def listed(terms: tuple[Term, ...]) -> str:
    """The terms with their arithmetic; what rounds to nothing would only lengthen the line."""
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
    loss = 5 * 4 * 512 * shape.vocabulary + 2 * shape.head + 2 * shape.hidden * tokens
    how = "20 B x 512 tokens x vocabulary, and 2 B x head and hidden states"
    own = (
        Term(name="verl's fused kernels", bytes=loss, how=how, phase="update"),
        Term(name="reduction", bytes=4 * shape.head, how="4 B x head", phase="update"),
    )
    kept = tuple(term for term in plan.memory if term.name != "loss buffers")
    update = total((*kept, *own), "update") / GIB
    phrases = of_plan(plan)
    ours = listed(kept).replace("vllm_gpu_memory", "gpu_memory")  # verl's name
    return {
        "memory": f"GiB per GPU, computed: {ours}; {listed(own)}",
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
