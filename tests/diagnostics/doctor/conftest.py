"""A small model that has learned to answer in digits, and real runs of the trainer on it, each with one fault."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

from dgpo.tasks import Addition

# the trainer is imported in the fixtures: most tests here need none of it, and it takes six seconds


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Answers with one to three digits and stops, most of them wrong: rewards have spread, nothing is cut off."""
    from dgpo.training.starter import character_tokenizer, tiny_model

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("taught"), character_tokenizer()
    model = tiny_model(tokenizer, hidden=32, layers=2, seed=0)
    data = Addition().dataset("train")
    rows = [
        [*tokenizer(p + a).input_ids, tokenizer.eos_token_id]
        for p, a in zip(data["prompt"], data["answer"], strict=True)
    ]
    prompts = [len(prompt) for prompt in data["prompt"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        picked = torch.randint(len(rows), (64,), generator=generator).tolist()
        width = max(len(rows[i]) for i in picked)
        ids = torch.tensor([rows[i] + [tokenizer.pad_token_id] * (width - len(rows[i])) for i in picked])
        place = torch.arange(width)
        start, end = torch.tensor([[prompts[i]] for i in picked]), torch.tensor([[len(rows[i])] for i in picked])
        labels = ids.masked_fill((place < start) | (place >= end), -100)
        loss = model(input_ids=ids, attention_mask=(place < end).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_of(taught, tmp_path_factory):
    """name -> the folder of that run, made once."""
    from broken_runs import RUNS
    from datasets import disable_progress_bars
    from transformers import AutoTokenizer
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    data = Addition().dataset("train").select(range(2000))

    @functools.cache
    def run_of(name):
        folder = tmp_path_factory.mktemp(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            RUNS[name](taught, AutoTokenizer.from_pretrained(taught), data, folder)
        return folder / "record"

    return run_of
