"""Tasks of the package reasoning-gym (an optional extra), with disjoint splits and exact scorers of our own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo.fields import Checked, integer
from dgpo.grading import texts_of
from dgpo.installation import require
from dgpo.registry import did_you_mean
from dgpo.tasks.content import content_hash
from dgpo.tasks.gym_scorers import SCORERS, final_text
from dgpo.tasks.gym_table import GRADED, REFUSED
from dgpo.tasks.procedural import SPLITS
from dgpo.tasks.prompt import BOXED, PromptFormat
from dgpo.tasks.task import Grade, Problem, check_split, dataset_of

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "reasoning_gym:"
SEED_STEP = 10_000_000
"""Item i of a data set comes from Random(seed + i): seeds this far apart share no items, for sizes below it."""
MAX_SEED = 100


@dataclass(frozen=True, kw_only=True)
class GymTask(Checked):
    """A task of reasoning-gym.

    Args:
        task: its name in the package.
        config: its configuration there, such as {"max_value": 100}; not `seed` and `size`.
        seed: different seeds have different items.
        train_size, validation_size, test_size: items requested. A split may hold fewer: repeated questions and
            questions of a held-out split are dropped (`provenance` counts them).
        prompt: format of the prompts.

    Raises:
        ValueError: an unknown task, one that cannot be graded exactly (the error says why), or a value out of range.
        ImportError: reasoning-gym is not installed; raised when problems are generated.
    """

    kind: ClassVar[str] = "reasoning_gym"
    splits: ClassVar[tuple[str, ...]] = SPLITS
    max_new_tokens: ClassVar[int] = 2048

    task: str
    config: tuple[tuple[str, Any], ...] = ()
    seed: int = integer(0, f"[0, {MAX_SEED}]")
    train_size: int = integer(2000, f"[1, {SEED_STEP})")
    validation_size: int = integer(500, f"[1, {SEED_STEP})")
    test_size: int = integer(500, f"[1, {SEED_STEP})")
    prompt: PromptFormat = BOXED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task in REFUSED:
            raise ValueError(f"{PREFIX}{self.task} cannot be graded exactly: {REFUSED[self.task]}")
        if self.task not in GRADED:
            raise ValueError(
                f"unknown task {PREFIX}{self.task}{did_you_mean(self.task, GRADED)}; "
                f"`dgpo tasks reasoning_gym` lists the {len(GRADED)} that can be graded"
            )
        for key, _ in self.config:
            if key in ("seed", "size"):
                raise ValueError(
                    f"{self.name}: {key!r} cannot be set in the configuration; use seed and {', '.join(_SIZES)}"
                )

    @property
    def name(self) -> str:
        """`reasoning_gym:NAME`, with the configuration: `reasoning_gym:gcd,max_value=50`."""
        return ",".join([PREFIX + self.task, *(f"{key}={value}" for key, value in self.config)])

    @property
    def summary(self) -> str:
        """One line for the listing."""
        return f"{self.task} of the package reasoning-gym"

    @property
    def grade(self) -> Grade:
        """The exact scorer of the task; see `gym_table.How`."""
        return SCORERS[GRADED[self.task]]

    extract = staticmethod(final_text)

    def reward(self, completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        """`grade` of a batch, in the signature of a TRL reward function; a conversation counts by its last message."""
        return [self.grade(text, gold) for text, gold in zip(texts_of(completions), answer, strict=True)]

    def problems(self, split: str) -> list[Problem]:
        """The problems of one split as {"id", "problem", "prompt", "answer"}, in the order of their seeds.

        Raises:
            ValueError: an unknown split, or a configuration that the package rejects.
            ImportError: reasoning-gym is not installed.
        """
        return [
            {
                "id": f"{self.task}-{number}",
                "problem": question,
                "prompt": self.prompt.render(question),
                "answer": answer,
            }
            for number, question, answer in self._make(split).items
        ]

    def dataset(self, split: str) -> Dataset:
        """The same as a `datasets.Dataset` with the columns `prompt` and `answer`. Raises as `problems` does."""
        return dataset_of(self.problems(split))

    def provenance(self, split: str) -> dict[str, Any]:
        """Package version, configuration, seeds, what was dropped, rows and content hash of one split."""
        made = self._make(split)
        return {
            "source": f"reasoning_gym {version('reasoning-gym')}",
            "task": self.task,
            "config": dict(self.config),
            "split": split,
            "seed": self.seed,
            "first_item_seed": self._first(split),
            "rows": len(made.items),
            "dropped_repeats": made.repeats,
            "dropped_held_out": made.held_out,
            "sha256": content_hash((question, answer) for _, question, answer in made.items),
        }

    def _first(self, split: str) -> int:
        # one block of SEED_STEP seeds per split, three blocks per seed of the task
        return SEED_STEP * (len(SPLITS) * self.seed + SPLITS.index(split))

    def _make(self, split: str) -> _Made:
        check_split(self.name, split, self.splits)
        # questions of the test set occur in no other split, those of the validation set not in training
        held_out = {"test": (), "validation": ("test",), "train": ("test", "validation")}[split]
        # generates the other splits first; `_generate` caches them
        seen = frozenset(question for other in held_out for _, question, _ in self._make(other).items)
        size = int(getattr(self, f"{split}_size"))
        return _generate(self.task, self.config, self._first(split), size, seen)


_SIZES = tuple(f"{split}_size" for split in SPLITS)


@dataclass(frozen=True, kw_only=True)
class _Made:
    items: tuple[tuple[int, str, str], ...]
    repeats: int
    held_out: int


@lru_cache(maxsize=16)
def _generate(task: str, config: tuple[tuple[str, Any], ...], first: int, size: int, held_out: frozenset[str]) -> _Made:
    require(f"{PREFIX}NAME needs", "reasoning-gym", "reasoning_gym")
    import reasoning_gym  # type: ignore[import-untyped]

    try:
        data = reasoning_gym.create_dataset(task, seed=first, size=size, **dict(config))
    # TypeError: an unknown key; AssertionError: the package checks configurations by assert
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"reasoning-gym rejects {task} with {dict(config)}: {error}") from error
    items: dict[str, tuple[int, str, str]] = {}
    repeats = dropped = 0
    for number, entry in enumerate(data):
        question, answer = str(entry["question"]), entry["answer"]
        if not isinstance(answer, str):
            raise ValueError(f"item {number} of reasoning-gym's {task} has the answer {answer!r}; expected text")
        if question in held_out:
            dropped += 1
        elif question in items:
            repeats += 1
        else:
            items[question] = (number, question, answer)
    return _Made(items=tuple(items.values()), repeats=repeats, held_out=dropped)


def parse_name(name: str) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """`reasoning_gym:gcd,max_value=50` -> ("gcd", (("max_value", 50),)).

    Values are read as integers, decimals or true/false if possible, otherwise as text.

    Raises:
        ValueError: a part is not key=value, or a key is duplicated.
    """
    task, *parts = name.removeprefix(PREFIX).split(",")
    config: dict[str, Any] = {}
    for part in parts:
        key, separator, text = part.partition("=")
        if not separator or not key.isidentifier():
            raise ValueError(f"cannot read {part!r} in the task {name!r}; expected key=value")
        if key in config:
            raise ValueError(f"duplicate key {key!r} in the task {name!r}")
        config[key] = _value(text)
    return task, tuple(config.items())


def _value(text: str) -> Any:
    if text in ("true", "True", "false", "False"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
