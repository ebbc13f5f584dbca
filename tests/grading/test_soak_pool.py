"""A thousand kills, and a hundred thousand answers."""

from __future__ import annotations

import os
import sys
import time

import pool_functions
import pytest
from pool_functions import children, parent

from dgpo.grading.workers import Pool, PoolSettings

pytestmark = [pytest.mark.soak, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def test_a_thousand_kills() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Pool(PoolSettings(judge_file=pool_functions.__file__, workers=4, deadline=0.05)) as pool:
        pool.run([("sleep:0.01",)] * 4)
        server = parent(pool.pids()[0])
        kinds = ["spin", "stubborn", "sleep:30", "bigint"]
        outcomes = pool.run([(kinds[index % 4],) for index in range(1000)])
        assert [outcome.status for outcome in outcomes] == ["timeout"] * 1000
        assert (pool.kills, pool.deaths, pool.size()) == (1000, 0, 4)
        answered = [outcome.status for outcome in pool.run([("echo:x",)] * 1000)]
        assert answered.count("ok") >= 990  # 50 ms can be too short on a busy machine
        time.sleep(1)
        assert len(children(server)) == 4
        assert "Z" not in children(server).values()
        assert parent(pool.pids()[0]) == server
    assert server not in children(os.getpid())
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_hundred_thousand_answers_between_deaths() -> None:
    with Pool(PoolSettings(judge_file=pool_functions.__file__, workers=2, deadline=0.5, recycle=500)) as pool:
        jobs = [(f"echo:{index}",) for index in range(100_000)]
        jobs[::1000] = [("segv",)] * 100
        outcomes = pool.run(jobs)
        assert sum(outcome.status == "died" for outcome in outcomes) == pool.deaths == 100
        assert all(outcome.value == str(index) for index, outcome in enumerate(outcomes) if index % 1000)
        assert pool.recycled > 100
        assert pool.size() == 2
