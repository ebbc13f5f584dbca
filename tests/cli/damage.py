"""Ways in which the files of a recorded run and of an evaluation can be damaged, each with a name."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from dgpo import StepTotals, TokenBatch
from dgpo.diagnostics import record
from dgpo.training.starter import character_tokenizer

ESCAPE = "\x1b[31mred\x1b[0m\x07"
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2.5,
    1e300,
    10**400,
    10**12,
    "nan",
    "",
    "words",
    ESCAPE,
    [],
    [1],
    {},
    {"a": 1},
)
DELETED = object()


class Damage(NamedTuple):
    """What is done to a folder that holds `record/` and `results.json`."""

    name: str
    apply: Callable[[Path], object]


def healthy(folder: Path) -> None:
    """Four updates of two ranks with every column, their log, a tokenizer, and the results of an evaluation."""
    run = folder / "record"
    tokenizer = character_tokenizer()
    for update in range(1, 5):
        for rank in (0, 1):
            generator = torch.Generator().manual_seed(10 * update + rank)
            old = -torch.rand(4, 6, generator=generator) - 0.1
            new = old + 0.3 * torch.randn(4, 6, generator=generator)
            mask = torch.arange(6) < torch.tensor([[6], [4], [5], [2]])
            tokens = TokenBatch(
                new.clamp(max=-1e-3),
                old,
                torch.tensor([1.0, -1.0, 0.5, -0.5]),
                mask,
                rollout_logprob=old + 0.01,
                entropy=torch.rand(4, 6, generator=generator),
            )
            record(
                run,
                tokens,
                update=update,
                token_ids=torch.randint(3, len(tokenizer), (4, 6), generator=generator),
                group=torch.tensor([7, 7, 9, 9]),
                sum_pi_squared=torch.full((4, 6), 0.5),
                generation=(update - 1) // 2,
                index=(update - 1) % 2,
                totals=StepTotals(tokens=17.0, sequences=4.0),
                rank=rank,
                world_size=2,
            )
    tokenizer.save_pretrained(run / "tokenizer")
    (run / "run.json").write_text(json.dumps(RUN_JSON))
    lines = [
        {"event": "begin", "step": 0},
        *({"step": step, **METRICS} for step in range(1, 5)),
        {"event": "end", "step": 4},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps(RESULTS))


RUN_JSON: dict[str, Any] = {
    "schema": "dgpo.run/1",
    "engine": "trl",
    "started": "2026-01-01T00:00:00+00:00",
    "objective": {"name": "dgpo", "n": 2, "m": 2, "eps_low": 0.2, "eps_high": 0.28},
    "aggregation": {"name": "token-mean"},
    "config": {
        "max_steps": 4,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "max_grad_norm": 1.0,
        "beta": 0.0,
        "max_completion_length": 6,
        "gradient_accumulation_steps": 1,
        "mask_truncated_completions": False,
    },
    "updates_per_generation": 2,
    "world_size": 2,
    "seed": 0,
    "model": {"name": "tiny", "class": "Qwen2ForCausalLM", "parameters": 1000},
    "data": {"rows": 10, "sha256": "0" * 64, "rows_hashed": 10},
    "versions": {"python": "3.11"},
    "git": {"commit": "0" * 40, "dirty": False},
    "hardware": {"cpus": 2, "gpus": []},
    "run": "abc",
    "tokenizer": "tokenizer",
}
METRICS: dict[str, Any] = {
    "reward": 0.5,
    "reward_std": 0.1,
    "loss": 0.01,
    "grad_norm": 1.0,
    "learning_rate": 1e-6,
    "entropy": 0.5,
    "objective/kl/old": 0.01,
    "objective/fraction/left": 0.1,
    "completions/mean_length": 4.0,
    "completions/clipped_ratio": 0.1,
    "eval/addition/avg@4": 0.5,
    "frac_reward_zero_std": 0.0,
}
_ESTIMATE = {"value": 0.5, "se": 0.1, "low": 0.3, "high": 0.7}
RESULTS: dict[str, Any] = {
    "schema": "dgpo.evaluation/1",
    "model": "tiny",
    "backend": {"name": "transformers", "versions": {"torch": "2"}},
    "sampling": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0, "greedy": True},
    "prompt": {"template": "{problem}"},
    "versions": {"dgpo": "0", "python": "3.11"},
    "benchmarks": {
        "addition": {
            "problems": 3,
            "grader": "exact",
            "data": {"sha256": "0" * 64, "rows": 3},
            "estimates": {"greedy": _ESTIMATE, "avg@2": _ESTIMATE},
            "rates": {"truncated": 0.0, "mean_tokens": 3.0, "no_answer": 0.0},
            "per_problem": [{"id": str(i), "n": 2, "correct": i % 3, "greedy": i % 2} for i in range(3)],
            "excluded": [],
        }
    },
    "average": {"greedy": {"value": 0.5, "se": 0.1}},
    "timing": {"completions": 6, "seconds": 1.0},
}


def damages() -> Iterator[Damage]:
    """All of them, in a fixed order."""
    for name in ("record/run.json", "record/metrics.jsonl", "results.json", "record/tokens/update-000002.parquet"):
        yield from _of_bytes(name, 30)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        yield from _of_bytes(f"record/tokenizer/{name}", 8)
    yield from _of_json("record/run.json")
    yield from _of_json("results.json")
    yield from _of_json("record/tokenizer/tokenizer_config.json", every=5)
    yield from _of_json("record/tokenizer/tokenizer.json", every=7)
    for line in (0, 2):
        yield from _of_json("record/metrics.jsonl", line=line)
    yield from _of_parquet("record/tokens/update-000002.parquet")


def _of_bytes(name: str, flips: int) -> Iterator[Damage]:
    def with_content(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

    def flip(content: bytes, seed: int) -> bytes:
        changed, dice = bytearray(content), random.Random(seed)
        for _ in range(dice.choice((1, 3, 20))):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)

    def into_a_folder(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    yield Damage(f"{name}: empty", with_content(lambda content: b""))
    yield Damage(f"{name}: zeros", with_content(lambda content: bytes(len(content))))
    yield Damage(f"{name}: a folder", into_a_folder)
    yield Damage(f"{name}: deeply nested", with_content(lambda content: b"[" * 100_000))
    yield Damage(f"{name}: UTF-16", with_content(lambda content: content.decode("latin-1").encode("utf-16")))
    for part in (1, 3, 5, 7, 9):
        yield Damage(
            f"{name}: cut to {part}/10", with_content(lambda content, part=part: content[: len(content) * part // 10])
        )
    for seed in range(flips):
        yield Damage(
            f"{name}: bytes changed, seed {seed}", with_content(lambda content, seed=seed: flip(content, seed))
        )


def _of_json(name: str, line: int | None = None, every: int = 1) -> Iterator[Damage]:
    def edit(folder: Path, path: tuple[Any, ...], value: Any) -> None:
        lines = (folder / name).read_text().splitlines() if line is not None else [(folder / name).read_text()]
        document = json.loads(lines[line or 0])
        lines[line or 0] = json.dumps(replaced(document, path, value))
        (folder / name).write_text("\n".join(lines) + "\n")

    if name == "record/run.json":
        example: Any = RUN_JSON
    elif name == "results.json":
        example = RESULTS
    elif line is not None:
        example = {"event": "begin", "step": 0} if line == 0 else {"step": 1, **METRICS}
    else:
        example = _of_the_tokenizer(Path(name).name)
    number = 0
    for path in places(example):
        for value in (*WRONG, DELETED):
            number += 1
            if number % every:
                continue
            word = "deleted" if value is DELETED else repr(value)[:30]
            yield Damage(
                f"{name}{'' if line is None else f':{line + 1}'}: {'.'.join(map(str, path)) or 'all'} = {word}",
                lambda folder, path=path, value=value: edit(folder, path, value),
            )


@cache
def _of_the_tokenizer(name: str) -> Any:
    with TemporaryDirectory() as folder:
        character_tokenizer().save_pretrained(folder)
        return json.loads((Path(folder) / name).read_text())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, itself included."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            yield from places(inner, (*path, number))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place, or without it."""
    if not path:
        return {} if value is DELETED else value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def _of_parquet(name: str) -> Iterator[Damage]:
    def with_table(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            parquet.write_table(change(parquet.read_table(folder / name)), folder / name, compression="zstd")

        return apply

    def column(of: str, values: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda table: table.set_column(table.column_names.index(of), of, values(table.column(of)))

    names = (
        "response",
        "group",
        "position",
        "token_id",
        "logprob",
        "old_logprob",
        "advantage",
        "rollout_logprob",
        "entropy",
        "sum_pi_squared",
    )
    for of in names:
        yield Damage(f"{name}: no {of}", with_table(lambda table, of=of: table.drop_columns([of])))
        yield Damage(f"{name}: {of} twice", with_table(lambda table, of=of: table.append_column(of, table.column(of))))
        for word, values in VALUES.items():
            yield Damage(f"{name}: {of} is {word}", with_table(column(of, values)))
    yield Damage(f"{name}: no rows", with_table(lambda table: table.slice(0, 0)))
    yield Damage(f"{name}: every row twice", with_table(lambda table: pa.concat_tables([table, table])))
    yield Damage(f"{name}: no metadata", with_table(lambda table: table.replace_schema_metadata(None)))
    yield Damage(
        f"{name}: metadata is no JSON", with_table(lambda table: table.replace_schema_metadata({"dgpo": b"\xff{"}))
    )

    def about(path: tuple[Any, ...], value: Any) -> Callable[[Any], Any]:
        def change(table: Any) -> Any:
            found = json.loads(table.schema.metadata[b"dgpo"])
            return table.replace_schema_metadata({"dgpo": json.dumps(replaced(found, path, value))})

        return change

    keys = ("schema", "update", "generation", "index", "rank", "world_size", "totals")
    for path in [(), *((key,) for key in keys), ("totals", "tokens"), ("totals", "sequences")]:
        for value in (*WRONG, DELETED):
            word = "deleted" if value is DELETED else repr(value)[:30]
            yield Damage(f"{name}: metadata {'.'.join(path) or 'all'} = {word}", with_table(about(path, value)))


def _numbers(value: float, kind: Any) -> Callable[[Any], Any]:
    return lambda column: pa.array([value] * len(column), kind)


VALUES: dict[str, Callable[[Any], Any]] = {
    "negative": lambda column: pa.array([-1] * len(column), column.type),
    "zero": lambda column: pa.array([0] * len(column), column.type),
    "huge": _numbers(2**31 - 1, pa.int32()),
    "beyond 32 bits": _numbers(2**62, pa.int64()),
    "float64": lambda column: pa.array([float(v or 0) for v in column.to_pylist()], pa.float64()),
    "infinite": _numbers(float("inf"), pa.float32()),
    "NaN": _numbers(float("nan"), pa.float32()),
    "null": lambda column: pa.nulls(len(column), column.type),
    "null in part": lambda column: pa.array([None, *column.to_pylist()[1:]], column.type),
    "text": lambda column: pa.array(["x"] * len(column)),
    "lists": lambda column: pa.array([[1]] * len(column)),
    "one huge": lambda column: pa.array(
        [*column.to_pylist()[:-1], 2**30 if pa.types.is_integer(column.type) else 1e30], column.type
    ),
}


def damaged(healthy_folder: Path, folder: Path, damage: Damage) -> Path:
    """A damaged copy of the healthy files."""
    shutil.copytree(healthy_folder, folder)
    damage.apply(folder)
    return folder
