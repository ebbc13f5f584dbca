"""What generates completions for an evaluation: requests in, completions out, in the order in which they finish."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo.evaluation.prompts import Prompt
from dgpo.fields import REQUIRED, Checked, integer, number


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: decoded up to the end token, without special tokens unless they tell thinking from the answer.
        tokens: generated tokens, the end token included; None where a server does not say.
        truncated: no end token within `max_new_tokens`; None where it is not known.
    """

    text: str
    tokens: int | None
    truncated: bool | None


@dataclass(frozen=True)
class Request:
    """One completion to generate.

    Attributes:
        prompt: a text to continue, or the messages of a chat to answer.
        seed: of this completion alone, for backends that seed every request; it depends on the run's seed, the
            benchmark, the problem's id and the number of the sample, not on what else is evaluated.
        greedy: the most likely token at every step, whatever temperature and top_p say.
    """

    prompt: Prompt
    seed: int
    greedy: bool


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How completions are drawn.

    Args:
        samples: n completions per problem; 0 for greedy accuracy alone.
        temperature: of the samples, > 0 if there are any.
        top_p: nucleus of the samples; 1 is the whole distribution.
        max_new_tokens: budget of one completion, its end token included.
        seed: of the samples.

    Raises:
        ValueError: a value out of range, with the name of the setting.
    """

    samples: int = integer(8, "[0, inf)")
    temperature: float = number(1.0, "[0, inf)")
    top_p: float = number(1.0, "(0, 1]")
    max_new_tokens: int = integer(REQUIRED, "[1, inf)")
    seed: int = integer(0, "[0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples and self.temperature == 0:
            raise ValueError(
                f"temperature = {self.temperature!r} makes {self.samples} equal samples; expected a temperature > 0, "
                "or samples = 0 for greedy accuracy alone"
            )


class IncompleteError(ConnectionError):
    """What came back for a request is no completion: it ended neither by itself nor at its limit of tokens."""


def truncated_of(finish_reason: Any) -> bool:
    """Whether a completion was cut off at its limit, by its `finish_reason`: `stop` or `length`.

    Raises:
        IncompleteError: anything else, such as `abort`, `error`, `content_filter`, `tool_calls` or null.
    """
    if finish_reason not in ("stop", "length"):
        raise IncompleteError(f"finish_reason = {finish_reason!r}; a completion ends by 'stop' or 'length'")
    return bool(finish_reason == "length")


class Backend(ABC):
    """A model that completes requests; a context manager that lets go of the model.

    Attributes:
        model: name of the model, for the records.
    """

    model: str

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Completions of all requests that are not done, as (position in `requests`, completion).

        Args:
            requests: all requests of the run, also those that are done: what is generated side by side may depend on
                the whole.
            sampling: how; `samples` and `seed` are in the requests already.
            done: positions to leave out.

        Yields:
            what has finished since the last time, so that it can be kept. Every position comes once.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything about the backend that decides its completions, as JSON: recorded, and compared on resumption."""

    def close(self) -> None:  # noqa: B027  (most have nothing to let go of)
        """Let go of the model. Nothing can be generated afterwards."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def files_fingerprint(folder: str) -> str | None:
    """Digest of the names, sizes and times of the files of a local model; None for a name of the hub."""
    path = Path(folder)
    if not path.is_dir():
        return None
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in path.iterdir() if file.is_file()]
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:16]


def template_fingerprint(tokenizer: Any) -> str | None:
    """Digest of a tokenizer's chat template; None if it has none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()[:16]
