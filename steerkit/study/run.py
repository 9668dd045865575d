"""Doing the work list: ready items to idle workers, until all is done or failed; a stopped one can be gone on with."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from steerkit.errors import SteerkitError, Stopped
from steerkit.study.arms import Arm
from steerkit.study.choice import choose, resolved
from steerkit.study.items import Item, WorkList
from steerkit.study.workers import BOOT, PATIENCE, Worker

Say = Callable[[str], None]


class Runner:
    """Works on a list with several processes.

    Args:
        work: the list.
        arms: name -> arm, for what the words of commands stand for.
        workers: processes.
        threads: of each.
        words: of the study's command line.
        say: prints a line.
        boot: what a process runs.
    """

    def __init__(self, work: WorkList, arms: Mapping[str, Arm], workers: int, threads: int, words: Sequence[str],
                 say: Say, boot: str = BOOT) -> None:  # fmt: skip
        self.work, self.arms, self.say = work, arms, say
        self._replies: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self.threads = int((os.environ.get("OMP_NUM_THREADS") or str(threads)).split(",")[0])
        self.workers = [Worker(self._replies, words, self.threads, boot) for _ in range(workers)]

    def run(self) -> None:
        """Do what can be done.

        Raises:
            Stopped: by Ctrl-C or SIGTERM; the commands that were running have saved what they had.
        """
        began = time.monotonic()
        session = {"started": round(time.time(), 1), "seconds": 0.0, "threads": self.threads}
        self.work.sessions.append(session)
        with _signals():
            try:
                self._loop(session, began)
            except BaseException:
                self._stop()
                raise
            finally:
                for worker in self.workers:
                    worker.end()
                for item in self.work.items.values():
                    if item.state == "running":
                        item.state = "waiting"
                session["seconds"] = round(time.monotonic() - began, 1)
                self.work.save()

    def _stop(self) -> None:
        """Interrupt what runs, and wait until it has saved what it has."""
        for worker in self.workers:
            worker.interrupt()
        until = time.monotonic() + PATIENCE
        while any(worker.item is not None for worker in self.workers) and time.monotonic() < until:
            try:
                worker, reply = self._replies.get(timeout=0.2)
            except queue.Empty:
                continue
            if worker.item is not None and reply is not None and reply["code"] == 0:
                self._take(worker, reply)  # it was just done
            worker.item = None

    def _loop(self, session: dict[str, Any], began: float) -> None:
        while True:
            self._hand_out()
            session["seconds"] = round(time.monotonic() - began, 1)
            self.work.save()
            if all(worker.item is None for worker in self.workers):
                return
            while True:
                try:  # with a time-out: a wait without one can't be interrupted on every system
                    worker, reply = self._replies.get(timeout=0.5)
                    break
                except queue.Empty:
                    continue
            self._take(worker, reply)

    def _hand_out(self) -> None:
        while True:
            idle = [worker for worker in self.workers if worker.item is None]
            ready = self.work.ready()
            choices = [item for item in ready if item.kind == "choose"]
            if choices:
                for item in choices:
                    self._choose(item)
                continue  # more may be ready now
            if not idle or not ready:
                return
            item = ready[0]
            try:
                item.argv = resolved(self.work.folder, item.argv, self.arms)
            except (SteerkitError, OSError, KeyError, ValueError) as error:
                item.state, item.error = "failed", f"its settings can't be told: {error}"
                continue
            if self.work.finished(item, item.argv):
                item.state = "done"
                continue
            item.state, item.started, item.error = "running", round(time.time(), 1), ""
            idle[0].give(item.id, again(item, self.work.folder), self.work.folder / item.log)

    def _choose(self, item: Item) -> None:
        try:
            choose(self.work.folder, item)
            item.state = "done"
        except (SteerkitError, OSError, KeyError, ValueError) as error:
            item.state, item.error = "failed", str(error)
            self.say(f"{item.id} failed: {item.error}")

    def _take(self, worker: Worker, reply: dict[str, Any] | None) -> None:
        if worker.item is None or (reply is None and worker.alive):  # the end of an idle one, told late
            return
        item, worker.item = self.work.items[worker.item], None
        if reply is None:
            code, item.seconds = worker.exit_code or 1, round(time.time() - (item.started or time.time()), 2)
        else:
            code, item.seconds, item.cpu_seconds = (
                int(reply["code"]),
                float(reply["seconds"]),
                float(reply["cpu_seconds"]),
            )
        if code == 0:
            self.work.mark(item)
            item.state = "done"
        else:
            item.state, item.error = "failed", why(self.work.folder / item.log, code, reply is None)
        finished, total = self.work.count("done", "failed"), len(self.work.items)
        left = f", {clock(self.left())} left" if finished < total else ""
        what = f"{item.seconds:.0f} s" if code == 0 else f"FAILED: {item.error}"
        self.say(f"[{finished}/{total}{left}] {item.id}  {what}")

    def left(self) -> float:
        """Seconds until all is done: what is expected of the rest, by how long what is finished took, on all
        processes; at least the longest way."""
        return time_left(self.work, len(self.workers))


def time_left(work: WorkList, workers: int) -> float:
    """See ``Runner.left``."""
    known: dict[str, list[tuple[float, float]]] = {}
    for item in work.items.values():
        if item.state == "done" and item.expected > 0 and item.seconds > 0:
            known.setdefault(item.kind, []).append((item.seconds, item.expected))
    every = [pair for pairs in known.values() for pair in pairs]

    def ratio(kind: str) -> float:
        pairs = known.get(kind) or every
        return sum(s for s, _ in pairs) / sum(e for _, e in pairs) if pairs else 1.0

    now, rest, longest = time.time(), 0.0, 0.0
    ways = work.ways()
    for item in work.items.values():
        if item.state not in ("waiting", "running"):
            continue
        spent = now - (item.started or now) if item.state == "running" else 0.0
        rest += max(0.0, item.expected * ratio(item.kind) - spent)
        longest = max(longest, ways[item.id] * ratio(item.kind) - spent)
    return max(rest / workers, longest)


def again(item: Item, folder: Path) -> list[str]:
    """The words that go on with what an earlier session left of a command (evaluate and analyze do by themselves)."""
    out = folder / item.out
    begun = item.argv[0] == "fit" and out.is_dir() and any(out.iterdir())
    return [*item.argv, "--ckpt_path", "last"] if begun else list(item.argv)


def why(log: Path, code: int, crashed: bool) -> str:
    """The last lines of a failed command's output, in one line."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = " ".join(" / ".join(lines[-1 if code == 2 else -3 :]).split())[:500]
    ended = f"its process ended ({f'signal {-code}' if code < 0 else f'exit code {code}'})" if crashed else ""
    return "; ".join(part for part in (ended, told or f"exit code {code}") if part)


def clock(seconds: float) -> str:
    """``50 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM become ``Stopped``; only the first counts: what follows is saving, which a second one must not
    break.
    """
    seen = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
