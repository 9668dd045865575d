"""One worker process as its parent sees it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.verifiers.worker import encode, read_frame

# The parent's import path is handed over, so that whatever it can import its workers can.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from steerkit.verifiers.worker import main; main(sys.argv[2], int(sys.argv[3]))"
)
PIPE_BYTES = 4096
"""What a pipe surely takes at once, whether it is read or not."""
# A worker compares short texts: threads of a linear algebra library would only cost memory.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Worker:
    """A slot that holds at most one process; used by one thread at a time, except ``start`` and ``stop``."""

    def __init__(self, function: str, memory_mb: int) -> None:
        self.function, self.memory_mb = function, memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._ready = False

    def start(self) -> None:
        """Starts the process unless it runs already; does not wait for it."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._discard()
            path = json.dumps([entry or os.getcwd() for entry in sys.path])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, path, self.function, str(self.memory_mb)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, **_ONE_THREAD},
            )
            self._ready, self._replies = False, queue.SimpleQueue()
            # A blocking read has no time-out on every platform; a queue has. The thread ends with the pipe.
            threading.Thread(target=_pump, args=(self._process.stdout, self._replies), daemon=True).start()

    def wait_ready(self, seconds: float) -> None:
        """Blocks until the process can answer.

        Raises:
            SteerkitError: it could not import its function, died, or took longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        # A process that died while idle (killed from outside) is no answer's fault: start another.
        if self._ready and self._process is not None and self._process.poll() is None:
            return
        self.start()
        while not self._ready:
            reply = self._take(max(0.0, deadline - time.monotonic()))
            if isinstance(reply, dict) and "ready" in reply:
                self._ready = True
                continue
            self.stop()
            cause = reply["failed"] if isinstance(reply, dict) else f"{reply} while starting"
            raise SteerkitError(f"The verifier worker for '{self.function}' can't start: {cause}.")

    def ask(self, request: tuple[str, str], seconds: float) -> dict[str, Any] | str:
        """The reply to ``request``, or ``timeout`` or ``crash``; after these two the process is of no more use."""
        process = self._process
        if process is None or process.stdin is None:  # close() in another thread
            return "crash"
        frame = memoryview(encode({"args": request, "timeout": seconds}))
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        # A pipe that nobody reads takes so much and then blocks for ever: the clock runs for the writing, too.
        clock = threading.Timer(seconds, give_up) if len(frame) > PIPE_BYTES else None
        if clock is not None:
            clock.daemon = True
            clock.start()
        try:
            while frame:
                frame = frame[process.stdin.write(frame) :]
        except (OSError, ValueError):  # broken pipe, or closed by another thread
            return "timeout" if late.is_set() else "crash"
        finally:
            if clock is not None:
                clock.cancel()
        return self._take(seconds)

    def _take(self, seconds: float) -> dict[str, Any] | str:
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            return "timeout"
        return "crash" if reply is None else reply

    def stop(self) -> None:
        """Kills the process, if any, and waits for its end."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _pump(stream: Any, replies: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Moves frames from the pipe to the queue; None marks the pipe's end."""
    try:
        with stream:
            while (reply := read_frame(stream)) is not None:
                replies.put(reply)
    except (OSError, ValueError):  # a frame cut in the middle by a kill
        pass
    replies.put(None)
