"""Problems from files and the hub: a data set with the columns `prompt` and `answer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

PROMPT_COLUMNS = ("prompt", "problem", "question")
_READERS = {".jsonl": "from_json", ".json": "from_json", ".parquet": "from_parquet"}


def load(name: str, split: str = "train", *, template: str | None = None, chat: bool = False) -> Dataset:
    """A data set to train or evaluate on.

    Args:
        name: a local .jsonl, .json or .parquet file, or the name of a data set on the Hugging Face hub.
        split: split of the hub data set; a local file is one split.
        template: text with `{prompt}` in it that every prompt is put into, such as an instruction to box the answer.
        chat: make each prompt a conversation of one user message, for models with a chat template.

    Returns:
        A `datasets.Dataset` with `prompt` (from `prompt`, `problem` or `question`) and `answer`, and its other columns.

    Raises:
        ValueError: no such column, an unknown file type, or a template without `{prompt}`.
        FileNotFoundError: a file name that does not exist.
    """
    if template is not None and "{prompt}" not in template:
        raise ValueError(f"the prompt template {template!r} does not contain '{{prompt}}'")
    data = _read(name, split)
    source = next((column for column in PROMPT_COLUMNS if column in data.column_names), None)
    if source is None or "answer" not in data.column_names:
        lacking = "answer column" if source is not None else f"prompt column (one of {', '.join(PROMPT_COLUMNS)})"
        raise ValueError(f"data set {name!r} has no {lacking}; its columns: {', '.join(data.column_names)}")
    if source != "prompt":
        data = data.rename_column(source, "prompt")

    def shape(row: dict[str, Any]) -> dict[str, Any]:
        prompt = row["prompt"]
        if template is not None:
            prompt = template.replace("{prompt}", prompt)
        return {"prompt": [{"role": "user", "content": prompt}] if chat else prompt, "answer": str(row["answer"])}

    if template is not None or chat or data.features["answer"].dtype != "string":
        data = data.map(shape)
    return data


def _read(name: str, split: str) -> Dataset:
    from datasets import Dataset, load_dataset

    path = Path(name).expanduser()
    if path.suffix in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f"no such data file: {name!r}")
        return getattr(Dataset, _READERS[path.suffix])(str(path))
    if path.exists():
        raise ValueError(f"{name!r} is not a data file that can be read; expected one of {', '.join(_READERS)}")
    return load_dataset(name, split=split)
