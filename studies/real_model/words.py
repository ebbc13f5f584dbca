"""Word problems of one or two steps with small numbers, as chats, for a small language model to learn on.

    python studies/real_model/words.py OUT        # OUT/train.jsonl and OUT/test.jsonl

A row has `id`, `prompt` (messages: an instruction, one solved example, the problem) and `answer`. The numbers of a test
problem occur, in this order, in no training problem of the same kind. Its arithmetic may have been trained: in another
kind, or with the numbers exchanged. So it was for all test problems of `gain` and `more` and two thirds of `times`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from dgpo.files import write_text_atomic

NUMBERS = range(2, 13)
NAMES = ("Ann", "Ben", "Jack", "Lucy", "Maria", "Mia", "Nina", "Omar", "Paul", "Tom")
THINGS = ("apples", "books", "cards", "coins", "cookies", "marbles", "pencils", "stickers")
TEST_SHARE = 0.25
TRAIN, TEST = 1200, 128

INSTRUCTION = "Solve the problem."
EXAMPLE = (
    "Sam has 7 pens. Kim gives Sam 5 more pens. How many pens does Sam have now?",
    r"Sam has 7 + 5 = 12 pens. The answer is \boxed{12}.",
)

KINDS = {
    "gain": "{a} has {x} {o}. {b} gives {a} {y} more {o}. How many {o} does {a} have now?",
    "lose": "{a} has {sum} {o} and gives {y} of them to {b}. How many {o} does {a} have left?",
    "more": "{a} has {x} {o}. {b} has {y} more {o} than {a}. How many {o} does {b} have?",
    "times": "{a} buys {x} boxes with {y} {o} in each box. How many {o} does {a} buy?",
    "share": "{a} shares {product} {o} equally among {y} friends. How many {o} does each friend get?",
    "two": "{a} has {x} {o}. {a} buys {y} more {o} and gives {z} {o} to {b}. How many {o} does {a} have now?",
}
"""Kind -> text; x, y and z are the numbers, `sum` is x + y and `product` x·y."""


def solution(kind: str, x: int, y: int, z: int) -> int:
    """The answer to a problem of this kind with these numbers."""
    return {"gain": x + y, "lose": x, "more": x + y, "times": x * y, "share": x, "two": x + y - z}[kind]


def numbers(kind: str) -> list[tuple[int, int, int]]:
    """All (x, y, z) of a kind: z is 0 except in problems of two steps, where something is left."""
    thirds = NUMBERS if kind == "two" else (0,)
    return [(x, y, z) for x, y, z in product(NUMBERS, NUMBERS, thirds) if z < x + y]


def rows(split: str, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` problems of "train" or "test", the kinds in turn, without repetition of a kind with its numbers.

    Raises:
        ValueError: more problems of a kind are asked for than there are.
    """
    random_ = random.Random(f"{seed} {split}")
    found = {kind: _split(kind, split, seed) for kind in KINDS}
    for index in range(count):
        kind = list(KINDS)[index % len(KINDS)]
        at = index // len(KINDS)
        if at == len(found[kind]) and split == "test":
            raise ValueError(f"there are {at} test problems of kind {kind!r}; ask for fewer than {count}")
        x, y, z = found[kind][at % len(found[kind])]  # a training problem may come again, with other names
        a, b = random_.sample(NAMES, 2)
        text = KINDS[kind].format(a=a, b=b, o=random_.choice(THINGS), x=x, y=y, z=z, sum=x + y, product=x * y)
        yield {"id": f"{split}-{kind}-{index}", "prompt": chat(text), "answer": str(solution(kind, x, y, z))}


def chat(problem: str) -> list[dict[str, str]]:
    """The messages before the model's answer."""
    asked, answered = EXAMPLE
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": problem},
    ]


def write(out: Path) -> tuple[Path, Path]:
    """Write `train.jsonl` and `test.jsonl` under `out` and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "train.jsonl", out / "test.jsonl"
    for path, split, count in zip(paths, ("train", "test"), (TRAIN, TEST), strict=True):
        write_text_atomic(path, "".join(json.dumps(row) + "\n" for row in rows(split, count)))
    return paths


def _split(kind: str, split: str, seed: int) -> list[tuple[int, int, int]]:
    every = numbers(kind)
    random.Random(f"{seed} {kind}").shuffle(every)
    held_out = round(TEST_SHARE * len(every))
    return every[:held_out] if split == "test" else every[held_out:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    print(*write(parser.parse_args().out))
