"""The interface of back ends: requests in, completions out, in the order in which they finish."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo.counts import counted
from dgpo.evaluation.prompts import Prompt
from dgpo.fields import REQUIRED, Checked, integer, number


@dataclass(frozen=True)
class Completion:
    """The completion of a prompt.

    Attributes:
        text: decoded up to the end token, without special tokens unless they separate thinking from the answer.
        tokens: number of generated tokens, including the end token; None if a server does not report it.
        truncated: whether there is no end token within `max_new_tokens`; None if unknown.
    """

    text: str
    tokens: int | None
    truncated: bool | None


@dataclass(frozen=True)
class Request:
    """One completion to generate.

    Attributes:
        prompt: a text to continue, or chat messages to answer.
        seed: seed of this completion, for back ends that seed every request. It depends on the seed of the run, the
            benchmark, the problem id and the sample number only.
        greedy: take the most likely token at every step, regardless of temperature and top_p.
    """

    prompt: Prompt
    seed: int
    greedy: bool


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How completions are sampled.

    Args:
        samples: n completions per problem; 0 for greedy accuracy alone.
        temperature: sampling temperature, > 0 if there are samples (default 1).
        top_p: nucleus sampling; 1 is the full distribution (default 1).
        max_new_tokens: maximum length of a completion, including its end token.
        seed: sampling seed (default 0).

    Raises:
        ValueError: if a value is out of range.
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
                f"temperature = {self.temperature!r} makes {counted(self.samples, 'equal sample')}; expected a "
                "temperature > 0, or samples = 0 for greedy accuracy alone"
            )


class IncompleteError(ConnectionError):
    """The answer to a request is not a complete response: it ended neither by itself nor at the token limit."""


def truncated_of(finish_reason: Any) -> bool:
    """Whether a completion was truncated at its limit, by its `finish_reason`: `stop` or `length`.

    Raises:
        IncompleteError: for any other reason, such as `abort`, `error`, `content_filter`, `tool_calls` or null.
    """
    if finish_reason not in ("stop", "length"):
        raise IncompleteError(f"finish_reason = {finish_reason!r}; a completion ends by 'stop' or 'length'")
    return bool(finish_reason == "length")


class Backend(ABC):
    """A model that completes requests; a context manager that releases the model.

    Attributes:
        model: name of the model, recorded in the results.
    """

    model: str

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Complete all requests that are not done, as (position in `requests`, completion).

        Args:
            requests: all requests of the run, including those that are done, since batches may depend on all of them.
            sampling: the settings; the requests already contain `samples` and `seed`.
            done: positions to skip.

        Yields:
            the completions finished since the last yield, so that they can be saved. Every position occurs once.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything about the back end that affects its completions, as JSON: recorded, and compared on resuming."""

    def close(self) -> None:  # noqa: B027  (most have nothing to release)
        """Release the model. Nothing can be generated afterwards."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def files_fingerprint(folder: str) -> str | None:
    """Digest of the names, sizes and times of the files of a local model; None for a hub name."""
    path = Path(folder)
    if not path.is_dir():
        return None
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in path.iterdir() if file.is_file()]
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:16]


def template_fingerprint(tokenizer: Any) -> str | None:
    """Digest of a tokenizer's chat template; None if it has none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()[:16]
