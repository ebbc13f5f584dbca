"""Checks of the data against the options of a run, before anything is generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from dgpo.counts import counted
from dgpo.training.config import DGPOConfig

IMAGE_COLUMNS = ("image", "images")
"""Columns of a data set that TRL takes for the images of its prompts."""


def check_data(
    config: DGPOConfig, train: Any, evaluation: Any, *, given: bool, environment: bool, conversations: bool
) -> None:
    """Refuse data that this configuration cannot train on.

    Args:
        config: of the run.
        train: the data to train on, as the trainer has it.
        evaluation: the data to evaluate on, several by name, or None.
        given: whether the user gave `train`; otherwise an environment writes the prompts.
        environment: whether an environment takes part in a rollout.
        conversations: whether prompts may be messages: somebody has a template for them.

    Raises:
        ValueError: fewer prompts than one generation takes, or no column of them, for training or evaluation; a first
            prompt that is neither text nor messages, or messages without a chat template; images with an option that
            cannot have them; prompts that do not tell tasks apart, for an advantage that keeps a history by prompt.
    """
    prompts = config.generation_batch_size // config.num_generations
    if hasattr(train, "__len__") and len(train) < prompts:
        raise ValueError(
            f"the data has {counted(len(train), 'prompt')}, but one generation takes {prompts} "
            f"(generation_batch_size = {config.generation_batch_size} completions, num_generations = "
            f"{config.num_generations} of each prompt): no update could be made; set a smaller "
            "steps_per_generation or per_device_train_batch_size"
        )
    advantage = config.make_advantage()
    keeps_history = advantage is not None and "history" in advantage.reads
    option = "dynamic_sampling = True" if config.dynamic_sampling else f"advantage = {config.advantage!r}"
    if (config.dynamic_sampling or keeps_history) and (where := images_of(train)) is not None:
        why = "puts its batches together from text" if config.dynamic_sampling else "identifies prompts by their text"
        raise ValueError(f"{option} {why}, but the {where} of the data holds images; leave the option unset")
    if given and not environment:
        several = evaluation if isinstance(evaluation, dict) else {"": evaluation}
        named = {f"the evaluation data{f' {name!r}' if name else ''}": each for name, each in several.items()}
        for where, each in {"the data": train, **named}.items():
            _check_prompts(where, each, conversations)
    if keeps_history and (not given or "prompt" not in _columns(train)):
        raise ValueError(
            f"{option} keeps statistics by prompt, but the data has no column 'prompt': the prompts of an "
            "environment_factory alone cannot be distinguished; set another advantage"
        )


def columns_for_rewards(config: DGPOConfig, train: Any, evaluation: Any) -> dict[str, list[str] | None]:
    """What a run reads, in words -> its columns; None where they are not known before it is read.

    The evaluation data counts if the run evaluates.
    """
    evaluates = config.eval_strategy != "no" or bool(config.eval_on_start)
    several = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    given = {"the data": train}
    if evaluates:
        given |= {f"the evaluation data{f' {name!r}' if name else ''}": each for name, each in several.items()}
    dropped = config.remove_unused_columns
    return {
        where: None if dropped else getattr(each, "column_names", None)
        for where, each in given.items()
        if each is not None or where == "the data"
    }


def _check_prompts(where: str, data: Any, conversations: bool) -> None:
    """Refuse data without prompts, or whose first prompt cannot be read."""
    if data is None:
        return
    if "prompt" not in (columns := _columns(data)):
        if columns:
            raise ValueError(f"{where} has no column 'prompt'; its columns: {', '.join(columns)}")
        return
    prompt = next(_values(data, "prompt"), "text")
    messages = isinstance(prompt, list) and bool(prompt) and all(isinstance(message, dict) for message in prompt)
    if not messages and not isinstance(prompt, str):
        raise ValueError(f"the first prompt of {where} is {prompt!r}; expected text, or a list of messages")
    if messages and not conversations:
        raise ValueError(
            f"the prompts of {where} are conversations, but the tokenizer has no chat template; train on prompts that "
            "are text, or give the tokenizer a template"
        )


def first_prompt(data: Any) -> Any:
    """The prompt of the first row, text or messages; None where there is none."""
    return next(_values(data, "prompt"), None) if data is not None and "prompt" in _columns(data) else None


def images_of(data: Any) -> str | None:
    """The column of a data set that holds images, in words; None without any.

    An image column without any image does not count. A stream is judged by its first row.
    """
    columns = _columns(data)
    for name in IMAGE_COLUMNS:
        if name in columns and any(_holds(value) for value in _values(data, name)):
            return f"column {name!r}"
    # the rows of a column are of one kind: where the first content is text, so are all others
    if "prompt" in columns and _has_parts(next(_values(data, "prompt"), None)):
        return "column 'prompt'" if any(_shows_image(prompt) for prompt in _values(data, "prompt")) else None
    return None


def _columns(data: Any) -> list[str]:
    # a stream may not know its columns before its first row
    return list(data.column_names or _first(data))


def _first(stream: Any) -> dict[str, Any]:
    return next(iter(stream), {})


def _values(data: Any, column: str) -> Iterator[Any]:
    """The values of a column, images undecoded; of a stream the first."""
    if not isinstance(data, Dataset):
        yield _first(data).get(column)
        return
    # Arrow and not the decoded rows: decoding would load every image
    for batch in data.select_columns([column]).with_format("arrow").iter(100):
        yield from batch.column(column).to_pylist()


def _holds(value: Any) -> bool:
    """False for None, and for a list of nothing else."""
    return any(_holds(inner) for inner in value) if isinstance(value, list) else value is not None


def _has_parts(prompt: Any) -> bool:
    return isinstance(prompt, list) and any(isinstance(message.get("content"), list) for message in prompt)


def _shows_image(prompt: Any) -> bool:
    """True if a message of the prompt has a part of type "image"."""
    return any(part.get("type") == "image" for message in prompt for part in message.get("content") or ())
