"""What a run cannot do is refused when the trainer is made; what it accepts trains and evaluates."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset, Image
from PIL import Image as Picture
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.data_checks import images_of
from dgpo.training.starter import character_tokenizer, tiny_model

QUESTIONS = [f"{a}+{a}=" for a in range(16)]


def messages(image=False):
    part = {"type": "image"} if image else {"type": "text", "text": "?"}
    return [[{"role": "user", "content": [{"type": "text", "text": q}, part]}] for q in QUESTIONS]


def picture():
    return Picture.new("RGB", (2, 2))


@pytest.mark.parametrize("options", [{"dynamic_sampling": True}, {"advantage": "smooth"}], ids=str)
@pytest.mark.parametrize(
    ("data", "where"),
    [
        (Dataset.from_dict({"prompt": QUESTIONS, "image": [picture()] * 16}), "column 'image'"),
        (Dataset.from_dict({"prompt": QUESTIONS, "images": [[]] * 15 + [[picture()]]}), "column 'images'"),
        (Dataset.from_dict({"prompt": QUESTIONS, "image": ["a.png"] * 16}), "column 'image'"),
        (Dataset.from_dict({"prompt": messages(image=True)}), "column 'prompt'"),
    ],
    ids=["image", "one of images", "paths", "in the prompt"],
)
def test_images(build, options, data, where):
    with pytest.raises(ValueError, match=f"but the {where} of the data holds images"):
        build(DGPOTrainer, data=data, **options)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": QUESTIONS},
        {"prompt": QUESTIONS, "images": [[]] * 16},
        {"prompt": QUESTIONS, "image": [None] * 16},
        {"prompt": messages()},
        {"prompt": [[{"role": "user", "content": q}] for q in QUESTIONS], "imagery": ["a"] * 16},
    ],
)
def test_no_images(columns):
    data = Dataset.from_dict(columns)
    assert images_of(data) is None
    assert images_of(data.to_iterable_dataset()) is None


def test_images_are_found_without_decoding_them(monkeypatch):
    data = Dataset.from_dict({"prompt": QUESTIONS, "image": [picture()] * 16})

    def decoded(*args, **kwargs):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Image, "decode_example", decoded)
    assert images_of(data) == "column 'image'"
    assert images_of(data.select([3, 1])) == "column 'image'"


def test_images_are_no_matter_without_such_an_option(build):
    build(DGPOTrainer, data=Dataset.from_dict({"prompt": QUESTIONS, "image": [picture()] * 16}))


# --- a model that reads images, and one in an environment -------------------------------------------------------------


@pytest.fixture(scope="module")
def llava():
    """A vision-language model of one layer in either part, and its processor."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )
    tokenizer.chat_template = template
    side = {"height": 28, "width": 28}
    features = {"patch_size": 14, "vision_feature_select_strategy": "full"}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side),
        tokenizer,
        num_additional_image_tokens=1,
        chat_template=template,
        **features,
    )
    layer = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {"model_type": "clip_vision_model", "hidden_size": 8, "image_size": 28, "patch_size": 14, **layer}
    text = {"model_type": "llama", "hidden_size": 8, "vocab_size": len(tokenizer), "num_key_value_heads": 1, **layer}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config), processor


@pytest.fixture
def made(quick, digit_reward, tmp_path):
    def made(model, processor, data, trainer_options=None, **options):
        return DGPOTrainer(
            model,
            lambda completions, **_: digit_reward([message["content"] for (message,) in completions]),
            DGPOConfig(output_dir=str(tmp_path), **{**quick, "max_steps": 1, **options}),
            train_dataset=data,
            processing_class=processor,
            **(trainer_options or {}),
        )

    return made


CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
OPTIONS = {
    "dynamic_sampling": {"dynamic_sampling": True, "max_num_gen_batches": 2},
    "smooth": {"advantage": "smooth"},
    "benchmarks": {"eval_benchmarks": ["addition"], "eval_benchmark_kwargs": {"samples": 1, "limit": 2}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_that_could_read_images_trains_on_text(made, llava, name):
    made(*llava, Dataset.from_dict({"prompt": CHATS}), **OPTIONS[name]).train()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_that_reads_images(made, llava, name):
    data = Dataset.from_dict({"prompt": CHATS, "image": [Picture.new("RGB", (28, 28))] * 16})
    if name == "benchmarks":
        made(*llava, data, **OPTIONS[name]).train()
        return
    with pytest.raises(ValueError, match="but the column 'image' of the data holds images"):
        made(*llava, data, **OPTIONS[name])


class Counter:
    """An environment that writes the prompt and owns a reward."""

    def reset(self, **row):
        self.total = 0
        return "count"

    def add(self, number: int) -> int:
        """Add to the total.

        Args:
            number: what to add.
        """
        self.total += number
        return self.total

    def get_reward(self):
        self.calls = getattr(self, "calls", id(self)) + 1
        return float(self.calls % 97)


@pytest.mark.parametrize(
    "data", [None, pytest.param(Dataset.from_dict({"prompt": CHATS}), marks=pytest.mark.soak)], ids=["no data", "data"]
)
def test_an_environment(made, data):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()

    def trainer(**options):
        model = tiny_model(tokenizer, hidden=8, layers=1)
        return made(model, tokenizer, data, {"environment_factory": Counter}, **options)

    trained = trainer(dynamic_sampling=True, dynamic_sampling_rewards=["Counter"], max_num_gen_batches=2)
    trained.train()
    assert trained._scoring._deciding == [1]
    if data is None:
        with pytest.raises(ValueError, match="the data has no column 'prompt': the prompts of an environment_factory"):
            trainer(advantage="smooth")
    else:
        trainer(advantage="smooth").train()


def test_data_without_prompts(build):
    with pytest.raises(ValueError, match="the data has no column 'prompt'; its columns: question, answer"):
        build(DGPOTrainer, data=Dataset.from_dict({"question": QUESTIONS, "answer": QUESTIONS}))


@pytest.mark.parametrize(
    ("column", "prompt", "said"),
    [
        ("question", "1+1=", "has no column 'prompt'; its columns: question"),
        ("prompt", 1, "the first prompt of {where} is 1; expected text, or a list of messages"),
        ("prompt", None, "the first prompt of {where} is None; expected text, or a list of messages"),
        ("prompt", ["1+1="], "the first prompt of {where} is ['1+1=']; expected text, or a list of messages"),
        (
            "prompt",
            [{"role": "user", "content": "1+1="}],
            "the prompts of {where} are conversations, but the tokenizer has no chat template",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_that_cannot_be_read(build, column, prompt, said, stream):
    """Of training and of evaluation alike, before anything is generated."""
    good = Dataset.from_dict({"prompt": QUESTIONS})
    bad = Dataset.from_dict({column: [prompt] * len(QUESTIONS)})
    bad = bad.to_iterable_dataset() if stream else bad
    with pytest.raises(ValueError, match=re.escape(said.format(where="the data"))):
        build(DGPOTrainer, data=bad, max_steps=1)
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    for held_out, where in ((bad, "the evaluation data"), ({"easy": good, "hard": bad}, "the evaluation data 'hard'")):
        with pytest.raises(ValueError, match=re.escape(said.format(where=where))):
            build(DGPOTrainer, data=good, trainer_options={"eval_dataset": held_out}, **evaluation)


soak = pytest.mark.soak


@pytest.mark.parametrize("groups", [1, 2, pytest.param(None, marks=soak), pytest.param(8, marks=soak)])
@pytest.mark.parametrize("advantage", [None, "std", "none", "leave_one_out", "entropy_shaped", "smooth", "pass_at_k"])
def test_every_advantage_evaluates(build, advantage, groups):
    """In groups of another size than those of training, and on prompts of the training, which have a history."""

    def reward(completions, **_):
        return [float(len(text) % 2) for text in completions]

    trainer = build(
        DGPOTrainer,
        reward=reward,
        advantage=advantage,
        advantage_kwargs={"k": 2} if advantage == "pass_at_k" else None,
        max_steps=1,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=1,
        num_generations_eval=groups,
        data=(data := Dataset.from_dict({"prompt": QUESTIONS[:4]})),
        trainer_options={"eval_dataset": data},
    )
    trainer.train()
    (logged,) = (row for row in trainer.state.log_history if "eval_loss" in row)
    assert math.isfinite(logged["eval_loss"])
    if groups == 1:
        assert logged["eval_frac_reward_zero_std"] == 1.0
        assert (logged["eval_loss"] == 0.0) == (advantage != "smooth")
