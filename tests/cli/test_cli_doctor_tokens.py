"""`dgpo doctor` and `dgpo replay` on a terminal: tokens by their text, and progress where somebody is watching."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo.cli.doctor import run as dgpo_doctor
from dgpo.cli.replay import run as dgpo_replay
from dgpo.diagnostics import load, record
from dgpo.diagnostics.replay import replay
from dgpo.training.starter import character_tokenizer


def test_tokens_are_named_by_their_text_where_the_run_has_its_tokenizer(
    tmp_path: Path, make_batch: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = make_batch(spread=0.3, seed=1)
    logprob = batch.logprob.detach().clone()
    logprob[tuple(batch.mask.nonzero()[0])] = torch.nan
    ids = torch.full(batch.mask.shape, 65)
    record(tmp_path, batch.but(logprob=logprob).tokens(), token_ids=ids, update=1)
    (tmp_path / "run.json").write_text(json.dumps({"schema": "dgpo.run/1", "tokenizer": "tokenizer"}))
    assert dgpo_doctor([str(tmp_path)]) == 1
    assert "token id 65" in " ".join(capsys.readouterr().out.split())
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    dgpo_doctor([str(tmp_path)])
    assert f"token {tokenizer.decode([65])!r} (id 65)" in " ".join(capsys.readouterr().out.split())


def test_progress_is_for_a_terminal_and_changes_nothing(
    tmp_path: Path, make_batch: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for update in (1, 2):
        record(tmp_path, make_batch(spread=0.3, seed=update).tokens(), update=update)
    (tmp_path / "run.json").write_text(json.dumps({"schema": "dgpo.run/1", "objective": {"name": "dgpo"}}))
    assert dgpo_replay([str(tmp_path), "--objectives", "grpo"]) == 0
    assert capsys.readouterr().err == ""
    watched: list[int] = []

    def track(updates: Any) -> Any:
        for update in updates:
            yield update
            watched.append(update)

    run = load(tmp_path)
    assert replay(run, "grpo", track=track).as_dict() == replay(run, "grpo").as_dict()
    assert watched == [1, 2]
