"""One history, written as every framework and logger writes it: for the tests of the readers."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence

Row = Mapping[str, float]
"""Name in TRL's words -> value."""

IN_VERL = {
    "loss": "actor/pg_loss",
    "grad_norm": "actor/grad_norm",
    "reward": "critic/score/mean",
    "kl": "actor/kl_loss",
    "entropy": "actor/entropy",
}


def numbered(history: Sequence[Row]) -> list[dict[str, float]]:
    """With the step of every row, from 1."""
    return [{**row, "step": step} for step, row in enumerate(history, 1)]


def as_trainer_state(history: Sequence[Row], indent: int | None = 2) -> str:
    return json.dumps({"global_step": len(history), "max_steps": 999, "log_history": numbered(history)}, indent=indent)


def as_array(history: Sequence[Row], indent: int | None = None) -> str:
    return json.dumps(numbered(history), indent=indent)


def as_jsonl(history: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in numbered(history))


def as_jsonl_without_steps(history: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in history)


def as_columns(history: Sequence[Row]) -> str:
    rows = numbered(history)
    return json.dumps({name: [row[name] for row in rows] for name in rows[0]})


def as_verl_file(history: Sequence[Row]) -> str:
    """`FileLogger`: orjson writes null for what is not finite."""
    lines = []
    for step, row in enumerate(history, 1):
        data = {IN_VERL[name]: value if math.isfinite(value) else None for name, value in row.items()}
        lines.append(json.dumps({"step": step, "data": data}) + "\n")
    return "".join(lines)


def as_swift(history: Sequence[Row]) -> str:
    return "".join(
        json.dumps({**row, "global_step/max_steps": f"{step}/999"}) + "\n" for step, row in enumerate(history, 1)
    )


def as_console(history: Sequence[Row], *, strings: bool = False) -> str:
    """transformers' `ProgressCallback`: dicts between the bar, floats as strings in newer versions."""
    lines = ["  0%|          | 0/999 [00:00<?, ?it/s]"]
    for step, row in enumerate(history, 1):
        lines.append(f"\r  1%|1         | {step}/999 [00:0{step % 10}<1:00:00,  1.00s/it]")
        lines.append("\r" + " " * 30 + "\r" + str({n: f"{v!r}" if strings else v for n, v in row.items()}))
        lines.append(f"\n\r  1%|1         | {step}/999 [00:0{step % 10}<1:00:00,  1.00s/it]")
    lines.append("\n" + str({"train_runtime": 1.0, "train_loss": 3.0, "reward": 9.0}) + "\n")
    return "".join(lines)


def as_console_of_strings(history: Sequence[Row]) -> str:
    return as_console(history, strings=True)


def as_slime(history: Sequence[Row]) -> str:
    """A dict behind the number of its step."""
    return "".join(f"[2026-01-01 00:00:00] model.py:9 - step {n}: {dict(row)}\n" for n, row in enumerate(history, 1))


def as_skyrl(history: Sequence[Row]) -> str:
    """`ConsoleLogger`: over several lines, with Ray's prefix on each."""
    lines = []
    for step, row in enumerate(history, 1):
        printed = ",\n ".join(f"{name!r}: {value!r}" for name, value in row.items())
        lines += [f"2026-01-01 | INFO | Step {step}: ", *f"{{{printed}}}".split("\n")]
    return "".join(f"\x1b[36m(skyrl_entrypoint pid=12)\x1b[0m {line}\n" for line in lines)


def as_verl_console(history: Sequence[Row], *, numpy: bool = False) -> str:
    lines = []
    for step, row in enumerate(history, 1):
        show = "np.float64({!r})" if numpy else "{!r}"
        parts = [f"{IN_VERL[name]}:{show.format(value)}" for name, value in row.items()]
        lines.append(f"\x1b[36m(TaskRunner pid=7, ip=10.0.0.1)\x1b[0m step:{step} - " + " - ".join(parts) + "\n")
    return "".join(lines)


def as_verl_console_of_numpy(history: Sequence[Row]) -> str:
    return as_verl_console(history, numpy=True)


def as_csv(history: Sequence[Row], prefix: str = "", step: str = "step") -> str:
    text = io.StringIO()
    names = list(history[0])
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([step, *(prefix + name for name in names)])
    for number, row in enumerate(history, 1):
        writer.writerow([number, *(row[name] for name in names)])
    return text.getvalue()


def as_wandb(history: Sequence[Row]) -> str:
    """The export of a chart: the name of the run, and the extremes of what was averaged."""
    text = io.StringIO()
    names = list(history[0])
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    columns = [f"run-a - train/{name}{end}" for name in names for end in ("", "__MIN", "__MAX")]
    writer.writerow(["train/global_step", *columns])
    for number, row in enumerate(history, 1):
        writer.writerow([number, *(row[name] for name in names for _ in range(3))])
    return text.getvalue()


def as_pairs(history: Sequence[Row]) -> str:
    return "".join(
        f"[step {step}] " + " ".join(f"{name}={value!r}" for name, value in row.items()) + "\n"
        for step, row in enumerate(history, 1)
    )


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    name.removeprefix("as_"): made
    for name, made in list(globals().items())
    if name.startswith("as_")  # every writer above
}
"""Format -> its writer."""

VERL = {"verl_file", "verl_console", "verl_console_of_numpy"}


def with_quirks(text: str, chance: random.Random) -> bytes:
    """The same file as other programs would leave it: line ends, blank lines, a byte order mark, another encoding."""
    if chance.random() < 0.3:
        text = text.replace("\n", "\r\n")
    if chance.random() < 0.3 and not text.startswith("["):
        text = "\n\n" + text + "\n"
    encoding = chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])
    return text.encode(encoding)
