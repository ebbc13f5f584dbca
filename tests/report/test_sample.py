"""Which part of a large run is read: always the start, the middle and the end, never more than the bounds."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from dgpo import TokenBatch
from dgpo.aggregation import StepTotals
from dgpo.diagnostics import load, record
from dgpo.diagnostics.weights import describe
from dgpo.objectives import make
from dgpo.report import collect, sections, tokens
from dgpo.report import sample as bounds
from dgpo.report.sample import sample, spread, thinned

BATCH = TokenBatch(torch.full((6, 10), -1.0), torch.full((6, 10), -1.1), torch.ones(6), torch.ones(6, 10))
"""60 tokens."""


def run_of(folder, updates, per):
    for update in range(1, updates + 1):
        record(folder, BATCH, update=update, generation=(update - 1) // per)
    (folder / "run.json").write_text(json.dumps({"objective": {"name": "dgpo"}, "updates_per_generation": per}))
    return load(folder)


def read_tokens(part):
    return sum(int(one.tokens.mask.sum()) for one in part.recorded())


@pytest.mark.parametrize(
    ("updates", "per", "most_updates", "most_tokens"),
    [
        (24, 4, 100, 60 * 11),  # three generations do not fit
        (24, 4, 12, 4_000_000),
        (24, 4, 100, 60 * 3),  # nor six updates
        (24, 4, 100, 60),
        (40, 20, 10, 4_000_000),  # more updates in a generation than are read
        (30, 30, 10, 4_000_000),
        (30, 1, 10, 4_000_000),
        (18, 6, 100, 60 * 7),
        (11, 4, 100, 60 * 6),  # the last generation is not whole
    ],
)
def test_first_middle_and_last_within_the_bounds(tmp_path, monkeypatch, updates, per, most_updates, most_tokens):
    monkeypatch.setattr(bounds, "MAX_UPDATES", most_updates)
    monkeypatch.setattr(bounds, "MAX_TOKENS", most_tokens)
    part = sample(run_of(tmp_path, updates, per))
    chosen = part.chosen
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) <= max(most_updates, 6)
    # at least one response of each update is read
    assert read_tokens(part) <= max(most_tokens, 10 * len(chosen))
    by_generation = {}
    for update in chosen:
        by_generation.setdefault((update - 1) // per, []).append(update)
    last = (updates - 1) // per
    assert {0, last} <= set(by_generation)
    if last > 1:
        assert any(last / 4 <= one <= 3 * last / 4 for one in by_generation)
    for number, members in by_generation.items():
        assert members[0] == number * per + 1
        assert members[-1] == min((number + 1) * per, updates)
    assert len(chosen) * 60 >= min(most_tokens, 60 * most_updates, 60 * 6) / 2


def test_a_run_within_the_bounds_is_read_as_it_is(tmp_path):
    run = run_of(tmp_path, 9, 3)
    part = sample(run)
    assert (part.chosen, part.every, part.incomplete) == (tuple(range(1, 10)), 1, ())
    assert read_tokens(part) == 9 * 60


def test_the_report_shows_all_parts_of_a_run_of_huge_updates(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_TOKENS", 200)
    run_of(tmp_path, 24, 4)
    (run,) = collect([tmp_path])["runs"]
    assert (run["read"], run["recorded"], run["every"]) == (6, 24, 2)
    said = "From one in 2 responses of 6 of 24 recorded updates"
    assert sections.thinned(run).startswith(said)
    assert said in (markup := sections.replay(run, 0))
    assert "dgpo replay reads all of them" in markup
    assert run["regions"]["over"]["fraction"]["x"] == [2.5, 10.5, 22.5]
    assert run["regions"]["within"]["fraction"]["x"] == [0, 3]
    assert run["histogram"]["tokens"] <= 200


def test_a_part_of_the_responses_has_its_part_of_the_totals(tmp_path, make_batch):
    batch = make_batch(10, 8, seed=3, dtype=torch.float32).tokens()
    ids = torch.arange(80).view(10, 8)
    record(tmp_path, batch, update=1, token_ids=ids, totals=StepTotals(tokens=100.0, sequences=20.0))
    whole = load(tmp_path).tokens(1)
    part = thinned(whole, 3)
    assert torch.equal(part.tokens.logprob, whole.tokens.logprob[[0, 3, 6, 9]])
    assert torch.equal(part.token_ids, whole.token_ids[[0, 3, 6, 9]])
    assert part.group.tolist() == whole.group[[0, 3, 6, 9]].tolist()
    share = float(part.tokens.mask.sum() / whole.tokens.mask.sum())
    assert (part.totals.tokens, part.totals.sequences) == pytest.approx((100 * share, 20 * share))


def test_spread():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(9)), 3) == [0, 4, 8]
    assert spread(list(range(9)), 1) == [0]


def test_updates_that_lack_a_rank_are_not_read(tmp_path):
    for update in range(1, 7):
        for rank in range(2):
            if rank == 0 or update % 2:
                record(tmp_path, BATCH, update=update, rank=rank, world_size=2)
    (run,) = collect([tmp_path])["runs"]
    assert (run["read"], run["recorded"], run["incomplete"]) == (3, 6, [2, 4, 6])
    assert run["replay"]["updates"] == (1, 3, 5)
    for update in (1, 3, 5):
        (tmp_path / "tokens" / f"update-{update:06d}-rank1.parquet").unlink()
    (run,) = collect([tmp_path])["runs"]
    assert run["replay"] is None
    assert "readable file of every rank" in run["no_tokens"]


def test_damaged_files_are_named(tmp_path):
    for update in range(1, 5):
        record(tmp_path, BATCH, update=update)
    (tmp_path / "tokens" / "update-000002.parquet").write_bytes(b"no parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (run,) = collect([tmp_path])["runs"]
    assert run["damaged"] == ["update-000002.parquet"]
    assert (run["read"], run["incomplete"], run["replay"]["updates"]) == (3, [], (1, 3, 4))


def test_shares_of_top_tokens_are_of_all_ranks_together(tmp_path, make_batch):
    """N is the bound 1 - π, and the loop knows nothing of ranks."""
    objective, sizes = make("dgpo"), []
    for rank in range(2):
        batch = make_batch(seed=rank, dtype=torch.float32).tokens()
        record(tmp_path, batch, update=1, rank=rank, world_size=2)
        w = objective.weight(batch)
        size = (batch.advantage * w).abs() * (1 - batch.logprob.exp()) * batch.mask
        sizes += size[batch.mask].tolist()
        assert describe(batch, objective).top[0].share > max(sizes) / sum(sizes) * 0.5
    run = load(tmp_path)
    found = tokens.top_tokens(run, [1], objective, None)
    expected = sorted(sizes, reverse=True)[: len(found)]
    assert [token["share"] for token in found] == pytest.approx([size / sum(sizes) for size in expected], rel=1e-3)
