"""The pool with functions that hang, crash and eat memory, handed over by import path."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steerkit.errors import SteerkitError
from steerkit.verifiers import WorkerPool

MISBEHAVE = """
import os, time

def act(candidate, gold):
    if candidate == "sleep":
        time.sleep(600)
    if candidate == "spin":
        9**9**9
    if candidate == "exit":
        os._exit(3)
    if candidate == "eat":
        bytearray(8 * 2**30)
    if candidate == "raise":
        raise ValueError(candidate)
    if candidate == "nonsense":
        return "maybe", "who knows"
    if candidate == "print":
        print("x" * 100_000)
    if candidate == "pid":
        return "correct", str(os.getpid())
    return ("correct", "equal") if candidate == gold else ("wrong", "not_equal")
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    (tmp_path / "misbehave.py").write_text(MISBEHAVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = WorkerPool("misbehave:act", workers=2, timeout=2.0, memory_mb=1024)
    yield pool
    pool.close()


def test_answers_keep_their_order(pool: WorkerPool) -> None:
    answers = pool.map([(str(i), str(i % 3)) for i in range(50)])
    assert [status for status, _ in answers] == ["correct" if i < 3 else "wrong" for i in range(50)]
    assert pool.counts["ok"] == 50
    assert pool.map([]) == []


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_a_stuck_worker_is_killed_and_replaced(pool: WorkerPool, how: str) -> None:
    pool.map([("a", "a")])
    answers = pool.map([(how, ""), ("a", "a"), ("b", "a")])
    assert answers == [("fault", "timeout"), ("correct", "equal"), ("wrong", "not_equal")]
    assert pool.map([("a", "a")] * 4) == [("correct", "equal")] * 4
    assert pool.counts["timeout"] == pool.counts["restarts"] == 1


@pytest.mark.parametrize(
    ("how", "reason", "cause"),
    [
        ("exit", "crash", "crash"),
        ("raise", "error: ValueError", "error"),
        ("nonsense", "error: status 'maybe'", "error"),
        pytest.param(
            "eat", "memory", "memory", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
        ),
    ],
)
def test_a_failing_function_is_a_fault_of_that_answer_alone(
    pool: WorkerPool, how: str, reason: str, cause: str
) -> None:
    assert pool.map([(how, ""), ("a", "a")]) == [("fault", reason), ("correct", "equal")]
    assert pool.counts[cause] == 1
    assert pool.map([("a", "a")]) == [("correct", "equal")]


def test_prints_and_odd_characters_do_not_disturb_the_frames(pool: WorkerPool) -> None:
    assert pool.map([("print", ""), ("\ud800\0é", "\ud800\0é")]) == [("wrong", "not_equal"), ("correct", "equal")]


def test_several_threads_share_the_workers(pool: WorkerPool) -> None:
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(pool.map([("a", "a")] * 20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[("correct", "equal")] * 20] * 4


def test_a_worker_killed_while_idle_is_no_fault(pool: WorkerPool) -> None:
    pids = {int(pid) for _, pid in pool.map([("pid", "")] * 20)}
    for pid in pids:
        os.kill(pid, 9)
    time.sleep(0.2)
    assert pool.map([("a", "a")] * 4) == [("correct", "equal")] * 4
    assert pool.counts["crash"] == 0


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
@pytest.mark.parametrize("size", [10, 10**6])
def test_a_worker_that_does_not_read_is_killed(pool: WorkerPool, size: int) -> None:
    """Stopped from outside, say: a long request would fill the pipe and then block its writer."""
    pids = {int(pid) for _, pid in pool.map([("pid", "")] * 20)}
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    start = time.perf_counter()
    assert pool.map([("x" * size, "x" * size)] * 2) == [("fault", "timeout")] * 2
    assert time.perf_counter() - start < 10
    assert pool.map([("x" * size, "x" * size)] * 2) == [("correct", "equal")] * 2


def test_close_ends_the_processes_and_the_pool_can_go_on(pool: WorkerPool) -> None:
    first = pool.map([("pid", "")])
    pool.close()
    with pytest.raises(OSError):
        os.kill(int(first[0][1]), 0)
    assert pool.map([("pid", "")]) != first


def test_warm_returns_at_once(pool: WorkerPool) -> None:
    start = time.perf_counter()
    pool.warm()
    assert time.perf_counter() - start < 1
    assert pool.map([("a", "a")]) == [("correct", "equal")]


def test_a_copy_for_another_process_starts_its_own_workers(pool: WorkerPool) -> None:
    first = pool.map([("pid", "")])
    with_own = pickle.loads(pickle.dumps(pool))
    try:
        assert with_own.map([("pid", "")])[0][1] != first[0][1]
    finally:
        with_own.close()


def test_a_function_that_is_not_there_is_the_users_error() -> None:
    with pytest.raises(SteerkitError, match="No module named 'nowhere_at_all'"):
        WorkerPool("nowhere_at_all:f", workers=1).map([("a", "a")])
    with pytest.raises(SteerkitError, match=r"package\.module:function"):
        WorkerPool("json")
    with pytest.raises(SteerkitError, match="at least 1"):
        WorkerPool("json:loads", workers=0)


def _in_daemon(pool: WorkerPool, results: "multiprocessing.SimpleQueue[object]") -> None:
    results.put(pool.map([("a", "a")]))
    pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="data loader workers fork on POSIX only")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_daemonic_process_gets_workers_of_its_own(pool: WorkerPool) -> None:
    before = pool.map([("pid", "")])
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_in_daemon, args=(pool, results), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert results.get() == [("correct", "equal")]
    assert pool.map([("pid", "")] * 2)[0][0] == before[0][0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_their_parent_is_killed(pool: WorkerPool, tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from steerkit.verifiers import WorkerPool\n"
        "pool = WorkerPool('misbehave:act', workers=1)\n"
        "print(pool.map([('pid', '')])[0][1], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """A zombie that no init process collects counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
