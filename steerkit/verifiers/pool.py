"""Worker processes that can be killed: a hard wall clock around functions that may hang or crash.

Signals work in a main thread only, forks of a process that runs torch's threads can lock up, and daemonic
processes (data loader workers) may not have ``multiprocessing`` children. So each worker is a plain
``subprocess`` that speaks over two pipes, and the wait is a queue with a time-out: this works from any thread of
any process, and a worker ends by itself once its parent is gone.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from steerkit.errors import SteerkitError
from steerkit.types import VerdictStatus
from steerkit.verifiers.process import Worker

Answer = tuple[VerdictStatus, str]
"""Status and reason."""

STATUSES = get_args(VerdictStatus)


class WorkerPool:
    """``workers`` processes that each serve one function ``(candidate, gold) -> (status, reason)``.

    Args:
        function: ``package.module:function``, imported in the workers; a ``prepare()`` in the same module runs
            once before the first answer. Its arguments are the two strings of one request.
        workers: how many processes; they start at the first request, or at ``warm()``.
        timeout: seconds of wall clock for one answer, the start of the worker not counted.
        memory_mb: address space of one worker in MiB, where the platform can bound it.
        startup_timeout: seconds that a worker may take to import the function.

    Raises:
        SteerkitError: a setting is out of range, or (at the first request) the function can't be imported.

    ``counts`` has the number of answers per cause: ``ok``, ``timeout``, ``crash``, ``memory``, ``error``, and
    ``restarts`` for the workers that were replaced.
    """

    def __init__(
        self,
        function: str,
        workers: int = 2,
        timeout: float = 5.0,
        memory_mb: int = 2048,
        startup_timeout: float = 120.0,
    ) -> None:
        if workers < 1:
            raise SteerkitError(f"workers must be at least 1, got {workers}.")
        if not timeout > 0:
            raise SteerkitError(f"timeout must be above 0 seconds, got {timeout}.")
        if ":" not in function:
            raise SteerkitError(f"function must be 'package.module:function', got {function!r}.")
        self.function, self.workers, self.timeout = function, workers, timeout
        self.memory_mb, self.startup_timeout = memory_mb, startup_timeout
        self._reset()

    def _reset(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock, self._waiting = threading.Lock(), threading.Lock()
        self._owner = os.getpid()
        self._slots = [Worker(self.function, self.memory_mb) for _ in range(self.workers)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for slot in self._slots:
            self._idle.put(slot)
        # Runs when the pool is collected or the interpreter exits, whichever is first.
        self._finalizer = weakref.finalize(self, _stop_all, self._slots, self._owner)

    def _claim(self) -> None:
        """A forked child must not talk over its parent's pipes: it gets workers of its own."""
        if self._owner != os.getpid():
            self._finalizer.detach()
            self._reset()

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: a copy that is sent to another process starts its own workers."""
        names = ("function", "workers", "timeout", "memory_mb", "startup_timeout")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def warm(self) -> None:
        """Starts the workers and returns without waiting for them."""
        self._claim()
        for slot in self._slots:
            slot.start()

    def wait(self) -> None:
        """Starts the workers and blocks until all of them can answer.

        Raises:
            SteerkitError: the function can't be imported.
        """
        self.warm()
        held: list[Worker] = []
        with self._waiting:  # two that each hold half of the slots would wait for each other
            try:
                for _ in self._slots:
                    held.append(self._idle.get())  # no other thread talks to a slot that is not idle
                    held[-1].wait_ready(self.startup_timeout)
            finally:
                for slot in held:
                    self._idle.put(slot)

    def map(self, requests: Sequence[tuple[str, str]]) -> list[Answer]:
        """Answers in the order of ``requests``. Callable from several threads: they share the workers."""
        self._claim()
        answers: list[Answer | None] = [None] * len(requests)
        errors: list[BaseException] = []
        todo = iter(range(len(requests)))

        def serve() -> None:
            slot = self._idle.get()
            try:
                while not errors:
                    with self._lock:
                        index = next(todo, None)
                    if index is None:
                        return
                    answers[index] = self._ask(slot, requests[index])
            except BaseException as error:  # handed to the caller's thread below
                errors.append(error)
            finally:
                self._idle.put(slot)

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(self.workers, len(requests)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C in the caller: the threads stop after the answer in hand
            errors.append(error)
        if errors:
            raise errors[0]
        return [answer for answer in answers if answer is not None]

    def _ask(self, slot: Worker, request: tuple[str, str]) -> Answer:
        slot.wait_ready(self.startup_timeout)
        reply = slot.ask(request, self.timeout)
        answer: Answer
        if isinstance(reply, str):  # "timeout" or "crash": the worker is gone
            answer, cause = ("fault", reply), reply
        elif reply.get("status") in STATUSES:
            answer = (reply["status"], str(reply["reason"]))
            cause = reply.get("failure", "ok")
        else:
            answer, cause = ("fault", f"error: status {reply.get('status')!r}"), "error"
        lost = cause in ("timeout", "crash", "memory")
        with self._lock:
            self.counts[cause] += 1
            self.counts["restarts"] += lost
        if lost:
            slot.stop()
            slot.start()  # its imports run while the other workers answer
        return answer

    def close(self) -> None:
        """Ends the workers. A later request starts new ones."""
        self._claim()
        for slot in self._slots:
            slot.stop()


def _stop_all(slots: Sequence[Worker], owner: int) -> None:
    if owner == os.getpid():
        for slot in slots:
            slot.stop()
