"""The pool keeps its deadline, its size and its order, whatever its workers run into and whoever calls it."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool_functions
import pytest
from pool_functions import alive, children, parent

from dgpo.grading.workers import Pool, PoolSettings

JUDGE = pool_functions.__file__
SLACK = 0.4
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def make() -> Iterator[Callable[..., Pool]]:
    pools = []

    def pool(**settings: Any) -> Pool:
        pools.append(Pool(PoolSettings(**{"judge_file": JUDGE, "deadline": 0.5} | settings)))
        return pools[-1]

    yield pool
    for one in pools:
        one.close()


def values(pool: Pool, *texts: str) -> list[str]:
    return [outcome.value for outcome in pool.run([(text,) for text in texts])]


def statuses(pool: Pool, *texts: str) -> list[str]:
    return [outcome.status for outcome in pool.run([(text,) for text in texts])]


def server_of(pool: Pool) -> int:
    values(pool, "echo:x")
    return parent(pool.pids()[0])


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_outcomes_keep_the_order_and_the_strings(make: Callable[..., Pool]) -> None:
    pool = make(workers=2)
    jobs = [(f"echo:{index}", "é\n\0\ud800", "") for index in range(300)]
    jobs[7] = ("sleep:0.2",)
    outcomes = pool.run(jobs)
    assert [outcome.status for outcome in outcomes] == ["ok"] * 300
    assert outcomes[7].value == "slept"
    assert 0.2 <= outcomes[7].seconds < 0.2 + SLACK
    del outcomes[7]
    assert [outcome.value for outcome in outcomes] == [f"{index}|é\n\0\ud800|" for index in range(300) if index != 7]
    assert pool.size() == 2


def test_nothing_is_started_before_it_is_needed(make: Callable[..., Pool]) -> None:
    pool = make(workers=8)
    assert (pool.size(), pool.pids(), pool.run([])) == (0, [], [])
    assert values(pool, "echo:1") == ["1"]
    assert pool.size() == 1


@pytest.mark.parametrize("text", ["sleep:30", "spin", "bigint", "stubborn"])
def test_deadline(make: Callable[..., Pool], text: str) -> None:
    pool = make(workers=1)
    values(pool, "echo:start")
    started = time.monotonic()
    (outcome,) = pool.run([(text,)])
    assert 0.5 <= time.monotonic() - started < 0.5 + SLACK
    assert outcome.status == "timeout"
    assert 0.5 <= outcome.seconds < 0.5 + SLACK
    assert (pool.kills, pool.size(), values(pool, "echo:after")) == (1, 1, ["after"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_job_delays_the_others_by_its_deadline_at_most(make: Callable[..., Pool], workers: int) -> None:
    pool = make(workers=workers)
    values(pool, *["echo:start"] * 4)
    started = time.monotonic()
    assert statuses(pool, "spin", *["echo:x"] * 50) == ["timeout", *["ok"] * 50]
    assert time.monotonic() - started < 0.5 + SLACK


def test_a_deadline_may_be_as_good_as_none(make: Callable[..., Pool]) -> None:
    assert values(make(deadline=1e9), "sleep:0.1") == ["slept"]


@linux
def test_memory_is_capped(make: Callable[..., Pool]) -> None:
    pool = make(workers=1, memory=256 * 2**20, deadline=5)
    (outcome,) = pool.run([(f"memory:{2**29}",)])
    assert (outcome.status, outcome.value) == ("error", "MemoryError: ")
    assert (pool.recycled, pool.size()) == (1, 1)
    assert values(pool, f"memory:{2**20}") == [str(2**20)]


@pytest.mark.parametrize("text", ["exit", "segv"])
def test_death(make: Callable[..., Pool], text: str) -> None:
    pool = make(workers=1)
    assert statuses(pool, "echo:1", text, "echo:2", text, text, "echo:3") == ["ok", "died", "ok", "died", "died", "ok"]
    assert (pool.deaths, pool.kills, pool.size()) == (3, 0, 1)


def test_errors_are_outcomes(make: Callable[..., Pool]) -> None:
    pool = make(workers=1)
    texts = ("error:no such thing", "base_error:late", "recurse", "not_text", "error:" + "x" * 1000, "unknown")
    outcomes = pool.run([(text,) for text in texts])
    assert [outcome.status for outcome in outcomes] == ["error"] * 6
    assert [outcome.value for outcome in outcomes[:2]] == ["ValueError: no such thing", "Alarm: late"]
    assert outcomes[2].value.startswith("RecursionError: ")
    assert outcomes[3].value == "TypeError: the judge returned float, expected str"
    assert len(outcomes[4].value) == 500
    assert outcomes[5].value == "KeyError: 'unknown'"
    assert (pool.deaths, pool.kills, pool.recycled) == (0, 0, 0)


def test_recycle(make: Callable[..., Pool]) -> None:
    pool = make(workers=1, recycle=3)
    seen = [value.split()[0] for value in values(pool, *["state"] * 10)]
    assert [seen.count(pid) for pid in dict.fromkeys(seen)] == [3, 3, 3, 1]
    assert (pool.recycled, pool.kills, pool.deaths, pool.size()) == (3, 0, 0, 1)


def test_a_worker_is_a_confined_fork_of_a_warmed_fork_server(make: Callable[..., Pool], tmp_path: Path) -> None:
    pool = make(workers=1)
    with open(tmp_path / "inherited", "w") as file:
        os.set_inheritable(file.fileno(), True)
        pid, server, warmed, descriptors, null, ground = values(pool, "state")[0].split()
    assert int(pid) == pool.pids()[0]
    assert server == warmed
    assert int(server) != os.getpid()
    # three streams, its socket, and the listing itself
    assert (descriptors, null, ground) == ("5", "True", "python")
    (outcome,) = pool.run([(f"write:{tmp_path / 'written'}",)])
    assert outcome.status == "error"
    assert values(pool, "imported:torch", "imported:dgpo") == ["False", "False"]


@linux
def test_fifty_kills_leave_a_full_pool_no_zombie_and_no_descriptor(make: Callable[..., Pool]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pool = make(workers=2, deadline=0.02)
    server = server_of(pool)
    assert statuses(pool, *["echo:x"] * 20, "sleep:0.001") == ["ok"] * 21
    during = len(os.listdir("/proc/self/fd"))
    assert statuses(pool, *["spin"] * 50) == ["timeout"] * 50
    assert (pool.kills, pool.size()) == (50, 2)
    assert statuses(pool, *["echo:x"] * 20, "sleep:0.001") == ["ok"] * 21
    # a worker that became ready when nothing was left to do is taken up by the next run, with its descriptor
    assert eventually(lambda: len(children(server)) == 2 and {*pool.pids()} <= {*children(server)})
    assert "Z" not in children(server).values()
    assert len(os.listdir(f"/proc/{server}/fd")) == 4  # three streams and the control socket
    assert len(os.listdir("/proc/self/fd")) <= during
    pool.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert server not in children(os.getpid())


@linux
def test_close_ends_everything(make: Callable[..., Pool]) -> None:
    pool = make(workers=2)
    server = server_of(pool)
    values(pool, "sleep:0.1", "sleep:0.1")
    pids = [server, *pool.pids()]
    assert len(pids) == 3
    pool.close()
    pool.close()
    assert not any(map(alive, pids))
    assert pool.size() == 0
    for jobs in ([], [("echo:x",)]):
        with pytest.raises(ValueError, match="the pool is closed"):
            pool.run(jobs)


@linux
def test_a_forgotten_pool_ends() -> None:
    pool = Pool(PoolSettings(judge_file=JUDGE, workers=1))
    pids = [server_of(pool), *pool.pids()]
    del pool
    assert eventually(lambda: not any(map(alive, pids)))


def test_close_under_a_running_thread(make: Callable[..., Pool]) -> None:
    pool = make(workers=1, deadline=60)
    raised: list[Exception] = []

    def run() -> None:
        try:
            values(pool, "spin", "echo:never")
        except ValueError as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: bool(pool.pids()))
    pool.close()
    for thread in threads:
        thread.join(5)
    assert ["closed" in str(error) for error in raised] == [True] * 3
    assert pool.size() == 0


def test_threads_share_the_workers(make: Callable[..., Pool]) -> None:
    pool = make(workers=2)
    before = threading.active_count()
    results: dict[int, list[str]] = {}

    def run(name: int) -> None:
        results[name] = values(pool, *(f"echo:{name}-{index}" for index in range(300)), "spin", "segv")

    threads = [threading.Thread(target=run, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {name: [*(f"{name}-{index}" for index in range(300)), "", ""] for name in range(5)}
    assert (pool.kills, pool.deaths, pool.size()) == (5, 5, 2)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_many_slow_jobs_do_not_starve_another_thread(make: Callable[..., Pool], workers: int) -> None:
    pool = make(workers=workers)
    values(pool, *["sleep:0.05"] * workers)
    slow = threading.Thread(target=values, args=(pool, *["sleep:0.3"] * 6 * workers))
    slow.start()
    time.sleep(0.1)
    for _ in range(2):
        started = time.monotonic()
        assert values(pool, "echo:quick") == ["quick"]
        assert time.monotonic() - started < 0.3 + SLACK
    assert slow.is_alive()
    slow.join()


def test_an_exception_in_the_caller_leaves_no_answer_for_the_next_one(make: Callable[..., Pool]) -> None:
    class Interruption(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    pool = make(workers=2, deadline=5)
    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(Interruption):
            values(pool, "sleep:0.5", "sleep:0.6", "echo:old")
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert values(pool, "echo:new", "sleep:0.4", "echo:newer") == ["new", "slept", "newer"]


def test_alarms_of_the_caller_are_its_own(make: Callable[..., Pool]) -> None:
    rang: list[int] = []

    def ring(number: int, frame: object) -> None:
        rang.append(number)

    pool = make(workers=1)
    handler = signal.signal(signal.SIGALRM, ring)
    pending = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        assert statuses(pool, "echo:x", "spin", "segv", "stubborn") == ["ok", "timeout", "died", "timeout"]
        assert signal.getsignal(signal.SIGALRM) is ring
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] < 100
        assert rang == []
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert statuses(pool, "sleep:0.3") == ["ok"]
        assert rang == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *pending)


def test_large_jobs_do_not_block(make: Callable[..., Pool]) -> None:
    pool = make(workers=2, deadline=5)
    text = "7" * (5 * 2**20)
    assert values(pool, f"echo:{text}", "echo:x", f"echo:{text}é", f"echo:{text}") == [text, "x", f"{text}é", text]


def test_a_worker_that_takes_no_text_is_late(make: Callable[..., Pool]) -> None:
    pool = make(workers=1)
    values(pool, "echo:x")
    os.kill(pool.pids()[0], signal.SIGSTOP)
    started = time.monotonic()
    assert statuses(pool, "echo:" + "7" * (5 * 2**20), "echo:x") == ["timeout", "ok"]
    assert time.monotonic() - started < 0.5 + SLACK


def test_workers_that_were_killed_while_idle_cost_no_job(make: Callable[..., Pool]) -> None:
    pool = make(workers=4)
    values(pool, *["sleep:0.2"] * 4)
    assert len(pool.pids()) == 4
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert values(pool, *(f"echo:{index}" for index in range(50))) == [str(index) for index in range(50)]
    assert (pool.deaths, pool.kills, pool.size()) == (4, 0, 4)


@linux
def test_fork_server_killed_while_idle(make: Callable[..., Pool]) -> None:
    pool = make(workers=2)
    server = server_of(pool)
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: not alive(server))
    assert values(pool, "echo:1", "echo:2", "echo:3") == ["1", "2", "3"]
    assert server_of(pool) != server
    assert server not in children(os.getpid())


@linux
def test_fork_server_killed_while_jobs_run(make: Callable[..., Pool]) -> None:
    pool = make(workers=2, deadline=5)
    server = server_of(pool)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(values(pool, "sleep:1", "sleep:1.1", "echo:x")))
    thread.start()
    assert eventually(lambda: len(pool.pids()) == 2)
    pids = pool.pids()
    time.sleep(0.2)
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: not any(map(alive, pids)), 0.3)
    thread.join(10)
    assert found == ["slept", "slept", "x"]
    assert (pool.deaths, pool.size()) == (0, 2)


def test_a_judge_that_cannot_be_imported(make: Callable[..., Pool], tmp_path: Path) -> None:
    def judge(text: str) -> Pool:
        file = tmp_path / "judge.py"
        file.write_text(text)
        return make(judge_file=str(file))

    pool = judge("import a_parser_that_is_missing")
    for _ in range(2):  # it is tried again
        with pytest.raises(ImportError, match="ModuleNotFoundError: No module named 'a_parser_that_is_missing'"):
            values(pool, "echo:x")
    with pytest.raises(RuntimeError, match=r"judge.py could not be loaded: ValueError: cold"):
        values(judge("def warm_up(): raise ValueError('cold')"), "echo:x")
    with pytest.raises(RuntimeError, match="AttributeError: .*warm_up"):
        values(judge(""), "echo:x")
    with pytest.raises(RuntimeError, match=r"did not start: .* too cold"):
        values(judge("import os; os.write(2, b'too cold'); os.abort()"), "echo:x")


def test_a_judge_may_import_what_lies_beside_it(make: Callable[..., Pool], tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("raise AssertionError('the package around it is not run')")
    (tmp_path / "neighbour.py").write_text("WORD = 'next door'")
    file = tmp_path / "judge.py"
    file.write_text("from .neighbour import WORD\ndef warm_up(): pass\ndef judge(text): return WORD + text")
    assert values(make(judge_file=str(file)), "!") == ["next door!"]


def test_pickle_carries_the_settings(make: Callable[..., Pool]) -> None:
    pool = make(workers=3, recycle=7)
    values(pool, "echo:x")
    copy = pickle.loads(pickle.dumps(pool))
    assert copy.settings == pool.settings
    assert copy.size() == 0
    with copy:
        assert values(copy, "echo:y") == ["y"]


def use(pool: Pool, answers: Any) -> None:
    answers.put((statuses(pool, "echo:x", "spin", "segv"), pool.pids(), pool.kills))


@pytest.mark.parametrize(("method", "daemon"), [("fork", False), ("fork", True), ("spawn", True)])
def test_in_a_child_process(make: Callable[..., Pool], method: Any, daemon: bool) -> None:
    pool = make(workers=1)
    values(pool, "echo:x")
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=use, args=(pool, answers), daemon=daemon)
    process.start()
    found, pids, kills = answers.get(timeout=60)
    process.join(10)
    assert (found, kills, process.exitcode) == (["ok", "timeout", "died"], 1, 0)
    assert not set(pids) & set(pool.pids())
    assert values(pool, "echo:y") == ["y"]
    if sys.platform == "linux":
        assert eventually(lambda: not any(map(alive, pids)))


def test_after_a_fork_both_work_even_if_a_thread_was_inside(make: Callable[..., Pool]) -> None:
    pool = make(workers=1, deadline=3)
    mine = set(values(pool, "state")[0].split()[:2])
    busy = threading.Thread(target=values, args=(pool, "sleep:1", "sleep:1"))
    busy.start()
    time.sleep(0.2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, values(pool, "state")[0].encode())
            pool.close()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        theirs = set(pipe.read().decode().split()[:2])
    os.waitpid(child, 0)
    assert len(theirs) == 2
    assert not theirs & mine
    busy.join()
    assert set(values(pool, "state")[0].split()[:2]) == mine


ORPHANS = """
import os, sys, threading, time
from dgpo.grading.workers import Pool, PoolSettings
pool = Pool(PoolSettings(judge_file=sys.argv[1], workers=2, deadline=1000))
pids = [int(pid) for pid in pool.run([("state",)])[0].value.split()[:2]]
sibling = os.fork()
if sibling == 0:
    time.sleep(60)  # a fork that knows nothing of the pool
threading.Thread(target=pool.run, args=([("stubborn",), ("spin",)],), daemon=True).start()
while len(pool.pids()) < 2:
    time.sleep(0.01)
# and one, made while jobs ran, that keeps every socket open
links = {fd: f"/proc/self/fd/{fd}" for fd in range(3, 64)}
sockets = [fd for fd, link in links.items() if os.path.islink(link) and "socket:" in os.readlink(link)]
assert len(sockets) == 3
for fd in sockets:
    os.dup(fd)
late = os.fork()
if late == 0:
    time.sleep(60)
print(*{*pids, *pool.pids()}, sibling, late, flush=True)
END
"""


@linux
@pytest.mark.parametrize("end", ["time.sleep(60)", "sys.exit(0)", "os._exit(0)"])
def test_no_process_outlives_the_parent(end: str) -> None:
    script = ORPHANS.replace("END", end)
    parent = subprocess.Popen([sys.executable, "-c", script, JUDGE], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        *pids, sibling, late = map(int, parent.stdout.readline().split())
        try:
            assert len(pids) == 3
            if "sleep" in end:
                assert all(map(alive, pids))
                parent.kill()
            assert eventually(lambda: not any(map(alive, pids)))
            assert alive(sibling)
            assert alive(late)
        finally:
            for pid in (sibling, late):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers = 0"),
        ({"workers": 1.5}, "workers = 1.5"),
        ({"deadline": 0}, "deadline = 0"),
        ({"deadline": math.inf}, "deadline = inf"),
        ({"deadline": math.nan}, "deadline = nan"),
        ({"memory": 2**20}, "memory = 1048576"),
        ({"recycle": 0}, "recycle = 0"),
        ({"judge_file": "missing.py"}, "judge_file = 'missing.py'"),
    ],
)
def test_settings_are_checked(make: Callable[..., Pool], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("job", ["text", ("a", 1), ["a"], (b"a",)])
def test_jobs_are_checked(make: Callable[..., Pool], job: Any) -> None:
    with pytest.raises(TypeError, match=r"jobs\[1\] is .*; expected a tuple of strings"):
        make().run([("echo:x",), job])
