"""Every formula of a dry run and of a recipe's head is computed from its text, and gives what is printed beside it."""

from __future__ import annotations

import io
import itertools
import random
import re
import warnings
from typing import Any

import pytest
from formulas import DURATIONS, GIB, agrees, value
from recipe_plans import OWN_PLAN, ROOT, SIZES, dry_run_argv, head_of, joined, text_of
from rich.console import Console

from dgpo.cli.dry_run import plan_of
from dgpo.cli.plan_tables import as_tables
from dgpo.plan.arithmetic import counted, duration, over, quantity
from dgpo.plan.machines import GPUS, World
from dgpo.plan.model_shapes import PROJECTIONS, SHAPES
from dgpo.plan.plan import Plan
from dgpo.training import DGPOConfig

SHARDINGS = ("FSDP2", "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")
SECONDS = re.compile(r"([^=;:]*?) = ([\d.,]+) (s|min|h|days)\b")


def printed(plan: Plan) -> str:
    """What the dry run prints, on lines that are long enough not to be folded."""
    console = Console(file=io.StringIO(), width=600)
    for part in as_tables(plan, {}):
        console.print(part)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def check_plan(plan: Plan) -> int:
    """Compute everything that is printed beside a formula; returns how many formulas there were."""
    text, checked = printed(plan), 0
    for term in plan.memory:
        assert value(term.how) == pytest.approx(term.bytes, rel=1e-12), term
        (row,) = re.findall(rf"^ *{re.escape(term.name)}  +(.+?)\s*$", text, re.MULTILINE)
        *sizes, formula = re.split(r"  +", row)
        assert formula == term.how
        assert sizes
        for size in sizes:
            assert agrees(formula, size, GIB), row
        checked += 1
    if plan.memory:
        for column, phase in ((0, "update"), (1, "generation")):
            of_phase = sum(value(term.how) for term in plan.memory if term.phase in ("both", phase))
            (row,) = re.findall(r"^ *sum  +([\d.]+)  +([\d.]+)", text, re.MULTILINE)
            assert abs(of_phase / GIB - float(row[column])) <= 0.0501
        (held,) = re.findall(r"not held: logits +([\d.]+) +(.*?): of a naive loss", text)
        assert agrees(held[1], held[0], GIB)
        checked += 1
    for formula, result in re.findall(r"of (?:updates|sampling) (.*?) = ([\d.e+]+)", text):
        assert agrees(formula, result)
        checked += 1
    timed = text[text.index("time, computed") :].splitlines() if "time, computed" in text else []
    for line in itertools.takewhile(lambda line: "memory of one GPU" not in line, timed):
        for formula, result, unit in SECONDS.findall(line):
            assert agrees(formula.partition("at most")[2], result, DURATIONS[unit]), line
            checked += 1
    (update,) = re.findall(r"([\d,]+ rows? x .*? process(?:es)?) = ([\d,]+) completion.*?([\d,]+) tokens", text)
    assert value(update[0]) == value(update[1])
    assert value(f"{update[1]} x {plan.config.max_completion_length}") == value(update[2])
    return checked


def some_plan(seed: int) -> Plan:
    """A configuration drawn from what the plan knows: models, sharding, adapters, lengths, vLLM, schedules."""
    draw = random.Random(seed)
    processes = draw.choice([1, 2, 8, 24])
    sharding: Any = "one process" if processes == 1 else draw.choice(SHARDINGS)
    group, rows = draw.choice([2, 4, 8]), draw.choice([1, 2, 4, 8])
    accumulation = draw.choice([1, 2, 3, 8])
    vllm = draw.choice([{}, {"use_vllm": True}, {"use_vllm": True, "vllm_mode": "server"}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Config(DGPOConfig):
            @property
            def world_size(self) -> int:
                return processes

        config = Config(
            output_dir="unused",
            use_cpu=True,
            bf16=draw.choice([True, False]),
            num_generations=group,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation * group * draw.choice([1, 3, 16]),
            max_completion_length=draw.choice([1, 300, 8192, 33_333]),
            vllm_max_model_length=draw.choice([None, 40_000]),
            vllm_gpu_memory_utilization=draw.choice([0.3, 1 / 3, 0.87654321]),
            vllm_enable_sleep_mode=draw.choice([True, False]),
            gradient_checkpointing=draw.choice([True, False]),
            beta=draw.choice([0.0, 0.1]),
            num_iterations=draw.choice([1, 2]),
            num_train_epochs=draw.choice([1, 3, 40]),
            max_steps=draw.choice([-1, -1, 7, 1000]),
            fused_loss=draw.choice([True, False]),
            **vllm,
        )
    return Plan(
        config=config,
        model="drawn",
        shape=draw.choice(list(SHAPES.values())),
        world=World(processes=processes, sharding=sharding, source="drawn"),
        gpu=draw.choice([None, *GPUS.values()]),
        data_rows=draw.choice([None, 17_398, 1_000_003]),
        dtype=draw.choice(["float32", "bfloat16"]),
        attention=draw.choice([None, "eager", "flash_attention_2"]),
        lora=draw.choice([None, None, (16, PROJECTIONS)]),
    )


@pytest.mark.parametrize("seed", range(0, 120, 12))
def test_what_a_dry_run_prints_multiplies_out(seed: int) -> None:
    checked = [check_plan(some_plan(one)) for one in range(seed, seed + 12)]
    assert min(checked) >= 6
    assert max(checked) >= 12


@pytest.mark.parametrize("name", [*OWN_PLAN, *(f"verl/dapo-math-{size}.sh" for size in SIZES)])
def test_what_a_head_says_multiplies_out(name: str) -> None:
    head = joined(head_of(text_of(name)))
    memory = re.search(r"GiB per GPU, computed: (.*?)\. Together ([\d.]+) in an update, ([\d.]+) in generation", head)
    assert memory is not None
    for term in memory.group(1).split("; "):
        found = re.fullmatch(r"(\D+?) ([\d.]+) = (.+)", term)
        assert found is not None, term
        assert agrees(found.group(3), found.group(2), GIB), term
    logits = re.search(r"Logits that are never held: ([\d.]+) = (.*?) logits", head)
    assert (logits is None) == name.startswith("verl")
    assert logits is None or agrees(logits.group(2), logits.group(1), GIB)
    time = re.search(r"Time: computed, not measured, with every response at full length: (.*?) Expect:", head)
    assert time is not None
    results = SECONDS.findall(time.group(1))
    assert len(results) == 3
    for formula, result, unit in results:
        assert agrees(formula, result, DURATIONS[unit]), formula
    assert re.search(r" (?:h|days) on (?:one|8) (?:H100|H200|RTX 4090)", time.group(1))


def test_the_recipes_plans_print_what_multiplies_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in OWN_PLAN:
            assert check_plan(plan_of(dry_run_argv(text_of(name)))) >= 12


def test_the_reader_of_formulas() -> None:
    """It must not agree with just anything."""
    assert value("4 B x 1,000 parameters / 8 ranks") == 500
    assert value("(4 B master + 2 x 4 B) x 10 of adapters") == 120
    assert value("0.5 x 79 GiB") == 0.5 * 79 * GIB
    assert value("6e12 FLOPs / 2 updates / (25% x 3 GPUs x 4 TFLOP/s)") == 1.0
    assert agrees("2 x 3.3", "7")
    assert not agrees("2 x 3.3", "6.5")
    assert not agrees("258,168 B x 20,480 x 1 layer", "7.1", GIB), "the text that was printed once"
    assert agrees("258,168 B x 20,480 x 1 layer", "4.9", GIB)


def test_a_factor_is_worth_what_is_shown() -> None:
    third = quantity(1 / 3)
    assert (str(third), third.value) == ("0.3333", 0.3333)
    assert (str(quantity(1234.56, "s")), quantity(1234.56, "s").value) == ("1,235 s", 1235)
    assert str(quantity(0.35, "%") * counted(1, "GPU") * quantity(989, "TFLOP/s", 1e12)) == "35% x 1 GPU x 989 TFLOP/s"
    assert str(over(quantity(6) + quantity(4), 5, "rank")) == "(6 + 4) / 5 ranks"
    assert str(over(quantity(6), 1, "rank")) == "6"
    assert str(quantity(6) / (quantity(2) * quantity(3))) == "6 / (2 x 3)"
    assert str((quantity(6) + quantity(4)).of("tokens") * quantity(2)) == "(6 + 4) tokens x 2"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.012 s"),
        (9.96, "10 s"),
        (119, "119 s"),
        (121, "2 min"),
        (7300, "2 h"),
        (101_000, "28 h"),
        (4_925_000, "57 days"),
        (300_000, "3.5 days"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
