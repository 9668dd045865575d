"""The parent's side of the workers: processes that run commands, one at a time each."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerkit import registry

# The parent's import path is handed over, so that whatever it can import its workers can.
BOOT = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from steerkit.study.serve import serve; from steerkit.cli import main; "
    "serve(main, given['words'], given['trusted'])"
)
"""What a process runs."""
PATIENCE = 30.0
"""Seconds that an interrupted command has to save what it has."""


class Worker:
    """A process; it is started when it gets its first command, and again after it ended."""

    def __init__(self, replies: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]], words: Sequence[str],
                 threads: int, boot: str = BOOT) -> None:  # fmt: skip
        self._replies, self._words, self._threads, self._boot = replies, list(words), threads, boot
        self._process: subprocess.Popen[bytes] | None = None
        self.item: str | None = None
        """Id of what it works on."""

    def give(self, id_: str, argv: Sequence[str], log: Path) -> None:
        """Let it run a command; the reply of ``serve`` goes to the queue, None if it ended."""
        if not self.alive:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self.item = id_
        try:
            self._process.stdin.write(json.dumps({"id": id_, "argv": list(argv), "log": str(log)}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has just ended: its reader says so
            pass

    def _start(self) -> None:
        self.end()  # what is left of one that ended
        given = {"path": [entry or os.getcwd() for entry in sys.path], "words": self._words,
                 "trusted": registry.trusted()}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._boot, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Nothing else is set, for MKL's own variable would go over this one: the
            # numbers depend on the threads, and the command typed by hand must give the same.
            env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, which passes it on once
        )
        threading.Thread(target=self._pump, args=(self._process,), daemon=True).start()

    def _pump(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._replies.put((self, json.loads(line)))
        process.wait()
        self._replies.put((self, None))

    @property
    def exit_code(self) -> int | None:
        """Of the process, if it ended; negative: the signal that ended it."""
        return self._process.returncode if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.poll() is None

    def interrupt(self) -> None:
        """As Ctrl-C: a fit saves its state, an evaluation or an analysis has what is finished on disk."""
        if self._process is not None and self.alive and self.item is not None:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End it at once."""
        process, self._process, self.item = self._process, None, None
        if process is None:
            return
        process.kill()  # an idle one has nothing to save, and a busy one has had its time
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
