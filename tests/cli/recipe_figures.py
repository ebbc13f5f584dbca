"""The figures that the head of a recipe must have: those of its dry run, in the words of the heads."""

from __future__ import annotations

import re
import shlex

from dgpo.cli.dry_run import plan_of
from dgpo.training.plan import Plan
from dgpo.training.plan_memory import GIB


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
    # what rounds to nothing would only lengthen the line
    shown = [term for term in plan.memory if term.bytes >= 0.05 * GIB]
    terms = [f"{term.name} {term.bytes / GIB:.1f} = {term.how}" for term in shown]
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
        "memory": "GiB per GPU, computed: " + "; ".join(terms),
        "sums": f"Together {plan.update_gib:.1f} in an update, {plan.generation_gib:.1f} in generation, of "
        f"{plan.gpu.gib:g}",
        "logits": f"Logits that are never held: {plan.logits_not_held / GIB:.1f}",
        "time": time,
        "run": f"{plan.generations:,.0f} generations, {plan.updates:,} updates in all",
    }


def under_zero3(argv: list[str]) -> str:
    """The sums with the other accelerate file."""
    plan = plan_of([word.replace("fsdp2-8gpu", "zero3-8gpu") for word in argv])
    assert plan.world.sharding == "ZeRO-3"
    return f"With zero3-8gpu.yaml {plan.update_gib:.1f} and {plan.generation_gib:.1f}"
