"""The format of prompts: one object, recorded in every result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """A template for every problem, and whether the tokenizer's chat template is applied to it.

    Args:
        name: name in results and tables.
        template: text that contains `{problem}` at least once. Other braces, such as LaTeX's, are text.
        system: a system message; needs `chat=True`, because plain text has no place for it.
        chat: True: the prompt is a conversation, for tokenizers with a chat template. False: plain text. None: a
            conversation if the tokenizer has a chat template; `resolve` decides it, and until then prompts are text.

    Raises:
        ValueError: an empty name, a template without `{problem}`, or a system message without `chat=True`.
    """

    name: str
    template: str
    system: str | None = None
    chat: bool | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("PromptFormat: name = '' is not allowed; results are recorded under it")
        if "{problem}" not in self.template:
            raise ValueError(
                f"PromptFormat {self.name!r}: the template {self.template!r} does not contain '{{problem}}'"
            )
        if self.system is not None and self.chat is not True:
            raise ValueError(
                f"PromptFormat {self.name!r}: system = {self.system!r} with chat = {self.chat}; a system message needs "
                "chat = True"
            )

    def render(self, problem: str) -> str | Messages:
        """The prompt of one problem: text, or messages if `chat` is True."""
        # not str.format: the braces of LaTeX are text
        text = self.template.replace("{problem}", problem)
        if not self.chat:
            return text
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": text}]

    def resolve(self, tokenizer: Any) -> PromptFormat:
        """The same format, with `chat=None` replaced by whether this tokenizer has a chat template.

        Raises:
            ValueError: `chat` is True and the tokenizer has no chat template.
        """
        there = getattr(tokenizer, "chat_template", None) is not None
        if self.chat and not there:
            raise ValueError(
                f"PromptFormat {self.name!r} has chat = True, but the tokenizer has no chat template; set chat = False"
            )
        return replace(self, chat=there) if self.chat is None else self

    def describe(self, tokenizer: Any = None) -> dict[str, Any]:
        """The description of prompts in a result, JSON-ready.

        Args:
            tokenizer: the tokenizer of the prompts; None if unknown.

        Returns:
            `name`, `template`, `system`, `chat` (resolved if there is a tokenizer), and `chat_template`: None without a
            tokenizer, otherwise `present` and the `sha256` of its text (UTF-8; several templates as sorted JSON).
        """
        described = self if tokenizer is None else self.resolve(tokenizer)
        return {
            "name": self.name,
            "template": self.template,
            "system": self.system,
            "chat": described.chat,
            "chat_template": None if tokenizer is None else _chat_template(tokenizer),
        }


def _chat_template(tokenizer: Any) -> dict[str, Any]:
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return {"present": False, "sha256": None}
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True, ensure_ascii=False)
    return {"present": True, "sha256": hashlib.sha256(text.encode()).hexdigest()}


PLAIN = PromptFormat(name="plain", template="{problem}")
"""Only the problem."""

BOXED = PromptFormat(
    name="boxed", template="{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."
)
"""The instruction of DeepSeekMath's model card, word for word; Qwen2.5-Math has it as its system message."""

PROMPTS = {prompt.name: prompt for prompt in (PLAIN, BOXED)}


def describe_all(formats: Sequence[PromptFormat], tokenizer: Any = None) -> dict[str, Any]:
    """The record of an evaluation: its prompt format, or every format by name."""
    described = {form.name: form.describe(tokenizer) for form in formats}
    return (
        next(iter(described.values())) if len(described) == 1 else {"name": ", ".join(described), "formats": described}
    )
