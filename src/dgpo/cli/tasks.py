"""`dgpo tasks`: list the tasks, or describe one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from dgpo import tasks
from dgpo.cli.errors import user_input
from dgpo.counts import counted
from dgpo.tasks.benchmark_table import Benchmark
from dgpo.tasks.gym_table import GRADED, REFUSED

GYM = "reasoning_gym"
Fact = tuple[str, str]


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo tasks`."""
    made = argparse.ArgumentParser(
        prog="dgpo tasks", description="List the tasks to train and evaluate on, or describe one."
    )
    made.add_argument(
        "name", nargs="?", metavar="NAME", help=f"task to describe; {GYM} lists the tasks of that package"
    )
    made.add_argument("--data-dir", metavar="DIR", help="check a benchmark's JSONL files in this folder")
    return made


def run(argv: list[str]) -> int:
    """Print the table of tasks, or the description of one. Does not access the network."""
    arguments = parser().parse_args(argv)
    name, data_dir = arguments.name, arguments.data_dir
    console = Console()
    if name is None and data_dir is None:
        console.print(_overview())
        return 0
    if data_dir is not None and name not in tasks.BENCHMARKS:
        parser().error(f"--data-dir is for one benchmark ({', '.join(tasks.BENCHMARKS)}); got the task {name!r}")
    if name == GYM:
        facts = list(_gym())
    else:
        with user_input():
            facts = list(_describe(tasks.make(name, data_dir=data_dir)))
    table = Table.grid(padding=(0, 2))
    for key, value in facts:
        # as text: a prompt may hold what rich would take for markup
        table.add_row(Text(key, style="bold"), Text(value, overflow="fold"))
    console.print(table)
    return 0


def _overview() -> Group:
    made = Table("task", "train", "validation", "test", "what", title="generated from a seed, graded by equal text")
    for name, cls in tasks.TASKS.items():
        task = cls()
        made.add_row(name, *(f"{len(task.problems(split)):,}" for split in task.splits), task.summary)
    read = Table("benchmark", "train", "test", "hub data set, or files in --data-dir", title="graded by MathGrader")
    for name, benchmark in tasks.BENCHMARKS.items():
        sizes = [f"{known.rows:,}" if known else "-" for known in map(benchmark.content.get, ("train", "test"))]
        hub = benchmark.content["test"].hub
        read.add_row(name, *sizes, f"{hub.name} {hub.config or ''}")
    for table in (made, read):
        table.title_justify = "left"
    rest = f"{GYM}:NAME[,key=value...]: {counted(len(GRADED), 'task')}, graded exactly; `dgpo tasks {GYM}` lists them"
    return Group(made, read, Text(rest))


def _describe(task: tasks.Task) -> Iterator[Fact]:
    yield "task", task.name
    yield "what", task.summary
    yield "kind", task.kind
    yield "options", ", ".join(tasks.options(task.name))
    yield "prompt", f"{task.prompt.name}: {task.prompt.template!r}"
    yield "max_new_tokens", str(task.max_new_tokens)
    if isinstance(task, tasks.BenchmarkTask):
        yield from _benchmark(task)
        return
    if isinstance(task, tasks.GymTask):
        yield "graded by", f"{GRADED[task.task]}: see dgpo.tasks.gym_table"
        yield "train", f"{task.train_size:,} requested (train_size), minus repeats"
        yield "validation", f"{task.validation_size:,} requested (validation_size), minus repeats"
        yield from _made(task, "test")  # the others can take minutes
    else:
        yield "graded by", "equal text, ignoring surrounding spaces"
        for split in task.splits:
            yield from _made(task, split)
    yield from _example(task)


def _made(task: tasks.Task, split: str) -> Iterator[Fact]:
    facts = task.provenance(split)
    dropped = facts.get("dropped_repeats", 0)
    yield split, counted(facts["rows"], "problem") + f", {dropped:,} dropped as repeats" * bool(dropped)
    yield "", f"SHA-256 {facts['sha256']}"


def _benchmark(task: tasks.BenchmarkTask) -> Iterator[Fact]:
    about: Benchmark = task.about
    yield "graded by", "dgpo.rewards.MathGrader"
    yield "licence", about.licence
    for split, content in about.content.items():
        hub = content.hub
        config = f", {hub.config}" if hub.config else ""
        yield split, f"{counted(content.rows, 'problem')}, file {content.file}"
        yield "", f"SHA-256 {content.sha256}"
        yield (
            "",
            f"hub: {hub.name}{config}, split {hub.split}, {counted(hub.rows, 'row')}, revision {hub.revision or 'any'}",
        )
    for id, wrong in about.known_wrong.items():
        yield "wrong gold", f"{id}: {wrong.gold!r} should be {wrong.should_be!r} ({wrong.why})"
    if about.unparsed:
        yield "unreadable", f"golds that math-verify cannot read: {', '.join(about.unparsed)}"
    if task.data_dir is not None:
        for split in task.splits:
            yield f"{split} file", f"checked: {counted(task.provenance(split)['rows'], 'problem')}, content as expected"
        yield from _example(task)


def _example(task: tasks.Task) -> Iterator[Fact]:
    example = task.problems("test")[0]
    yield "example", f"{example['id']}: {example['prompt']!r} -> {example['answer']!r}"


def _gym() -> Iterator[Fact]:
    yield "task", f"{GYM}:NAME[,key=value...]"
    for how in dict.fromkeys(GRADED.values()):
        yield f"by {how}", ", ".join(name for name, by in GRADED.items() if by == how)
    for name, reason in REFUSED.items():
        yield f"not {name}", reason
