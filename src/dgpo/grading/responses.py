"""What a model said: the text of a completion, and of that text its last message after the thinking.

Every reward, grader and task reads responses through this module, so that they agree. Model text is hostile input:
every step is linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

Message = Mapping[str, Any]
"""`role` and `content`: text, None, or a list of parts such as {"type": "text", "text": ...}."""

Completion = str | Message | Sequence[Message]
"""A text; a message; the messages of a conversation, including the results of tools; or the parts of a content."""

_ENDS = (
    "<|im_end|> <|endoftext|> <|eot_id|> <|eom_id|> <|eot|> <|end_of_text|> <|end|> <|return|> <|call|> "
    "<｜end▁of▁sentence｜> <end_of_turn> <turn|> <seed:eos> <|END_RESPONSE|> <|END_OF_TURN_TOKEN|> <eos> <|eos|> "
    "[|endofturn|] </s>"
)
END_OF_TEXT = tuple(_ENDS.split())
"""End tokens of Qwen, Llama, gpt-oss, DeepSeek, Gemma, Seed, Command, Hunyuan, EXAONE and Mistral."""

_BEGIN_OF_TEXT = re.compile(
    r"\s|<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|\[gMASK\]|<sop>|<\|startoftext\|>|<BOS_TOKEN>"
)
"""What may precede the first message of a text that includes the prompt."""

THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>", "<channel|>"),
)
"""Marks that open and close thinking: Qwen, DeepSeek and most others; Magistral; Seed; Kimi; Command; Gemma 4."""

CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
"""gpt-oss's marks of messages; every channel except `final` is thinking."""

_MODEL = {"", "assistant", "model", "chatbot"}
_OTHERS = {"user", "system", "developer", "human"}
_TOOLS = {"tool", "function", "ipython", "observation", "environment"}

_TOOL_RESULT = "<tool_response>"
"""How Qwen's template begins the result of a tool, which it puts into a message of the user."""


_FIXED: dict[str, str] = dict.fromkeys(END_OF_TEXT, "end")
for _opens, _closes in THINKING:
    _FIXED |= {_opens: "opens", _closes: "closes"}


def _fixed(first: str) -> str:
    # without the first character, which the pattern below factors out
    return "|".join(re.escape(token[1:]) for token in _FIXED if token[0] == first)


# each alternative starts with one character, so that the search skips all others at once
_MARK = re.compile(
    rf"""<(?:{_fixed("<")}
      | (?:\|start\|>(?P<role>[^<|]{{0,100}})(?:<(?=\|(?:channel|constrain|message)))?)?
        (?:\|channel\|>(?P<channel>[^<|]{{0,100}})(?:<(?=\|(?:constrain|message)))?)?
        (?:\|constrain\|>[^<|]{{0,100}}<)?\|message\|>
      | (?P<broken>\|start\|>|\|channel\|>)
      | \|im_start\|>(?P<chatml>[^\n<]{{0,100}})\n?
      | \|(?:start_header_id|header_start)\|>(?P<llama>[^<]{{0,100}})<\|(?:end_header_id|header_end)\|>
      | (?:start_of_turn>|\|turn>)(?P<gemma>[^\n<]{{0,100}})\n?
      | \|(?P<phi>assistant|user|system|observation)\|>
      | ｜(?P<deepseek>Assistant|User)｜>
      | (?P<response>\|START_RESPONSE\|>)
    )
    |\[(?:{_fixed("[")})
    |◁(?:{_fixed("◁")})""",
    re.VERBOSE,
)
_ROLES = ("role", "chatml", "llama", "gemma", "phi", "deepseek")

# gpt-oss decoded without its special tokens. A capital letter follows the channel at once, unlike in "analysis: ..."
_BARE_CHANNELS = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?P<glued>[A-Z])?")
_BARE_FINAL = "assistantfinal"

# a header of gpt-oss that has lost its first special tokens
_BARE_HEADER = re.compile(
    r"(?P<role>assistant|user|system|developer|tool)?\W*(?P<channel>analysis|commentary|final)?\Z"
)
_HEADER_LENGTH = 40


def text_of(completion: Completion, name: str = "a completion") -> str:
    """The text of a completion: itself, or the content of the last message; empty if that is not the model's.

    If the content is a list, its text parts are joined; thinking, images and tool calls are not text. A message that
    only calls a tool has no text, and a conversation that ends with the result of a tool has no answer.

    Args:
        completion: text, a message, or messages.
        name: how errors refer to it.

    Raises:
        TypeError: the completion is anything else; the error names its type.
    """
    if isinstance(completion, str):
        return completion
    message: Any = completion
    if _is_list(completion):
        if not completion:
            return ""
        message = {"content": completion} if _is_part(completion[-1]) else completion[-1]
    if not isinstance(message, Mapping):
        expected = 'expected text, or messages such as {"role": "assistant", "content": "..."}'
        raise TypeError(f"{name} is of type {type(completion).__name__}: {completion!r:.80}; {expected}")
    # in messages, unlike in transcripts, a tool has no name of its own: any other role is what a model is called
    if _first(str(message.get("role") or "")) in _OTHERS | _TOOLS:
        return ""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, Mapping) else content
    if not _is_list(parts):
        expected = 'expected text, None, or parts such as {"type": "text", "text": "..."}'
        raise TypeError(f"{name} has a content of type {type(content).__name__}: {content!r:.80}; {expected}")
    return "".join(_part(part, name) for part in parts)


def texts_of(completions: Sequence[Completion]) -> list[str]:
    """`text_of` of each; an error names its index."""
    return [text_of(completion, f"completions[{place}]") for place, completion in enumerate(completions)]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and "text" in value and not value.keys() & {"role", "content"}


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    about = part if isinstance(part, Mapping) else {}
    if about.get("type", "text") not in ("text", "output_text") and isinstance(about["type"], str):
        return ""
    text = about.get("text")
    if text is None and "text" in about:
        return ""
    if not isinstance(text, str):
        expected = 'expected text, or a mapping such as {"type": "text", "text": "..."}'
        raise TypeError(f"{name} has a content with the part {part!r:.80} of type {type(part).__name__}; {expected}")
    return text


def said(response: str) -> str:
    """The part of a response that counts: the text of its last message, after the thinking, up to its end token.

    * Thinking is the text between the marks of `THINKING`, the text before a closing mark whose opening mark the chat
      template wrote, and every channel except `final` (gpt-oss: `<|channel|>analysis<|message|>`).
    * An end token ends the response if nothing or plain text follows. If the header of another message of the model or
      of a tool follows, the response continues there; a message of the user is not the model's. Within thinking, an
      end token is ordinary text.
    * Nothing counts if the response was cut off in its thinking, in a message that is not the model's, or in a header.
    """
    if "<|" not in response and (bare := _BARE_CHANNELS.match(response)):
        if _BARE_FINAL in response:
            return response.rpartition(_BARE_FINAL)[2]
        # cut off in its thinking: a plain text would not continue with a capital at once
        if bare["glued"]:
            return ""
    marks = [_Mark.of(match) for match in _MARK.finditer(response)]
    if not marks:
        return response
    # state: the current message is response[start:end]; `speaks`: it is the model's; `closed`: its thinking has ended;
    # `began`: something other than a prompt was seen, so that a header of the user ends the response
    start, end = 0, len(response)
    speaks, thinks, closed, began = True, False, False, False
    for mark, following, closes in zip(marks, [*marks[1:], None], _closing_ahead(marks), strict=True):
        if mark.kind == "opens":
            thinks = thinks or speaks
        elif mark.kind == "closes" and speaks:
            # also without an opening mark, which the chat template may have put into the prompt
            thinks, closed, start, end = False, True, mark.end, len(response)
        # with a closing mark ahead, this end token still lies within thinking
        elif mark.kind == "end" and speaks and not thinks and (closed or not closes):
            end = mark.start
            if following is None or following.kind != "header":
                break
            if response[mark.end : following.start].strip() and not following.bare:
                break
        elif mark.kind == "header":
            end = min(end, mark.start)
            # headers before any text are those of a prompt in front of the response
            began = began or bool(_BEGIN_OF_TEXT.sub("", response[start:end]))
            if mark.role in _OTHERS and began and not response.startswith(_TOOL_RESULT, mark.end):
                break
            began = began or mark.role in _MODEL
            speaks, thinks, closed = mark.role in _MODEL and mark.channel in ("", "final"), False, False
            start, end = mark.end, len(response)
    return response[start:end] if speaks and not thinks else ""


class _Mark(NamedTuple):
    """A special token of a chat template, or the header of a message with its role and channel."""

    kind: str
    """`end`, `opens`, `closes` or `header`."""

    start: int
    end: int
    role: str
    channel: str

    bare: bool
    """A `<|message|>` alone: the text before it is its header."""

    @classmethod
    def of(cls, match: re.Match[str]) -> _Mark:
        kind = _FIXED.get(match.group(), "header")
        role = _first(next((match[name] for name in _ROLES if match[name]), ""))
        channel = "broken" if match["broken"] else _first(match["channel"] or "")
        if match.group() != "<|message|>":
            return cls(kind, *match.span(), role, channel, False)
        start = match.start()
        # a window of fixed size keeps the whole scan linear
        header = _BARE_HEADER.search(match.string, max(0, start - _HEADER_LENGTH), start)
        # every part of the pattern is optional
        assert header is not None
        return cls(kind, header.start(), match.end(), header["role"] or "", header["channel"] or "", True)


def _first(text: str) -> str:
    return next(iter(text.lower().split()), "")


def _closing_ahead(marks: Sequence[_Mark]) -> list[bool]:
    """For every mark: whether thinking is closed later in its message without being opened before that."""
    found, ahead = [], False
    for mark in reversed(marks):
        found.append(ahead)
        # an end token within thinking is text, and must not hide the closing mark behind it
        if mark.kind != "end":
            ahead = mark.kind == "closes"
    return found[::-1]
