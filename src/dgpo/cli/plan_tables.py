"""A plan as tables: what `dgpo train --dry_run` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dgpo.counts import plural
from dgpo.objectives import Objective
from dgpo.plan.arithmetic import Quantity, counted, duration, quantity
from dgpo.plan.memory import GIB
from dgpo.plan.plan import Plan
from dgpo.plan.weights import OLD_PROBABILITY, weight_table
from dgpo.training.config import DGPOConfig


def as_tables(plan: Plan, settings: Mapping[str, Mapping[str, str]]) -> Iterable[Any]:
    """What rich prints: whether it fits and how long it takes, facts, memory, the objective's weights,
    `arguments.settings`, notes; a misfit again at the end."""
    if plan.fits is not None:
        yield _verdict(plan)
    if plan.run_time is not None:
        yield Text(_run_takes(plan))
    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(plan):
        facts.add_row(Text(key, style="bold"), Text(value, overflow="fold"))
    yield facts
    if plan.memory:
        yield _memory(plan)
    yield _weights(plan.config.make_objective())
    yield from _settings(settings)
    for note in plan.notes:
        yield Text(f"note: {note}")
    if plan.fits is False:
        yield _verdict(plan)


def _settings(settings: Mapping[str, Mapping[str, str]]) -> Iterable[Text]:
    for origin, values in settings.items():
        yield Text(f"\nset in {origin}" if origin != "flags" else "\nset by flags", style="bold")
        for key, value in values.items():
            yield Text(f"  {key}: {value}", overflow="fold")


def _verdict(plan: Plan) -> Text:
    assert plan.gpu is not None
    needs = f"{plan.update_gib:.1f} in an update, {plan.generation_gib:.1f} in generation"
    return Text(
        f"{'fits' if plan.fits else 'does NOT fit'} in {plan.gpu.gib:g} GiB of an {plan.gpu.name}, by this estimate: "
        f"{needs}",
        style="" if plan.fits else "bold red",
    )


def _run_takes(plan: Plan) -> str:
    """`takes at most 2.6 h on one H100, by assumed shares of the peak; the arithmetic is below`."""
    assert plan.run_time is not None
    without = ", generation not included" if plan.sampling_time is None else ""
    took = f"takes at most {duration(plan.run_time.value)} on {_gpus(plan)}{without}"
    return f"{took}, by assumed shares of the peak; the arithmetic is below"


def _gpus(plan: Plan) -> str:
    assert plan.gpu is not None
    return f"{'one' if plan.world.processes == 1 else f'{plan.world.processes:,}'} {plan.gpu.short}"


def _facts(plan: Plan) -> Iterable[tuple[str, str]]:
    yield "model", plan.model + ("" if plan.shape is None else f", {plan.shape.parameters:,} parameters")
    if plan.shape is not None:
        s = plan.shape
        yield (
            "shape",
            f"{s.layers} layers, hidden {s.hidden:,}, {s.heads} heads ({s.kv_heads} of keys and values), MLP "
            f"{s.intermediate:,}, vocabulary {s.vocabulary:,}, head {'tied' if s.tied else 'untied'}",
        )
    world, config = plan.world, plan.config
    ranks = counted(world.processes, "process", "es")
    yield "world", f"{ranks}" + f", {world.sharding}" * (world.processes > 1) + f" ({world.source})"
    yield (
        "a generation",
        f"{counted(plan.prompts, 'prompt')} x {counted(config.num_generations, 'completion')} = "
        f"{config.generation_batch_size:,}; up to {plan.tokens_per_generation:,} tokens of "
        f"{config.max_completion_length:,} each",
    )
    yield (
        "an update",
        f"{counted(config.per_device_train_batch_size, 'row')} x "
        f"{counted(config.gradient_accumulation_steps, 'micro-batch', 'es')} x {ranks} = "
        f"{counted(plan.completions_per_update, 'completion')} ({_worth(plan)}); up to "
        f"{plan.tokens_per_update:,} tokens",
    )
    yield "updates per generation", f"{config.updates_per_generation:g}"
    rows = "unknown size" if plan.data_rows is None else f"{counted(plan.data_rows, 'prompt')}, {plan.data_source}"
    run = "unknown"
    if plan.updates is not None:
        generations = f"{plan.generations:,.4g} {plural(plan.generations or 0, 'generation')}"
        run = f"{counted(plan.updates, 'update')}, {generations}"
    yield "data", rows
    yield "the run", run
    yield "objective", str(config.make_objective())
    yield "aggregation", str(config.make_aggregation())
    yield "advantage", str(config.make_advantage() or f"TRL's, scale_rewards = {config.scale_rewards!r}")
    if config.anchor != "old":
        yield "anchor", config.anchor
    if config.teacher is not None:
        yield "teacher", f"{config.teacher}; its weights and its pass over a generation are not in the figures below"
    yield "correction", str(config.make_correction() or _trl_correction(config))
    if plan.update_work is not None:
        yield "FLOPs per generation", f"updates {plan.update_work} = {plan.update_work.value:.3e}"
        if plan.sampling_work is not None:
            yield "", f"sampling {plan.sampling_work} = {plan.sampling_work.value:.3e}"
    yield from _time(plan)


def _trl_correction(config: DGPOConfig) -> str:
    if config.use_vllm and config.vllm_importance_sampling_correction and config.anchor == "old":
        return f"TRL's, {config.vllm_importance_sampling_mode}, at most {config.vllm_importance_sampling_clip_max}"
    return "none"


def _worth(plan: Plan) -> str:
    prompts = plan.completions_per_update / plan.config.num_generations
    return f"{prompts:g} prompt's worth" if prompts == 1 else f"{prompts:g} prompts' worth"


def _time(plan: Plan) -> Iterable[tuple[str, str]]:
    """Of an update, of sampling and of the run; every response at full length, at guessed shares of the peak."""
    if plan.update_time is None:
        return
    yield "time, computed", f"an update at most {shown(plan.update_time)}"
    if plan.sampling_time is None:
        yield "", "generation with transformers is not estimated"
    else:
        yield "", f"sampling at most {shown(plan.sampling_time)}"
    if plan.run_time is not None:
        alone = " without generation" if plan.sampling_time is None else ""
        yield "", f"the run{alone} at most {run_time(plan)}; assumed shares of the peak, not measured"


def shown(seconds: Quantity) -> str:
    """The formula and its result."""
    return f"{seconds} = {quantity(seconds.value, 's')}"


def run_time(plan: Plan) -> str:
    """`1,584 updates x 37.59 s + 99 generations x 421.1 s = 28 h on 8 H100`."""
    assert plan.run_time is not None
    text = f"{plan.run_time} = {duration(plan.run_time.value)} on {_gpus(plan)}"
    served = plan.config.use_vllm and plan.config.vllm_mode == "server"
    return f"{text}, and as many that sample" if served else text


def _memory(plan: Plan) -> Table:
    table = Table(title="memory of one GPU, GiB", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("term")
    table.add_column("update", justify="right")
    table.add_column("generation", justify="right")
    table.add_column("arithmetic", overflow="fold")
    for term in plan.memory:
        size = f"{term.bytes / GIB:.1f}"
        table.add_row(
            term.name,
            size if term.phase in ("both", "update") else "",
            size if term.phase in ("both", "generation") else "",
            term.how,
        )
    table.add_section()
    table.add_row("sum", f"{plan.update_gib:.1f}", f"{plan.generation_gib:.1f}", "")
    held = f"{plan.naive_logits.value / GIB:.1f}"
    table.add_row("not held: logits", held, "", f"{plan.naive_logits}: of a naive loss, here tile by tile")
    return table


def _weights(objective: Objective) -> Table:
    table = Table(
        title=f"weight w on ∇log π by ratio r (π_old = {OLD_PROBABILITY:g})", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("r", "A < 0: w", "A > 0: w"):
        table.add_column(column, justify="right")
        if column != "r":
            table.add_column("region")
    for row in weight_table(objective):
        table.add_row(
            f"{row.ratio:g}", f"{row.negative:.4g}", row.negative_region, f"{row.positive:.4g}", row.positive_region
        )
    return table
