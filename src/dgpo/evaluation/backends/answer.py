"""Parse the body of a server's answer."""

from __future__ import annotations

from typing import Any

from dgpo.evaluation.backends.backend import Completion, IncompleteError, truncated_of
from dgpo.files import loads
from dgpo.grading import text_of

REASONING = ("reasoning_content", "reasoning")
"""Fields in which servers return the reasoning separately from the answer."""

MOST_TOKENS = 1 << 31
"""Upper bound on a plausible token count."""


class MalformedError(ValueError):
    """The answer violates the protocol."""


def read_completion(body: str, kind: str, *, chat: bool) -> Completion:
    """The completion in the body of an answer.

    Args:
        body: body of the HTTP response.
        kind: its content type.
        chat: whether it comes from `chat/completions` rather than `completions`.

    Raises:
        MalformedError: if it is not JSON, or fields are missing or of the wrong type.
        IncompleteError: if there is no choice, or it has no text or ended neither by itself nor at the token limit.
    """
    try:
        document = loads(body)
    except ValueError as error:
        start = " ".join(body[:400].split())[:80]
        raise MalformedError(f"it answered with {kind or 'no content type'}, not with JSON: {start!r}") from error
    if not isinstance(document, dict):
        raise MalformedError(f"it answered with a JSON {type(document).__name__}; expected an object with choices")
    if (said := document.get("error")) is not None:
        raise IncompleteError(f"it answered with an error: {said!r:.200}")
    choices = document.get("choices")
    if not isinstance(choices, list):
        raise MalformedError(f"choices = {choices!r:.80} in its answer; expected a list")
    if not choices:
        raise IncompleteError("no choice in its answer; expected one")
    choice = choices[0]
    if not isinstance(choice, dict):
        raise MalformedError(f"choices[0] = {choice!r:.80} in its answer; expected an object")
    tokens = _tokens(document.get("usage"))
    truncated = truncated_of(choice.get("finish_reason"))
    return Completion(_text(choice, chat, truncated), tokens, truncated)


def _text(choice: dict[str, Any], chat: bool, truncated: bool) -> str:
    if not chat:
        if not isinstance(choice.get("text"), str):
            raise MalformedError(f"text = {choice.get('text')!r:.80} in its answer; expected text")
        return str(choice["text"])
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedError(f"message = {message!r:.80} in its answer; expected an object with content")
    content = message.get("content")
    if content is None and not truncated and not any(message.get(name) for name in REASONING):
        raise IncompleteError("its answer has content = null, and no reasoning")
    try:
        # null beside reasoning: the budget or the model ended before the answer began
        return text_of({"content": content})
    except TypeError as error:
        raise MalformedError(f"content = {content!r:.80} in its answer; expected text") from error


def _tokens(usage: Any) -> int | None:
    if usage is None or (isinstance(usage, dict) and usage.get("completion_tokens") is None):
        return None
    count = usage["completion_tokens"] if isinstance(usage, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < MOST_TOKENS:
        raise MalformedError(f"usage = {usage!r:.80} in its answer; expected completion_tokens as a whole number")
    return count
