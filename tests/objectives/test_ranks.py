"""Sums and values over ranks, with the collectives of two ranks played through."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Barrier, Thread, get_ident
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dgpo import TokenBatch, objectives
from dgpo.objectives.ranks import gathered, summed

ADAPTIVE = [name for name, cls in objectives.OBJECTIVES.items() if "batch" in cls().reads]


class Ranks:
    """Two threads as two ranks: each collective waits for the other, and then has both of its tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._barrier, self._here, self._rank = Barrier(2, timeout=20), [torch.empty(0)] * 2, {}
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "get_rank", self._of_this)
        monkeypatch.setattr(dist, "all_reduce", lambda values: values.copy_(sum(self._both(values))))
        monkeypatch.setattr(dist, "all_gather", self._all_gather)

    def _of_this(self) -> int:
        return self._rank[get_ident()]

    def _both(self, values: Tensor) -> list[Tensor]:
        self._here[self._of_this()] = values.clone()
        self._barrier.wait()
        both = list(self._here)
        self._barrier.wait()
        return both

    def _all_gather(self, parts: list[Tensor], values: Tensor) -> None:
        for part, found in zip(parts, self._both(values), strict=True):
            part.copy_(found)

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """The result of either rank."""
        results: list[Any] = [None, None]

        def work(rank: int) -> None:
            self._rank[get_ident()] = rank
            results[rank] = function(rank)

        threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_alone_nothing_changes() -> None:
    values = torch.tensor([1.0, 2.0])
    assert summed(values) is values
    assert gathered(values) is values


def test_two_ranks_with_values_of_different_number(monkeypatch: pytest.MonkeyPatch) -> None:
    of_rank = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0])]
    ranks = Ranks(monkeypatch)
    assert [found.tolist() for found in ranks.run(lambda rank: gathered(of_rank[rank]))] == [[1, 2, 3, 4]] * 2
    of_rank = [torch.empty(0), torch.tensor([math.pi])]
    assert [len(found) for found in ranks.run(lambda rank: gathered(of_rank[rank]))] == [1, 1]
    of_rank = [torch.tensor([1.0]), torch.tensor([4.0])]
    assert [found.item() for found in ranks.run(lambda rank: summed(of_rank[rank]))] == [5, 5]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_ranks_calibrate_as_one_would_on_the_whole_batch(
    name: str, make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(B=9, T=30, spread=0.8, seed=4)
    parts = [getattr(batch, key) for key in ("logprob", "old_logprob", "advantage", "mask")]
    whole = objectives.make(name).calibrate(TokenBatch(*parts))
    of_rank = [TokenBatch(*(part[rows] for part in parts)) for rows in (slice(0, 3), slice(3, 9))]
    found = Ranks(monkeypatch).run(lambda rank: objectives.make(name).calibrate(of_rank[rank]))
    assert found[0] == found[1]
    weights = torch.cat([found[rank].weight(of_rank[rank]) for rank in range(2)])
    torch.testing.assert_close(weights, whole.weight(TokenBatch(*parts)), rtol=1e-9, atol=1e-12)
