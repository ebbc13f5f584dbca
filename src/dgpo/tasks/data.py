"""Problems from files and the hub: a data set with the columns `prompt` and `answer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo.counts import counted

if TYPE_CHECKING:
    from datasets import Dataset

PROMPT_COLUMNS = ("prompt", "problem", "question")
FIELDS = ("prompt", "answer", "id")
_READERS = {".jsonl": "from_json", ".json": "from_json", ".parquet": "from_parquet"}


def is_file(name: str) -> bool:
    """Whether `load` treats the name as a file, which has no splits, and not as a hub data set."""
    return Path(name).suffix in _READERS


def load(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    chat: bool = False,
) -> Dataset:
    """A data set to train or evaluate on.

    Args:
        name: a local .jsonl, .json or .parquet file, or the name of a data set on the Hugging Face hub.
        split: split of the hub data set; a local file is one split.
        config: configuration of the hub data set, if it has several.
        columns: the columns that hold `prompt`, `answer` and `id`, such as {"prompt": "question", "answer": "final"}.
            An existing column with the name of a mapped field is dropped.
        template: text that contains `{prompt}`, such as an instruction to box the answer; applied to every prompt.
        chat: make each prompt a conversation of one user message, for models with a chat template.

    Returns:
        A `datasets.Dataset` with `prompt` (from `prompt`, `problem` or `question`) and `answer`, and its other columns.
        Answers are text; solutions that end with `#### 72`, as in GSM8K, are kept, because the graders read them.

    Raises:
        ValueError: a missing column, an unknown field in `columns`, two fields mapped to one column, missing values, an
            answer that is not a single value, an unknown file type, a file that cannot be read, a config for a file, a
            template without `{prompt}`, or `template` or `chat` for prompts that are already conversations.
        OSError: a missing file, or a hub data set that cannot be loaded.
    """
    from datasets import Value

    if template is not None and "{prompt}" not in template:
        raise ValueError(f"the prompt template {template!r} does not contain '{{prompt}}'")
    data = _renamed(_read(name, split, config), name, columns or {})
    source = next((column for column in PROMPT_COLUMNS if column in data.column_names), None)
    if source is None or "answer" not in data.column_names:
        lacking = "answer column" if source is not None else f"prompt column (one of {', '.join(PROMPT_COLUMNS)})"
        raise ValueError(f"data set {name!r} has no {lacking}; its columns: {', '.join(data.column_names)}")
    for column in (source, "answer"):
        if missing := data.data.column(column).null_count:
            raise ValueError(f"data set {name!r} has no {column} in {missing} of its {counted(len(data), 'row')}")
    if source != "prompt":
        data = data.rename_column(source, "prompt")

    def shape(row: dict[str, Any]) -> dict[str, Any]:
        prompt, answer = row["prompt"], row["answer"]
        if not isinstance(answer, str | int | float):
            raise ValueError(f"data set {name!r} has the answer {answer!r}; expected text or a number")
        if (template is not None or chat) and not isinstance(prompt, str):
            raise ValueError(f"the prompts of data set {name!r} are conversations: omit prompt_template and chat")
        if template is not None:
            prompt = template.replace("{prompt}", prompt)
        return {"prompt": [{"role": "user", "content": prompt}] if chat else prompt, "answer": str(answer)}

    if template is None and not chat and data.features["answer"] == Value("string"):
        return data
    features = data.features.copy()
    features["answer"] = Value("string")  # explicit, because map would convert "46" back to a number
    if chat:
        features["prompt"] = [{"role": Value("string"), "content": Value("string")}]
    return data.map(shape, features=features)


def _renamed(data: Dataset, name: str, columns: Mapping[str, str]) -> Dataset:
    for field, column in columns.items():
        if field not in FIELDS:
            raise ValueError(f"columns: {field!r} = {column!r} is not a field; expected one of {', '.join(FIELDS)}")
        if column not in data.column_names:
            raise ValueError(
                f"columns: data set {name!r} has no column {column!r} for {field!r}; its columns: "
                f"{', '.join(data.column_names)}"
            )
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"columns: {dict(columns)} maps two fields to one column")
    others = [field for field, column in columns.items() if field != column and field in data.column_names]
    # a column with the name of one field may be the source of another: prompt=answer answer=prompt
    data = data.remove_columns([field for field in others if field not in columns.values()])
    return data.rename_columns({column: field for field, column in columns.items() if field != column})


def _read(name: str, split: str, config: str | None) -> Dataset:
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(name).expanduser()
    if path.suffix in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f"no such data file: {name!r}")
        if config is not None:
            raise ValueError(f"config = {config!r} names a part of a hub data set, but {name!r} is a local file")
        try:
            return getattr(Dataset, _READERS[path.suffix])(str(path))
        except (DatasetGenerationError, ValueError, StopIteration) as error:  # the last two for a file without rows
            reason = error.__cause__ or str(error) or "no rows"
            raise ValueError(f"cannot read the data file {name!r}: {reason}") from error
    if path.exists():
        raise ValueError(f"{name!r} is not a supported data file; expected one of {', '.join(_READERS)}")
    return load_dataset(name, config, split=split)
