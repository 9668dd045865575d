"""The worker's side: a process that imports steerkit once and runs one command after another.

It reads lines of JSON from standard input (``{"id", "argv", "log"}``) and answers each on what was its standard output
(``{"id", "code", "seconds", "cpu_seconds"}``). The commands' own output goes to the log. When its input ends, its
parent is gone, and it ends at once, in the middle of whatever it does: two processes must not work on one item.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from steerkit.registry import code_named_by
from steerkit.runtime import release_freed_memory

Call = Callable[[Sequence[str]], int]


def serve(call: Call, words: Sequence[str], trusted: bool) -> None:
    """Work until the parent ends it.

    Args:
        call: runs a command line (without the leading ``steerkit``), returns its exit code.
        words: of the study's own command line, the only place that may name code to run (``registry.code_named_by``).
        trusted: the study was called with ``--allow_code``.
    """
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    source = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    threading.Thread(target=_read, args=(source, requests), daemon=True).start()
    try:
        with code_named_by(words, trusted):
            while True:
                request = requests.get()
                began, spent = time.monotonic(), _processor()
                code = _logged(call, request["argv"], Path(request["log"]))
                release_freed_memory()
                reply = {"id": request["id"], "code": code, "seconds": round(time.monotonic() - began, 2)}
                replies.write(json.dumps(reply | {"cpu_seconds": round(_processor() - spent, 2)}) + "\n")
                replies.flush()
    except KeyboardInterrupt:
        os._exit(130)


def _processor() -> float:
    """Seconds of processor time, of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _read(source: BinaryIO, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in source:
        requests.put(json.loads(line))
    os._exit(1)


def _logged(call: Call, argv: Sequence[str], log: Path) -> int:
    """The exit code of a command whose output goes to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        return int(call(argv))
    except SystemExit as stop:
        return int(stop.code) if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:  # a plugin may raise anything; the next item is another's
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
