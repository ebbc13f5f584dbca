"""Processes that end in every way there is: what each leaves behind, and what the next call does about it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from dgpo.comparison import runner as module
from dgpo.comparison.cells import CellFolder, Progress
from dgpo.comparison.runner import Interrupted, Runner
from dgpo.comparison.study import Cell
from dgpo.files import FolderInUse

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")

DONE = "open('done', 'w')"
WAIT = "import time; open('ready', 'w'); time.sleep(30)"


class Scripts:
    """Runs a line of Python for each cell, in its folder."""

    def __init__(self, **scripts: str) -> None:
        self.scripts = scripts
        self.ran: list[str] = []
        self.tidied: list[str] = []

    def command(self, folder: CellFolder) -> list[str]:
        arm = folder.cell.arm
        self.ran.append(arm)
        folder.path.mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-I", "-S", "-c", f"import os; os.chdir({str(folder.path)!r}); {self.scripts[arm]}"]

    def finished(self, folder: CellFolder) -> bool:
        return (folder.path / "done").exists()

    def tidy(self, folder: CellFolder) -> None:
        self.tidied.append(folder.cell.arm)


class Watch:
    def __init__(self, when: Path | None = None, number: signal.Signals = signal.SIGINT) -> None:
        self.when, self.number = when, number
        self.began_with: list[tuple[str, bool]] = []
        self.ended_with: dict[str, Progress] = {}
        self.most = 0
        self.stops = 0
        self.waited: list[str] = []

    def began(self, folder: CellFolder, resumed: bool) -> None:
        self.began_with.append((folder.cell.arm, resumed))

    def ended(self, folder: CellFolder, progress: Progress) -> None:
        self.ended_with[folder.cell.arm] = progress

    def stopping(self, running: int, first: bool) -> None:
        self.stops += 1

    def waiting(self, folder: CellFolder) -> None:
        self.waited.append(folder.cell.arm)

    def tick(self, runner: Runner) -> None:
        self.most = max(self.most, len(runner.running))
        if self.when is not None and self.when.exists():
            self.when = None
            signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(module, "RETRY", 0.05)


def folders(root: Path, *arms: str) -> list[CellFolder]:
    return [CellFolder(root, Cell(phase="final", arm=arm, setting={}, seed=0, options={"seed": "0"})) for arm in arms]


def make(scripts: Scripts, watch: Watch, jobs: int = 1, devices: list[str] | None = None) -> Runner:
    return Runner(scripts, watch, jobs=jobs, devices=devices or [], threads=1)


def states(runner: Runner) -> dict[str, tuple[str, int | None]]:
    return {name.split("/")[1]: (one.state, one.code) for name, one in runner.progress.items()}


def test_a_failure_is_counted_and_stops_nothing_and_finished_runs_are_skipped(tmp_path: Path) -> None:
    scripts = Scripts(a="print('why'); raise SystemExit(3)", b=DONE, c="pass", d="os.kill(os.getpid(), 11)")
    watch, cells = Watch(), folders(tmp_path, "a", "b", "c", "d")
    runner = make(scripts, watch)
    runner.run(cells)
    # c ended well without having finished: somebody stopped it
    assert states(runner) == {"a": ("failed", 3), "b": ("finished", 0), "c": ("stopped", 0), "d": ("failed", -11)}
    assert cells[0].last_words() == ["why"]
    assert scripts.tidied == ["b"]
    assert watch.most == 1

    scripts.scripts.update(a=DONE, c=DONE, d=DONE)
    scripts.ran.clear()
    again = Watch()
    runner = make(scripts, again)
    runner.run(cells)
    assert scripts.ran == ["a", "c", "d"]
    assert all(state == "finished" for state, _ in states(runner).values())
    assert again.began_with == [("a", True), ("c", True), ("d", True)]
    assert again.ended_with["a"].starts == 2
    assert again.ended_with["a"].seconds > watch.ended_with["a"].seconds


def test_several_at_a_time_each_on_its_device(tmp_path: Path) -> None:
    tell = "open('done', 'w').write(os.environ['CUDA_VISIBLE_DEVICES']); import time; time.sleep(0.3)"
    scripts, watch = Scripts(a=tell, b=tell, c=tell, d=tell), Watch()
    cells = folders(tmp_path, "a", "b", "c", "d")
    make(scripts, watch, jobs=2, devices=["3", "5"]).run(cells)
    assert watch.most == 2
    used = [(cell.path / "done").read_text() for cell in cells]
    assert sorted(used[:2]) == ["3", "5"]
    assert set(used) == {"3", "5"}


def test_ctrl_c_asks_every_process_to_stop_and_the_next_call_goes_on(tmp_path: Path) -> None:
    cells = folders(tmp_path, "a", "b")
    heeds = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); " + WAIT
    scripts, watch = Scripts(a=heeds, b=DONE), Watch(cells[0].path / "ready")
    before = signal.getsignal(signal.SIGINT)
    runner = make(scripts, watch)
    with pytest.raises(Interrupted):
        runner.run(cells)
    assert signal.getsignal(signal.SIGINT) is before
    assert scripts.ran == ["a"]
    assert watch.ended_with["a"].state == "stopped"
    scripts.scripts["a"] = DONE
    make(scripts, watch).run(cells)
    assert [cell.progress().state for cell in cells] == ["finished", "finished"]


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    cells = folders(tmp_path, "a")

    class Twice(Watch):
        def stopping(self, running: int, first: bool) -> None:
            super().stopping(running, first)
            if first:
                signal.raise_signal(signal.SIGINT)

    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + WAIT
    watch = Twice(cells[0].path / "ready")
    with pytest.raises(Interrupted):
        make(Scripts(a=deaf), watch).run(cells)
    assert (watch.stops, watch.ended_with["a"].code, watch.ended_with["a"].state) == (2, -9, "stopped")


def test_a_cell_that_somebody_else_runs_is_waited_for(tmp_path: Path) -> None:
    (cell,) = folders(tmp_path, "a")
    somebody = cell.lock()
    somebody.__enter__()
    cell.save(Progress(state="running", starts=1))

    class Finishes(Watch):
        ticks = 0

        def tick(self, runner: Runner) -> None:
            self.ticks += 1
            if self.ticks == 20:
                cell.save(Progress(state="finished", code=0, starts=1))
                somebody.__exit__(None, None, None)

    scripts, watch = Scripts(a=DONE), Finishes()
    make(scripts, watch).run([cell])
    assert watch.ticks >= 20
    assert watch.waited == ["a"]
    assert scripts.ran == []
    assert cell.progress().state == "finished"


def test_a_run_that_outlives_its_parent_keeps_the_folder_locked(tmp_path: Path) -> None:
    (cell,) = folders(tmp_path, "a")

    class Dies(Watch):
        tried = False

        def tick(self, runner: Runner) -> None:
            if not (cell.path / "ready").exists() or self.tried:
                return
            self.tried = True
            (job,) = runner._jobs
            job.held.close()  # what the end of this process would do
            with pytest.raises(FolderInUse), cell.lock():
                pass
            job.process.kill()

    watch = Dies()
    make(Scripts(a=WAIT), watch).run([cell])
    assert watch.tried
    # killed by somebody: the next call goes on
    assert (cell.progress().state, cell.progress().code) == ("stopped", -9)
    with cell.lock():
        pass


def test_a_run_with_other_options_begins_nothing(tmp_path: Path) -> None:
    first, second = folders(tmp_path, "a", "b")
    CellFolder(tmp_path, Cell(phase="final", arm="b", setting={}, seed=0, options={"seed": "0", "beta": "1"})).save(
        Progress()
    )
    scripts = Scripts(a=DONE, b=DONE)
    with pytest.raises(ValueError, match="holds a run with other options"):
        make(scripts, Watch()).run([first, second])
    assert scripts.ran == []
