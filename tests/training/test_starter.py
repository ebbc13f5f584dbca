"""The data of a starter model."""

from __future__ import annotations

import pytest
from trl import SFTConfig, SFTTrainer

from dgpo import tasks
from dgpo.training.starter import _tokenized, character_tokenizer, tiny_model


@pytest.mark.parametrize("name", ["reverse", "plus_minus"])
def test_token_ids_and_labels_are_what_trl_makes_of_the_texts(name, tmp_path):
    task, tokenizer = tasks.make(name), character_tokenizer()
    texts = task.dataset("train").select(range(40)).rename_column("answer", "completion")
    config = SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[], max_length=None)
    made = SFTTrainer(
        tiny_model(tokenizer, hidden=16, layers=1), config, train_dataset=texts, processing_class=tokenizer
    ).train_dataset
    assert _tokenized(task, tokenizer)[:40] == {key: made[key] for key in ("input_ids", "labels")}
