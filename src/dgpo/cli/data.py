"""Where the problems of `dgpo train` and `dgpo eval` come from: a task, or a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgpo import tasks
from dgpo.cli.arguments import argument
from dgpo.tasks.data import load

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class DataArguments:
    """Flags that name a task or a data set; exactly one of the two."""

    task: str | None = argument(
        None, f"A task: {', '.join(tasks.TASKS)}, a benchmark or reasoning_gym:NAME; `dgpo tasks` lists them."
    )
    data_dir: str | None = argument(None, "Folder with the JSONL files of benchmarks (default: the hub).")
    dataset: str | None = argument(
        None, "Hub data set or .jsonl/.parquet file with the columns prompt (or problem, question) and answer."
    )
    dataset_config: str | None = argument(None, "Configuration of a hub data set.")
    dataset_split: str | None = argument(
        None, "Split of a hub data set (default: train for training, test for evaluation)."
    )
    columns: list[str] | None = argument(
        None, "Column names of a data set, as field=column: prompt=question answer=final id=uid."
    )
    prompt_template: str | None = argument(None, "Template for each prompt of a data set; contains {prompt}.")
    chat: bool = argument(
        False,
        "Send each prompt as a user message, through the chat template. Default for benchmarks and reasoning-gym: if "
        "the tokenizer has one, which a server is assumed to have.",
    )
    no_chat: bool = argument(False, "Send prompts of benchmarks and reasoning-gym as plain text.")

    def check_source(self) -> None:
        """Check these flags by themselves, before anything is loaded.

        Raises:
            ValueError: neither or both, an unknown task, or options of data sets beside a task.
        """
        if (self.task is None) == (self.dataset is None):
            raise ValueError(f"give either --task or --dataset; got task = {self.task!r}, dataset = {self.dataset!r}")
        if self.chat and self.no_chat:
            raise ValueError("chat and no_chat contradict each other; give one of them")
        if self.task is None:
            if self.data_dir is not None:
                raise ValueError(f"data_dir = {self.data_dir!r} has no meaning with a data set; --dataset takes a file")
            if self.no_chat:
                raise ValueError("no_chat = True has no meaning with a data set, whose prompts are sent as they are")
            return
        known = tasks.options(self.task)
        for option in ("dataset_config", "dataset_split", "columns", "prompt_template", "chat"):
            if getattr(self, option) and option not in known:
                raise ValueError(
                    f"{option} = {getattr(self, option)!r} has no meaning with task = {self.task!r}, which makes its "
                    "own prompts; it is an option of --dataset"
                )
        if self.no_chat and "chat" not in known:
            raise ValueError(f"no_chat = True has no meaning with task = {self.task!r}, whose prompts are plain text")

    @property
    def chat_is_open(self) -> bool:
        """Whether the tokenizer decides if prompts are conversations: for benchmarks and reasoning-gym, by default."""
        return not (self.chat or self.no_chat) and self.task is not None and "chat" in tasks.options(self.task)

    def note_of_plain_text(self, prompt: Any, tokenizer: Any) -> str | None:
        """A hint where prompts of a data set are texts and the tokenizer, if there is one, has a chat template."""
        if self.dataset is None or self.chat or not isinstance(prompt, str):
            return None
        if getattr(tokenizer, "chat_template", None) is None:
            return None
        return (
            "note: the prompts are plain text, although the tokenizer has a chat template; with --chat each is a user "
            "message"
        )

    def make_task(self, tokenizer: Any = None) -> tasks.Task | None:
        """The task; None if it is a data set. Raises ValueError as `check_source` does.

        Args:
            tokenizer: of the model, for a task of which `chat_is_open`: decides whether its prompts are conversations.
        """
        self.check_source()
        if self.task is None:
            return None
        chat = True if self.chat else False if self.no_chat else None
        if chat is None and tokenizer is not None:
            chat = tokenizer.chat_template is not None
        return tasks.make(self.task, data_dir=self.data_dir, chat=chat)

    def load_dataset(self, split: str) -> Dataset:
        """The data set, of the user's split or else of this one; see `dgpo.tasks.data.load`."""
        assert self.dataset is not None
        return self.load_split(self.dataset, self.dataset_split or split)

    def load_split(self, name: str, split: str) -> Dataset:
        """A split of a hub data set, or a file, with the prompts and columns of these flags."""
        return load(
            name,
            split,
            config=self.dataset_config if name == self.dataset else None,
            columns=_mapping(self.columns),
            template=self.prompt_template,
            chat=self.chat,
        )


def _mapping(columns: list[str] | None) -> dict[str, str] | None:
    if columns is None:
        return None
    mapping = {}
    for word in columns:
        key, separator, column = word.partition("=")
        if not separator or not column or key in mapping:
            raise ValueError(f"columns: cannot use {word!r}; expected field=column, each field once")
        mapping[key] = column
    return mapping
