"""The prompt object: rendering, what it refuses, and what a result says of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest

from dgpo import tasks
from dgpo.tasks import BOXED, PLAIN, PROMPTS, PromptFormat


@dataclass
class Tokenizer:
    """The one attribute of a tokenizer that a prompt depends on."""

    chat_template: Any = None


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}π"


def test_the_well_known_formats() -> None:
    assert PLAIN.render("1+1=") == "1+1="
    assert BOXED.render("What is $x^{2}$?") == (
        "What is $x^{2}$?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert PROMPTS == {"plain": PLAIN, "boxed": BOXED}
    with pytest.raises(dataclasses.FrozenInstanceError):
        BOXED.name = "mine"  # type: ignore[misc]


def test_messages_only_where_chat_is_true() -> None:
    form = PromptFormat(name="mine", template="Q: {problem} ({problem})", chat=True, system="Be brief.")
    assert form.render("{problem}") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: {problem} ({problem})"},
    ]
    for chat in (None, False):
        assert dataclasses.replace(form, chat=chat, system=None).render("x") == "Q: x (x)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "", "template": "{problem}"}, "name = '' is not allowed"),
        ({"name": "mine", "template": "{prompt}"}, r"the template '\{prompt\}' does not contain '\{problem\}'"),
        ({"name": "mine", "template": "{problem}", "system": "s"}, "system = 's' with chat = None"),
        ({"name": "mine", "template": "{problem}", "system": "s", "chat": False}, "needs chat = True"),
    ],
)
def test_formats_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptFormat(**fields)


def test_chat_is_resolved_by_the_tokenizer() -> None:
    assert BOXED.resolve(Tokenizer(TEMPLATE)).chat is True
    assert BOXED.resolve(Tokenizer()).chat is False
    text = dataclasses.replace(BOXED, chat=False)
    assert text.resolve(Tokenizer(TEMPLATE)) is text
    with pytest.raises(ValueError, match="'boxed' has chat = True, but the tokenizer has no chat template"):
        dataclasses.replace(BOXED, chat=True).resolve(Tokenizer())


def test_a_description_records_everything_that_decides_the_prompt() -> None:
    described = BOXED.describe(Tokenizer(TEMPLATE))
    assert described == {
        "name": "boxed",
        "template": BOXED.template,
        "system": None,
        "chat": True,
        "chat_template": {"present": True, "sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest()},
    }
    assert json.loads(json.dumps(described)) == described
    assert BOXED.describe(Tokenizer())["chat_template"] == {"present": False, "sha256": None}
    assert BOXED.describe(Tokenizer())["chat"] is False
    assert BOXED.describe()["chat_template"] is BOXED.describe()["chat"] is None


def test_several_chat_templates_are_hashed_in_any_order() -> None:
    one, two = Tokenizer({"a": "x", "b": "y"}), Tokenizer({"b": "y", "a": "x"})
    assert BOXED.describe(one) == BOXED.describe(two) != BOXED.describe(Tokenizer({"a": "x", "b": "z"}))


def test_a_real_tokenizer() -> None:
    from dgpo.training.starter import character_tokenizer

    tokenizer = character_tokenizer()
    assert PLAIN.describe(tokenizer)["chat_template"]["present"] is False
    tokenizer.chat_template = TEMPLATE
    assert PLAIN.describe(tokenizer)["chat"] is True


# --- make -------------------------------------------------------------------------------------------------------------


def test_make_takes_a_format_its_name_or_chat() -> None:
    assert tasks.make("aime24").prompt == BOXED
    assert tasks.make("aime24", prompt="plain").prompt == PLAIN
    mine = PromptFormat(name="mine", template="{problem}!")
    assert tasks.make("aime24", prompt=mine, chat=True).prompt == dataclasses.replace(mine, chat=True)
    assert tasks.make("aime24", prompt=None, chat=None, data_dir=None) == tasks.make("aime24")
    assert tasks.make("gcd").prompt == PLAIN


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gcd", {"data_dir": "x"}, "task 'gcd' has no option 'data_dir'; its options: seed"),
        ("gcd", {"chat": True}, "task 'gcd' has no option 'chat'"),
        ("aime24", {"seeds": 1}, "task 'aime24' has no option 'seeds'"),
        ("aime24", {"prompt": "boxd"}, "unknown prompt 'boxd', did you mean 'boxed'"),
        ("aime-24", {}, "unknown task 'aime-24', did you mean 'aime24'"),
        ("reasoning_gim:gcd", {}, "did you mean 'reasoning_gym:NAME'"),
        (
            "aime24",
            {"data_dir": "x", "revision": "abc"},
            "revision = 'abc' names a commit of a hub data set, but data_dir = 'x'",
        ),
    ],
)
def test_make_names_what_does_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.make(name, **options)


def test_options_are_those_that_make_takes() -> None:
    assert tasks.options("gcd") == ("seed",)
    assert set(tasks.options("gsm8k")) == {"data_dir", "prompt", "chat", "exclude_known_wrong", "revision"}
    gym = {"seed", "train_size", "validation_size", "test_size", "prompt", "chat"}
    assert set(tasks.options("reasoning_gym:gcd,max_value=9")) == gym
