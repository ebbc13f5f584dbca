"""What-if replay against closed forms, brute-force loops and the log of a real run, for every method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from dgpo import TokenBatch
from dgpo.aggregation import StepTotals
from dgpo.diagnostics.bias import pointwise_bias
from dgpo.diagnostics.naming import label
from dgpo.diagnostics.replay import Replay, Row, replay, verdict
from dgpo.diagnostics.weighed import QUANTILES
from dgpo.diagnostics.weights import describe
from dgpo.objectives import DGPO, OBJECTIVES, Objective, make
from dgpo.regions import REGIONS, regions
from dgpo.runs.run import Run, load
from dgpo.runs.write import record

METHODS = list(OBJECTIVES)


def write_info(folder: Path, **objective: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"schema": "dgpo.run/1", "objective": objective}))


def row_of(found: Replay, name: str) -> Row:
    return next(row for row in found.rows if row.label == name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_batch: Callable[..., Any]) -> Run:
    """Six updates of three per generation, drifting further with each; trained with DGPO(n=2)."""
    folder = tmp_path_factory.mktemp("run")
    for update in range(1, 7):
        batch = make_batch(10, 8, spread=0.3 * ((update - 1) % 3), seed=update, dtype=torch.float32)
        record(
            folder,
            batch.tokens(),
            update=update,
            generation=(update - 1) // 3,
            totals=StepTotals(tokens=100.0, sequences=12.0),
            sum_pi_squared=(2 * batch.logprob).exp() + 0.2 * (1 - batch.logprob.exp()).square(),
        )
    write_info(folder, name="dgpo", n=2, m=2.0, eps_low=0.2, eps_high=0.28)
    return load(folder)


OWN = make("dgpo", n=2, m=2, eps_high=0.28)


def by_hand(tokens: TokenBatch, square: torch.Tensor, objective: Objective, own: Objective) -> dict[str, Any]:
    """The statistics of one update, token by token."""
    w_of = objective.calibrate(tokens).weight(tokens)
    where = regions(tokens, own.boundaries(tokens))
    found: dict[str, Any] = {"mass": dict.fromkeys(REGIONS, 0.0), "gradient": dict.fromkeys(REGIONS, 0.0)}
    found["bias"], weights, step, plain = dict.fromkeys(REGIONS, 0.0), [], [], []
    reference = 0.0
    for i, j in tokens.mask.nonzero().tolist():
        a, r, w = float(tokens.advantage[i, j]), float(tokens.ratio[i, j]), float(w_of[i, j])
        pi = math.exp(float(tokens.logprob[i, j]))
        n = math.sqrt(1 - 2 * pi + float(square[i, j]))
        region = next(name for name, mask in where.items() if mask[i, j])
        found["mass"][region] += abs(a * w)
        found["gradient"][region] += abs(a * w) * n
        found["bias"][region] += abs(a) * abs(w - r)
        reference += abs(a) * r
        weights.append(w)
        step.append(abs(a) * w * n)
        plain.append(abs(a) * r * n)
    norm = sum(map(abs, step))
    for name, whole in (("mass", sum(found["mass"].values())), ("gradient", norm), ("bias", reference)):
        found[name] = {region: part / whole if whole else 0.0 for region, part in found[name].items()}
    total = sum(plain)
    return found | {
        "step": norm,
        "equal": sum(abs((x / norm if norm else 0) - y / total) for x, y in zip(step, plain, strict=True)),
        "cosine": sum(x * y for x, y in zip(step, plain, strict=True))
        / (math.hypot(*step) * math.hypot(*plain) if norm else 1),
        "zero": sum(w == 0 for w in weights) / len(weights),
        "ess": sum(map(abs, weights)) ** 2 / (len(weights) * sum(w * w for w in weights)) if any(weights) else 0.0,
        "mean": fmean(weights),
        "max": max(weights),
        "top": max(map(abs, step)) / norm if norm else 0.0,
    }


@pytest.mark.parametrize("name", METHODS)
def test_statistics_against_a_loop_over_tokens(run: Run, name: str) -> None:
    found = replay(run, name)
    row = row_of(found, name)
    objective, hands = make(name), []
    for recorded in run.recorded():
        assert recorded.sum_pi_squared is not None
        hands.append(by_hand(recorded.tokens, recorded.sum_pi_squared, objective, OWN))

    def close(value: float) -> Any:
        return pytest.approx(value, rel=2e-4, abs=2e-5)

    def mean(key: str) -> float:
        return fmean(hand[key] for hand in hands)

    for region in REGIONS:
        for key, values in (("mass", row.mass), ("gradient", row.gradient), ("bias", row.bias_by_region)):
            assert values[region] == close(fmean(hand[key][region] for hand in hands))
    assert row.bias == close(fmean(sum(hand["bias"].values()) for hand in hands))
    assert sum(row.bias_by_region.values()) == close(row.bias)
    assert row.bias_equal_step == close(mean("equal"))
    assert row.cosine == close(mean("cosine"))
    assert row.step_size == close(mean("step") / 100)
    assert row.zero_fraction == close(mean("zero"))
    assert row.ess == close(mean("ess"))
    assert row.weight_mean == close(mean("mean"))
    assert row.weight_max == close(max(hand["max"] for hand in hands))
    assert row.weight[1.0] == close(mean("max"))
    assert row.top_percent_share == close(mean("top"))
    own = row_of(found, "dgpo:n=2,eps_high=0.28")
    assert (own.own, row.own) == (True, False)
    assert row.factor is not None
    assert row.factor * row.step_size == pytest.approx(own.step_size, rel=1e-12)
    assert own.factor == 1


@pytest.mark.parametrize("name", METHODS)
def test_one_update_is_what_describe_says(run: Run, name: str) -> None:
    recorded = run.tokens(3)
    own = make(name)
    found = replay(run, own, updates=[3], own=own)
    (row,) = found.rows
    told = describe(recorded.tokens, own, sum_pi_squared=recorded.sum_pi_squared)
    assert row.own
    assert found.exact
    assert found.tokens == told.tokens
    assert row.weight == pytest.approx(told.weight)
    assert row.weight_on_prob == pytest.approx(told.weight_on_prob)
    assert row.gradient == pytest.approx({key: share.gradient for key, share in told.regions.items()}, abs=1e-6)
    assert row.mass == pytest.approx({key: share.mass for key, share in told.regions.items()}, abs=1e-6)
    assert found.fraction == pytest.approx({key: share.fraction for key, share in told.regions.items()}, abs=1e-6)
    assert row.top_percent_share == pytest.approx(told.top_percent_share)
    assert row.step_size == pytest.approx(told.step_size * told.tokens / 100)


def test_all_covers_the_registry_and_the_runs_own(run: Run) -> None:
    found = replay(run)
    assert {row.name for row in found.rows if not row.own} == set(METHODS)
    assert [row.label for row in found.rows if row.own] == ["dgpo:n=2,eps_high=0.28"]
    assert len(found.rows) == len(METHODS) + 1
    biases = [row.bias for row in found.rows]
    assert biases == sorted(biases)
    assert found.updates == (1, 2, 3, 4, 5, 6)
    assert (found.reference, found.eps_low, found.eps_high) == ("dgpo:n=2,eps_high=0.28", 0.2, 0.28)
    assert sum(found.fraction.values()) == pytest.approx(1)
    assert all(len(values) == 6 for row in found.rows for values in row.series.values())
    steps = [row.factor * row.step_size for row in found.rows if row.factor is not None]
    assert steps == pytest.approx([steps[0]] * len(found.rows), rel=1e-12)


def test_choices(run: Run) -> None:
    chosen = replay(run, ["grpo", ("dgpo", {"n": 2, "m": 2, "eps_high": 0.28}), make("grpo"), ("bapo", {})])
    assert {row.label for row in chosen.rows} == {"grpo", "dgpo:n=2,eps_high=0.28", "bapo"}
    assert sum(row.own for row in chosen.rows) == 1
    assert label(make("dgpo", right_cap=3.0, n=2)) == "dgpo:n=2,right_cap=3.0"

    class Mine(DGPO):
        pass

    name = f"{__name__}:{Mine.__qualname__}"  # not registered: its import path
    assert row_of(replay(run, Mine(n=3)), f"{name}:n=3").name == name


@pytest.mark.parametrize("name", METHODS)
def test_the_bias_is_the_pointwise_bias(run: Run, name: str) -> None:
    """Every token counted as 1, without N."""
    series = row_of(replay(run, name), name).series["bias"]
    expected = [pointwise_bias(recorded.tokens, name).relative for recorded in run.recorded()]
    assert series == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_adaptive_methods_are_calibrated_on_every_update(run: Run) -> None:
    series = row_of(replay(run, "bapo"), "bapo").series
    for place, recorded in enumerate(run.recorded()):
        w = make("bapo").calibrate(recorded.tokens).weight(recorded.tokens)[recorded.tokens.mask]
        assert series["weight/mean"][place] == pytest.approx(float(w.mean()))
        assert series["weight/zero_fraction"][place] == pytest.approx(float((w == 0).float().mean()))


def test_parts_of_several_ranks_are_one_update(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    """Adaptive and sequence-level methods included; each rank was given half of the step's tokens."""
    batch = make_batch(10, 8, seed=4, dtype=torch.float32)

    def part(rows: slice, columns: int) -> TokenBatch:
        names = ("logprob", "old_logprob", "advantage", "mask", "entropy")
        values = [getattr(batch, name)[rows] for name in names]
        values = [value if value.dim() == 1 else value[:, :columns] for value in values]
        return TokenBatch(*values[:4], entropy=values[4])

    record(tmp_path / "one", part(slice(None), 8), update=5, totals=StepTotals(tokens=90.0, sequences=10.0))
    longest = max(int(batch.mask[6:].any(0).nonzero().max()) + 1, 1)
    for rank, (rows, columns) in enumerate(((slice(0, 6), 8), (slice(6, 10), longest))):
        totals = StepTotals(tokens=45.0, sequences=5.0)
        record(tmp_path / "two", part(rows, columns), update=5, rank=rank, world_size=2, totals=totals)
    one, two = replay(load(tmp_path / "one")), replay(load(tmp_path / "two"))
    assert [row.label for row in one.rows] == [row.label for row in two.rows]
    for left, right in zip(one.rows, two.rows, strict=True):
        for key, values in left.series.items():
            assert values == pytest.approx(right.series[key], rel=1e-4, abs=1e-6), key


def test_a_rank_without_a_token_changes_nothing(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    tokens = make_batch(seed=3, dtype=torch.float32).tokens()
    empty = TokenBatch(torch.zeros(2, 3), None, torch.ones(2), torch.zeros(2, 3))
    record(tmp_path / "one", tokens, update=1)
    record(tmp_path / "two", tokens, update=1)
    record(tmp_path / "two", empty, update=1, rank=1, world_size=2)
    assert replay(load(tmp_path / "two")) == replay(load(tmp_path / "one"))


def test_updates_without_an_advantage_are_left_out(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    batch = make_batch(seed=1)
    silent = TokenBatch(batch.logprob, batch.old_logprob, torch.zeros(5), batch.mask)
    record(tmp_path, batch.tokens(), update=1)
    record(tmp_path, silent, update=2)
    found = replay(load(tmp_path), ["dgpo", "grpo"])
    assert (found.updates, found.skipped) == ((1,), (2,))
    assert found.reference is None
    factors = {row.label: row.factor for row in found.rows}
    steps = {row.label: row.step_size for row in found.rows}
    assert factors["dgpo"] == pytest.approx(found.series["step_size"][0] / steps["dgpo"])
    with pytest.raises(ValueError, match=r"none of the updates \[2\] .* advantage is not 0"):
        replay(load(tmp_path), "dgpo", updates=[2])


def test_wrong_input(run: Run, tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="unknown objective 'mapso', did you mean 'maspo'"):
        replay(run, ["mapso"])
    with pytest.raises(ValueError, match=r"updates \[9\] were not recorded .* recorded: \[1, 2, 3, 4, 5, 6\]"):
        replay(run, "dgpo", updates=[1, 9])
    batch = make_batch(seed=1)
    broken = TokenBatch(batch.logprob.index_fill(1, torch.tensor([0]), math.nan), None, batch.advantage, batch.mask)
    record(tmp_path, broken, update=7)
    with pytest.raises(ValueError, match=r"update 7 in .*logprob\[0, 0\] = nan"):
        replay(load(tmp_path), "dgpo")


def test_an_objective_of_the_users_own(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    """Not in the registry here: nothing is the run's own, unless it is given."""
    record(tmp_path, make_batch(seed=1).tokens(), update=1)
    write_info(tmp_path, name="of_a_plugin", x=1)
    found = replay(load(tmp_path), ["dgpo", "grpo"])
    assert (found.reference, found.unregistered) == (None, "of_a_plugin")
    assert not any(row.own for row in found.rows)
    assert json.loads(json.dumps(found.as_dict()))["unregistered"] == "of_a_plugin"
    given = replay(load(tmp_path), "grpo", own="dgpo")
    assert (given.reference, given.unregistered) == ("dgpo", None)


def test_updates_that_lack_a_rank_are_left_out(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    for update in (1, 2, 3):
        for rank in range(2):
            if (update, rank) not in ((2, 0), (3, 1)):
                record(tmp_path, make_batch(seed=update).tokens(), update=update, rank=rank, world_size=2)
    found = replay(load(tmp_path), "dgpo")
    assert (found.updates, found.incomplete, found.skipped) == ((1,), (2, 3), ())
    with pytest.raises(ValueError, match=r"0 without an advantage, 2 incomplete; damaged files: none"):
        replay(load(tmp_path), "dgpo", updates=[2, 3])


def test_damaged_files_are_left_out(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    for update in (1, 2):
        record(tmp_path, make_batch(seed=update).tokens(), update=update)
    (tmp_path / "tokens" / "update-000002.parquet").write_bytes(b"no parquet")
    run = load(tmp_path)
    with pytest.warns(UserWarning, match=r"update-000002\.parquet"):
        found = replay(run, "dgpo")
    assert (found.updates, found.incomplete, run.damaged) == ((1,), (2,), ["update-000002.parquet"])


def test_adaptive_rows_are_marked(run: Run) -> None:
    assert (
        {row.name for row in replay(run).rows if row.adaptive}
        == {name for name in METHODS if "batch" in make(name).reads}
        != set()
    )


def test_the_verdict_says_where_the_run_is_and_what_differs(run: Run) -> None:
    found = replay(run)
    text = verdict(found)
    own = next(row for row in found.rows if row.own)
    assert f"The weights of {own.label} are {100 * own.bias:.2g} % away" in text
    assert f"number {1 + [row.label for row in found.rows].index(own.label)} of {len(found.rows)}" in text
    farthest = min(found.rows, key=lambda row: row.cosine)
    assert f"Another direction: {farthest.label} ({farthest.cosine:.2f})" in text
    alike = replace(found, rows=tuple(replace(row, cosine=0.999) for row in found.rows))
    assert f"All {len(found.rows)} take nearly the same direction" in verdict(alike)
    assert "Another direction" not in verdict(alike)
    nobody = replace(found, rows=tuple(replace(row, own=False) for row in found.rows))
    assert "The weights of" not in verdict(nobody)


def test_the_file(run: Run, tmp_path: Path) -> None:
    found = replay(run)
    path = found.write(tmp_path / "new" / "replay.json")
    read = json.loads(path.read_text())
    assert read == found.as_dict() | {
        "rows": read["rows"],
        "updates": list(found.updates),
        "skipped": [],
        "incomplete": [],
    }
    assert read["schema"] == "dgpo.replay/1"
    assert [row["label"] for row in read["rows"]] == [row.label for row in found.rows]
    assert read["rows"][3]["weight"] == {str(q): found.rows[3].weight[q] for q in QUANTILES}
    assert "series" not in read
    assert "series" not in read["rows"][0]
    endless = row_of(replay(run, make("cispo", cap=math.inf)), "cispo:cap=inf")
    assert json.loads(json.dumps(endless.as_dict(), allow_nan=False))["fields"] == {"cap": "inf"}
