"""What a run cannot do is refused when the trainer is made; what it accepts trains and evaluates."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset, Image
from PIL import Image as Picture

from dgpo.advantages import ADVANTAGES
from dgpo.training import DGPOTrainer
from dgpo.training.data_checks import images_of

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


def test_data_without_prompts(build):
    with pytest.raises(ValueError, match="the data has no column 'prompt'; its columns: question, answer"):
        build(DGPOTrainer, data=Dataset.from_dict({"question": QUESTIONS, "answer": QUESTIONS}))


soak = pytest.mark.soak


@pytest.mark.parametrize("groups", [1, 2, pytest.param(None, marks=soak), pytest.param(8, marks=soak)])
@pytest.mark.parametrize("advantage", [None, *ADVANTAGES])
def test_every_advantage_evaluates(build, advantage, groups):
    """In groups of another size than those of training, and on prompts of the training, which have a history."""
    trainer = build(
        DGPOTrainer,
        advantage=advantage,
        max_steps=1,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=1,
        num_generations_eval=groups,
        data=(data := Dataset.from_dict({"prompt": QUESTIONS[:4]})),
        trainer_options={"eval_dataset": data},
    )
    trainer.train()
    (figures,) = (row for row in trainer.state.log_history if "eval_loss" in row)
    assert math.isfinite(figures["eval_loss"])
    if groups == 1:
        assert figures["eval_frac_reward_zero_std"] == 1.0
        assert (figures["eval_loss"] == 0.0) == (advantage != "smooth")
