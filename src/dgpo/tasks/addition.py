"""Two-digit addition: `12+34=` -> `46`. Small enough for a CPU, with a verifiable answer and a real held-out split."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "validation", "test"]
Problem = dict[str, str]


def addition_grade(completion: str, answer: str) -> float:
    """1.0 if the completion is exactly the answer, up to surrounding white space; otherwise 0.0."""
    return float(completion.strip() == answer)


def addition_reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """`addition_grade` of a batch, in the signature of a TRL reward function."""
    return [addition_grade(completion, gold) for completion, gold in zip(completions, answer, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Addition:
    """All 10,000 sums a+b with 0 <= a, b <= 99, split once by `seed` into disjoint parts.

    Args:
        seed: decides which sums go into which split; the default is the split of every figure in the documentation.

    Splits: `train` (9,000), `validation` (500; the starter model stops on it) and `test` (500; only ever evaluated).
    """

    name: ClassVar[str] = "addition"
    max_new_tokens: ClassVar[int] = 5
    """Three digits and the end-of-text token, with one to spare."""

    grade = staticmethod(addition_grade)
    reward = staticmethod(addition_reward)

    seed: int = 0

    def problems(self, split: Split) -> list[Problem]:
        """The problems of one split, as {"prompt": "12+34=", "answer": "46"}, in a fixed random order.

        Raises:
            ValueError: an unknown split.
        """
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}; known: {', '.join(get_args(Split))}")
        pairs = [(a, b) for a in range(100) for b in range(100)]
        random.Random(self.seed).shuffle(pairs)
        part = {"test": pairs[:500], "validation": pairs[500:1000], "train": pairs[1000:]}[split]
        return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in part]

    def dataset(self, split: Split) -> Dataset:
        """The same as a `datasets.Dataset` with the columns `prompt` and `answer`."""
        from datasets import Dataset

        return Dataset.from_list(self.problems(split))
