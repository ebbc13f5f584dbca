"""Files of tokens: what is written is what is read; bounded, atomic, and never a reason to stop."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo import StepTotals, TokenBatch
from dgpo.diagnostics import Recorder, load, read, read_metrics, record


def batch(seed=0, rows=5, columns=7, **more):
    generator = torch.Generator().manual_seed(seed)
    noise = lambda: torch.randn(rows, columns, generator=generator)  # noqa: E731
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    mask[0] = False  # a response without a valid token
    return TokenBatch(
        -noise().abs(), -noise().abs(), noise()[:, 0], mask, rollout_logprob=-noise().abs(), entropy=noise().abs()
    )


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), columns=st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_what_is_written_is_what_is_read(tmp_path_factory, seed, rows, columns):
    tokens = batch(seed, rows, columns)
    ids = torch.randint(0, 50_000, (rows, columns))
    group = torch.tensor([2**62 + row // 2 for row in range(rows)])
    squares = torch.rand(rows, columns)
    path = record(
        tmp_path_factory.mktemp("run"),
        tokens,
        update=12,
        token_ids=ids,
        group=group,
        sum_pi_squared=squares,
        generation=3,
        totals=StepTotals(tokens=torch.tensor(7.0), sequences=2),
    )
    assert path.name == "update-000012.parquet"
    found = read(path)
    assert (found.update, found.generation, found.totals) == (12, 3, StepTotals(tokens=7.0, sequences=2.0))
    assert found.tokens.mask.sum() == tokens.mask.sum()
    # responses without a token leave no row, columns behind the last token none either
    kept = tokens.mask.any(-1).nonzero().squeeze(1)
    width = int(tokens.mask.any(0).nonzero().max()) + 1 if len(kept) else 0
    assert found.tokens.mask.shape == (len(kept), width)
    for name in ("logprob", "old_logprob", "advantage", "rollout_logprob", "entropy", "mask"):
        torch.testing.assert_close(getattr(found.tokens, name), getattr(tokens, name)[kept][:, :width], rtol=0, atol=0)
    if len(kept):
        mask = found.tokens.mask
        assert (found.token_ids[mask] == ids[kept][:, :width][mask]).all()
        assert (found.sum_pi_squared[mask] == squares[kept][:, :width][mask]).all()
        same = group[kept].unsqueeze(1) == group[kept]
        assert ((found.group.unsqueeze(1) == found.group) == same).all()


def test_what_was_not_given_is_none(tmp_path):
    logprob = torch.tensor([[-1.0, -2.0]])
    record(tmp_path, TokenBatch(logprob, None, torch.ones(1), torch.ones(1, 2)), update=1)
    found = load(tmp_path).tokens(1)
    assert found.token_ids is None
    assert found.sum_pi_squared is None
    assert found.tokens.rollout_logprob is None
    assert found.tokens.entropy is None
    assert found.totals is None
    assert found.group.tolist() == [0]


def test_a_non_finite_token_survives(tmp_path):
    logprob = torch.tensor([[-1.0, math.nan, -math.inf]])
    record(tmp_path, TokenBatch(logprob, torch.zeros(1, 3), torch.ones(1), torch.ones(1, 3)), update=1)
    found = load(tmp_path).tokens(1).tokens.logprob
    assert found[0, 1].isnan()
    assert found[0, 2] == -math.inf


def test_the_schema_is_what_the_documentation_says(tmp_path):
    import pyarrow.parquet as parquet

    path = record(tmp_path, batch(), update=1)
    table = parquet.read_table(path)
    integers, floats = (
        ["response", "group", "position", "token_id"],
        [
            "logprob",
            "old_logprob",
            "advantage",
            "rollout_logprob",
            "entropy",
            "sum_pi_squared",
        ],
    )
    assert table.column_names == integers + floats
    assert [str(table.schema.field(name).type) for name in integers + floats] == ["int32"] * 4 + ["float"] * 6
    about = json.loads(table.schema.metadata[b"dgpo"])
    assert set(about) == {"schema", "update", "generation", "index", "rank", "world_size", "totals", "anchor"}
    assert parquet.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no temporary file


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_ids": torch.zeros(5, 6)}, r"token_ids has shape \(5, 6\); expected \(5, 7\)"),
        ({"group": torch.zeros(4)}, r"group has shape \(4,\); expected \(5,\)"),
        ({"update": -1}, "update = -1 is not allowed"),
    ],
)
def test_bad_input(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        record(tmp_path, batch(), **{"update": 1, **options})


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds none of run.json"):
        load(tmp_path)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "update-000001.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is not a parquet file"):
        load(tmp_path).tokens(1)
    with pytest.raises(KeyError, match="no tokens of update 2"):
        load(tmp_path).tokens(2)


def test_micro_batches_become_one_file_and_ranks_one_each(tmp_path):
    for rank in (0, 1):
        recorder = Recorder(tmp_path, rank=rank, world_size=2)
        for seed in (1, 2):
            recorder.add(batch(seed + 10 * rank))
        recorder.finish(4)
    run = load(tmp_path)
    assert run.updates == [4]
    assert [path.name for path in run.files[4]] == ["update-000004.parquet", "update-000004-rank1.parquet"]
    sizes = [int(found.tokens.mask.sum()) for found in run.recorded()]
    assert sizes == [sum(int(batch(seed + 10 * rank).mask.sum()) for seed in (1, 2)) for rank in (0, 1)]
    assert len(run.tokens(4, rank=1).group.unique()) == len(run.tokens(4, rank=1).group)


def test_beyond_the_limit_every_other_generation_goes(tmp_path):
    recorder = Recorder(tmp_path, limit=40_000, updates_per_generation=4)
    for update in range(1, 41):
        if recorder.wants(update):
            recorder.add(batch(update))
            recorder.finish(update)
    updates = load(tmp_path).updates
    generations = sorted({(update - 1) // 4 for update in updates})
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) <= 40_000
    assert len(updates) < 40
    # whole generations, evenly over the run
    whole = [4 * generation + i for generation in generations for i in (1, 2, 3, 4)]
    assert updates == [update for update in whole if update <= max(updates)]
    assert len({later - earlier for earlier, later in itertools.pairwise(generations)}) == 1
    assert max(updates) > 30


def test_every(tmp_path):
    recorder = Recorder(tmp_path, every=3)
    assert [update for update in range(1, 11) if recorder.wants(update)] == [1, 4, 7, 10]


FULL = """
import resource, signal, sys, torch
from dgpo import TokenBatch
from dgpo.diagnostics import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # no file may grow beyond this: writes fail as on a full disk
warnings = []
recorder = Recorder(sys.argv[1], warn=warnings.append)
small = TokenBatch(-torch.rand(2, 3), -torch.rand(2, 3), torch.ones(2), torch.ones(2, 3))
large = TokenBatch(-torch.rand(300, 30), -torch.rand(300, 30), torch.ones(300), torch.ones(300, 30))
for update, tokens in enumerate((small, large, small), 1):
    if recorder.wants(update):
        recorder.add(tokens)
    recorder.finish(update)
    recorder.metrics({"step": update})
assert not recorder.on
assert len(warnings) == 1, warnings
print(warnings[0])
"""


def test_a_full_disk_is_one_warning(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "training continues" in done.stdout
    assert "File too large" in done.stdout
    run = load(tmp_path)
    assert run.updates == [1]  # what was written before stays, and nothing half
    assert [row["step"] for row in run.metrics] == [1]
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["update-000001.parquet"]


def test_metrics(tmp_path):
    recorder = Recorder(tmp_path)
    for row in ({"event": "begin", "step": 0}, {"step": 1, "loss": math.nan}, {"step": 2}, {"step": 3, "loss": 1.0}):
        recorder.metrics(row)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # valid JSON: no bare NaN
    # resumed from step 2: what came after it did not happen
    recorder.metrics({"event": "begin", "step": 2})
    recorder.metrics({"step": 3, "loss": 2.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("event")) for row in rows] == [
        (0, "begin"), (1, None), (2, None), (2, "begin"), (3, None)
    ]  # fmt: skip
    assert math.isnan(rows[1]["loss"])
    assert rows[-1]["loss"] == 2.0


def test_a_line_cut_by_a_kill_does_not_spoil_the_run_that_goes_on(tmp_path):
    first = Recorder(tmp_path)
    for step in range(3):
        first.metrics({"step": step, "text": "x" * 5000})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "text": "' + "y" * 9000)
    again = Recorder(tmp_path)
    again.metrics({"event": "begin", "step": 1})
    again.metrics({"step": 2})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("event")) for row in rows] == [(0, None), (1, None), (1, "begin"), (2, None)]
    (tmp_path / "metrics.jsonl").write_text('{"nothing but half a li')
    again.metrics({"step": 7})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 7}]


def test_a_file_that_cannot_be_read_is_left_out(tmp_path):
    for update in (1, 2, 3):
        record(tmp_path, batch(update), update=update)
    (tmp_path / "tokens" / "update-000002.parquet").write_bytes(b"")
    run = load(tmp_path)
    with pytest.warns(UserWarning, match=r"left out: .*update-000002"):
        assert [found.update for found in run.recorded()] == [1, 3]
    assert run.damaged == ["update-000002.parquet"]


def test_ranks_are_in_order(tmp_path):
    for rank in (10, 2, 0):
        record(tmp_path, batch(rank), update=1, rank=rank, world_size=11)
    assert [(found.rank, found.world_size) for found in load(tmp_path).recorded()] == [(0, 11), (2, 11), (10, 11)]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """Whole or not there: the rename is the last thing."""
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        record(tmp_path, batch(), update=1)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_infinities_come_back(tmp_path):
    Recorder(tmp_path).info({"a": [math.inf, {"b": -math.inf}], "c": "info"})
    json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert load(tmp_path).info == {"schema": "dgpo.run/1", "a": [math.inf, {"b": -math.inf}], "c": "info"}


def test_a_damaged_line_is_named(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"line 2 is not valid JSON"):
        read_metrics(file)
    file.write_text('[1]\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"line 1 holds a list; expected an object"):
        read_metrics(file)
